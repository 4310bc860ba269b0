"""Answers that are there already: one JSON line each, so that an evaluation that was ended goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import EvaluateOptions
from areal_mega.data import Prompt

# Options that an evaluation may change when it goes on: all others make other answers or judge them otherwise.
FREE = {
    "": ("benchmarks", "output", "pass_at", "confidence", "seed", "runtime"),
    "data": ("folder", "problems", "unusable"),
    "rollout": (
        "samples_per_prompt",
        "prompts_per_step",
        "engines",
        "tensor",
        "expert",
        "port",
        "threads",
        "start_timeout",
        "request_timeout",
        "engine_wait",
    ),
    "reward": ("workers",),
}


@dataclass(frozen=True)
class Answer:
    """One answer. problem: as `problem_key` says. length: its tokens. vote: what it says, for a majority."""

    benchmark: str
    problem: str
    response: str
    correct: bool
    length: int
    truncated: bool
    failed: bool
    vote: str | None


class AnswerFile:
    """The answers of one output folder, ``answers.jsonl``; what a killed run left half written is dropped."""

    def __init__(self, output: Path, options: EvaluateOptions) -> None:
        """Raises a UserError if the folder has answers that were made with other options."""
        self.path = output / "answers.jsonl"
        output.mkdir(parents=True, exist_ok=True)
        _same_settings(output / "settings.json", _settings(options))
        self._by_problem: dict[tuple[str, str], list[Answer]] = {}
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            if not line.endswith(b"\n"):
                break
            self._keep(Answer(**json.loads(line)))
            whole += len(line)
        self._file = self.path.open("ab")
        self._file.truncate(whole)

    def __len__(self) -> int:
        return sum(map(len, self._by_problem.values()))

    def of(self, benchmark: str, problem: str) -> list[Answer]:
        """The answers to a problem, in the order in which they were given."""
        return self._by_problem.get((benchmark, problem), [])

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep more answers."""
        for answer in answers:
            self._file.write(json.dumps(asdict(answer)).encode() + b"\n")
            self._keep(answer)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _keep(self, answer: Answer) -> None:
        self._by_problem.setdefault((answer.benchmark, answer.problem), []).append(answer)


def problem_key(number: int, prompt: Prompt) -> str:
    """Name of a problem, by its place and content: answers to a problem that was changed are not taken for its own."""
    content = json.dumps([prompt.text, prompt.references, prompt.metadata], sort_keys=True, default=str)
    return f"{number}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _settings(options: EvaluateOptions) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(options).items() if key not in FREE[""]}
    for name, free in FREE.items():
        if name:
            settings[name] = {key: value for key, value in settings[name].items() if key not in free}
    weights = sorted(Path(options.model.path).glob("*.safetensors"))
    settings["weights"] = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
    return settings


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return
    then = json.loads(path.read_text())
    if changed := [name for name, value in _leaves(settings).items() if value != _leaves(then).get(name)]:
        raise UserError(
            f"output={path.parent} has answers that were made with another {', '.join(changed)}; set output to another "
            "folder, or remove this one."
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
