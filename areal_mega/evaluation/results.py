"""From answers to numbers, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from areal_mega.evaluation.answers import Answer
from areal_mega.evaluation.statistics import RIGHT, confidence_interval, majority_at_k, pass_at_k


@dataclass(frozen=True)
class Result:
    """What ``results.json`` says of a benchmark.

    n_samples: answers to each problem. pass_at_1: share of right ones, over all problems. confidence_interval: of it.
    pass_at_k, majority_at_k: by k; no majority where answers cannot be compared, as of programs. mean_length: tokens of
    an answer. truncated: share of answers cut at rollout.max_new_tokens. failed: share that could not be judged, which
    count as wrong.
    """

    n_problems: int
    n_samples: int
    pass_at_1: float
    confidence_interval: tuple[float, float] | None
    pass_at_k: dict[str, float]
    majority_at_k: dict[str, float] | None
    mean_length: float
    truncated: float
    failed: float


def result_of(problems: Sequence[Sequence[Answer]], pass_at: Sequence[int], confidence: float) -> Result:
    """The result of a benchmark from the answers to each problem, as many to each."""
    samples = len(problems[0])
    answers = [answer for problem in problems for answer in problem]
    right = [sum(answer.correct for answer in problem) for problem in problems]
    votes = [[RIGHT if answer.correct else answer.vote for answer in problem] for problem in problems]
    comparable = any(answer.vote is not None for answer in answers)
    return Result(
        n_problems=len(problems),
        n_samples=samples,
        pass_at_1=fmean(count / samples for count in right),
        confidence_interval=confidence_interval([count / samples for count in right], confidence),
        pass_at_k={str(k): fmean(pass_at_k(samples, count, k) for count in right) for k in pass_at},
        majority_at_k={str(k): fmean(majority_at_k(v, k) for v in votes) for k in pass_at} if comparable else None,
        mean_length=fmean(answer.length for answer in answers),
        truncated=fmean(answer.truncated for answer in answers),
        failed=fmean(answer.failed for answer in answers),
    )


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, ... and ``samples``."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """Write ``results.json``; a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: asdict(result) for name, result in results.items()}, indent=2) + "\n")
    temporary.replace(path)


def table(results: Mapping[str, Result], confidence: float, title: str) -> Table:
    """One row a benchmark."""
    shown = Table(title=title, title_justify="left")
    for name in ("benchmark", "problems", "n", "pass@1", f"{confidence:.0%} interval", "pass@n", "majority@n"):
        shown.add_column(name, justify="left" if name == "benchmark" else "right")
    shown.add_column("tokens", justify="right")
    shown.add_column("truncated", justify="right")
    for name, result in results.items():
        last = list(result.pass_at_k)[-1] if result.pass_at_k else ""
        majority = result.majority_at_k or {}
        shown.add_row(
            name,
            str(result.n_problems),
            str(result.n_samples),
            f"{result.pass_at_1:.1%}",
            " - ".join(f"{limit:.1%}" for limit in result.confidence_interval or ()) or "-",
            f"{result.pass_at_k[last]:.1%}" if last else "-",
            f"{majority[last]:.1%}" if last in majority else "-",
            f"{result.mean_length:,.0f}",
            f"{result.truncated:.1%}",
        )
    return shown


def plot(path: Path, results: Mapping[str, Result], title: str) -> None:
    """pass@1 with its interval, and pass@k and majority@k over k."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, curves) = plt.subplots(1, 2, figsize=(11, 4))
    for place, result in enumerate(results.values()):
        color = f"C{place % 10}"
        low, high = result.confidence_interval or (result.pass_at_1, result.pass_at_1)
        reach = [[result.pass_at_1 - low], [high - result.pass_at_1]]
        bars.bar(place, result.pass_at_1, yerr=reach, capsize=4, color=color)
        for values, style in ((result.pass_at_k, "-o"), (result.majority_at_k or {}, "--s")):
            if values:
                curves.plot([int(k) for k in values], list(values.values()), style, markersize=3, color=color)
    bars.set_xticks(range(len(results)), list(results), rotation=20, ha="right", fontsize=8)
    bars.set_title("pass@1", fontsize=10)
    curves.set_title("pass@k (line), majority@k (dashed)", fontsize=10)
    curves.set_xscale("log", base=2)
    curves.set_xlabel("k", fontsize=8)
    for axis in (bars, curves):
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
