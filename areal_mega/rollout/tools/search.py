"""Search over a file of documents: an example of a tool with data of its own.

Documents are ranked by BM25 (Robertson and Zaragoza, 2009, "The Probabilistic Relevance Framework", section 3.5):
score = sum over the query's words of idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length)).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.data.records import read_records
from areal_mega.rollout.tools.tool import Tool

K1, B = 1.2, 0.75
_RESULTS = 3
_SHOWN = 500
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Document:
    """One line of the file: ``{"title": ..., "text": ...}``; the title may be missing."""

    title: str
    text: str

    @property
    def words(self) -> list[str]:
        return words_of(f"{self.title} {self.text}")


def words_of(text: str) -> list[str]:
    """The words a document is found by."""
    return [word.lower() for word in _WORD.findall(text)]


class Index:
    """Documents, by the words in them."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = list(documents)
        counts = [Counter(document.words) for document in self.documents]
        self._lengths = [sum(count.values()) for count in counts]
        self._mean = sum(self._lengths) / len(self._lengths)
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for place, count in enumerate(counts):
            for word, frequency in count.items():
                self._postings.setdefault(word, []).append((place, frequency))

    def best(self, query: str, count: int = _RESULTS) -> list[Document]:
        """The documents that fit best, of those that share a word with the query."""
        scores: dict[int, float] = {}
        for word in set(words_of(query)):
            found = self._postings.get(word, [])
            idf = math.log(1 + (len(self.documents) - len(found) + 0.5) / (len(found) + 0.5))
            for place, tf in found:
                norm = K1 * (1 - B + B * self._lengths[place] / self._mean)
                scores[place] = scores.get(place, 0.0) + idf * tf * (K1 + 1) / (tf + norm)
        order = sorted(scores, key=lambda place: (-scores[place], place))
        return [self.documents[place] for place in order[:count]]


def search(options: RolloutOptions) -> Tool:
    """The tool over ``rollout.documents``.

    Raises:
        UserError: there is no such file, or a line has no text.
    """
    if options.documents is None:
        raise UserError("rollout.tools=search needs something to search; set rollout.documents to a JSONL file.")
    index = Index(_read(options.documents))

    def answer(query: str) -> str:
        found = index.best(str(query))
        return "\n\n".join(f"{d.title}\n{d.text[:_SHOWN]}".strip() for d in found) or "(nothing was found)"

    query = {"query": {"type": "string", "description": "A few words."}}
    return Tool("search", "Finds documents by their words.", query, answer)


def _read(path: str) -> list[Document]:
    documents = []
    for where, record in read_records(path, "rollout.documents"):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f"{where}: expected an object with a field text.")
        documents.append(Document(str(record.get("title", "")), record["text"]))
    return documents
