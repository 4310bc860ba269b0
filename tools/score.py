"""Scores responses with a verifier, to try from the shell what a run would say.

    python tools/score.py --task math FILE.jsonl
    echo '{"response": "so it is \\\\boxed{0.5}", "solutions": ["1/2"]}' | python tools/score.py --task math -

FILE has one JSON object a line, with "response" and "solutions" (a list of reference answers; "answer" for a single
one). Other fields are the problem's metadata: "input_output" for code, "choices" for choice, "metadata" (with
source_dataset) for reasoning_gym, "prompt" for what reads the prompt. The lines are written with "score" added.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import HttpOptions, RewardOptions
from areal_mega.data import Prompt
from areal_mega.data.records import read_records
from areal_mega.rewards import VERIFIERS, Score
from areal_mega.rewards.judge import score_all
from areal_mega.rewards.registry import TASKS, load
from areal_mega.runtime.sandbox import isolation

BATCH = 256


def main() -> int:
    arguments = parse_arguments()
    if arguments.list:
        list_verifiers()
        return 0
    try:
        score_file(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
    return 0


def score_file(arguments: argparse.Namespace) -> None:
    """Score FILE and write its lines, in their order."""
    name = TASKS.get(arguments.task, arguments.task)
    load(name)
    options = RewardOptions(
        workers=arguments.workers, time_limit=arguments.time_limit, http=HttpOptions(url=arguments.url)
    )
    if name == "http" and not arguments.url:
        raise UserError("--task http needs --url, the address of the server.")
    lines = [(where, record, *parse_row(where, record)) for where, record in rows(arguments.file)]
    total, right, failed = len(lines), 0, 0
    with open(arguments.out, "w", encoding="utf-8") if arguments.out else sys.stdout as out:
        for start in range(0, total, BATCH):
            batch = lines[start : start + BATCH]
            scores = score_all([(response, prompt, name) for _, _, response, prompt in batch], options)
            for (where, record, _, _), score in zip(batch, scores, strict=True):
                right += score.value >= 1
                failed += score.failed
                if score.failed:
                    tell(f"{where}: {score.note}")
                out.write(json.dumps(record | result(score, arguments.explain), ensure_ascii=False) + "\n")
            tell(f"{start + len(batch)} of {total} scored", passing=True)
    lost = f", {failed} not judged" if failed else ""
    tell(f"{right} of {total} right{lost}")


def rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of FILE, or of standard input."""
    if path != "-":
        yield from read_records(path, "FILE")
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        try:
            yield from ((where.replace(file.name, "stdin"), row) for where, row in read_records(file.name, "FILE"))
        except UserError as error:
            raise UserError(str(error).replace(file.name, "stdin")) from None


def parse_row(where: str, record: dict[str, Any]) -> tuple[str, Prompt]:
    """The response of a line, and the problem it answers."""
    if not isinstance(record, dict) or not isinstance(record.get("response"), str):
        raise UserError(f"{where}: field 'response' must be there, as text.")
    solutions = record.get("solutions", [record["answer"]] if "answer" in record else [""])
    if not isinstance(solutions, list) or not solutions or not all(isinstance(s, str) for s in solutions):
        raise UserError(f"{where}: field 'solutions' must be a list of texts with at least one.")
    metadata = {k: v for k, v in record.items() if k not in ("response", "solutions", "answer", "prompt", "metadata")}
    if isinstance(record.get("metadata"), dict):
        metadata |= record["metadata"]
    text = record.get("prompt") if isinstance(record.get("prompt"), str) else ""
    prompt = Prompt("", [], text or "", solutions[0], metadata, tuple(solutions[1:]), source=where)
    return record["response"], prompt


def result(score: Score, explain: bool) -> dict[str, Any]:
    return {"score": score.value} | ({"note": score.note, "parts": dict(score.parts)} if explain else {})


def list_verifiers() -> None:
    width = max(map(len, VERIFIERS))
    for name, verifier in VERIFIERS.items():
        place = f"{verifier.seconds:g} s" if verifier.runs == "worker" else verifier.runs
        print(f"{name:<{width}}  {place:<6}  {verifier.help}")
    there = isolation()
    print("\nsandbox of code: " + ", ".join(f"{name} {'yes' if there[name] else 'NO'}" for name in there))


def tell(text: str, passing: bool = False) -> None:
    """A line on standard error; one that passes is replaced by the next, and shown to people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", metavar="FILE", help="JSONL (or JSON, Parquet); - is standard input")
    parser.add_argument("--task", metavar="NAME", help="the verifier: see --list, or your own as module:function")
    parser.add_argument("--out", type=Path, help="write here, not to standard output")
    parser.add_argument("--explain", action="store_true", help='add "note" (why) and "parts" too')
    parser.add_argument("--workers", type=int, default=2, help="processes that judge (2)")
    parser.add_argument("--time-limit", type=float, help="seconds an answer may take; default: the verifier's own")
    parser.add_argument("--url", help="address of the server, for --task http")
    parser.add_argument("--list", action="store_true", help="show the verifiers and leave")
    arguments = parser.parse_args()
    if arguments.workers < 1 or (arguments.time_limit is not None and arguments.time_limit <= 0):
        parser.error("--workers must be at least 1 and --time-limit above 0")
    if not arguments.list and not (arguments.file and arguments.task):
        parser.error("FILE and --task are needed (or --list)")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
