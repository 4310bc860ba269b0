"""What a run shows while it goes on and leaves behind when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from areal_mega.config.options import CommonOptions, PPOOptions
from areal_mega.data import Sample
from areal_mega.data.jsonl import write_lines
from areal_mega.rewards import reward_metrics
from areal_mega.runtime.run_directory import write_summary
from areal_mega.telemetry.journal import Row
from areal_mega.telemetry.plot import plot_run
from areal_mega.telemetry.progress import Column, ProgressDisplay

PPO_COLUMNS = [
    Column("reward", "rollout/reward"),
    Column("accuracy", "rollout/accuracy"),
    Column("length", "rollout/response_length", "{:.1f}"),
    Column("entropy", "policy/entropy"),
    Column("clipped", "policy/clip_fraction"),
    Column("mismatch", "mismatch/mean", "{:.1e}"),
    Column("tok/s", "step/tokens_per_second", "{:.0f}"),
    Column("seconds", "time/step", "{:.1f}"),
]
SFT_COLUMNS = [
    Column("loss", "sft/loss"),
    Column("entropy", "sft/entropy"),
    Column("grad norm", "sft/grad_norm"),
    Column("lr", "sft/lr", "{:.1e}"),
    Column("tok/s", "sft/tokens_per_second", "{:.0f}"),
    Column("seconds", "time/step", "{:.2f}"),
]
PPO_PANELS = [
    ("accuracy (sampled; held-out)", ["rollout/accuracy", "evaluation/accuracy"]),
    ("response length (tokens)", ["rollout/response_length"]),
    ("entropy", ["policy/entropy"]),
    ("clip fraction", ["policy/clip_fraction"]),
    ("train/engine |d log-prob|", ["mismatch/mean", "mismatch/max"]),
    ("seconds by phase", ["time/rollout", "time/exchange", "time/score", "time/train", "time/sync"]),
]
SFT_PANELS = [("loss", ["sft/loss"]), ("entropy", ["sft/entropy"]), ("gradient norm", ["sft/grad_norm"])]
REWARD_PANELS = [
    ("loss", ["reward/loss"]),
    ("pairs the right way round", ["reward/accuracy"]),
    ("rewards", ["reward/chosen_reward", "reward/rejected_reward"]),
]
DPO_PANELS = [
    ("loss", ["dpo/loss"]),
    ("pairs the right way round", ["dpo/accuracy"]),
    ("implicit rewards", ["dpo/chosen_reward", "dpo/rejected_reward"]),
    ("log-probs of answers", ["dpo/chosen_logprob", "dpo/rejected_logprob"]),
]


def pair_columns(name: str) -> list[Column]:
    """What a program that learns from preference pairs shows; name: of its metrics."""
    return [
        Column("loss", f"{name}/loss"),
        Column("accuracy", f"{name}/accuracy"),
        Column("margin", f"{name}/margin"),
        *(replace(column, key=column.key.replace("sft/", f"{name}/")) for column in SFT_COLUMNS[2:]),
    ]


@dataclass(frozen=True)
class Evaluation:
    """What is kept of the judged samples of the held-out prompts.

    accuracy: share of right answers; None without samples. answers: the first, as ``samples.jsonl`` has them.
    """

    accuracy: float | None = None
    samples: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)


def evaluation_of(samples: Sequence[Sample], shown: int) -> Evaluation:
    """The evaluation, with the first ``shown`` answers."""
    right = sum(s.correct for s in samples) / len(samples) if samples else None
    return Evaluation(right, len(samples), [_answer(s) for s in samples[:shown]])


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy as a metric, where there is one."""
    return {} if evaluation.accuracy is None else {"evaluation/accuracy": evaluation.accuracy}


def percent(evaluation: Evaluation) -> str:
    """The accuracy for a reader."""
    if evaluation.accuracy is None:
        return "not measured"
    return f"{evaluation.accuracy:.1%} of {evaluation.samples} held-out answers"


def sample_metrics(samples: Sequence[Sample], seconds: float) -> dict[str, float]:
    """Means over the samples of a step, and its prompt and response tokens per second of the whole step."""
    n = len(samples)
    return {
        "rollout/reward": sum(s.reward for s in samples) / n,
        "rollout/accuracy": sum(s.correct for s in samples) / n,
        "rollout/response_length": sum(s.response_length for s in samples) / n,
        "rollout/truncated": sum(s.truncated for s in samples) / n,
        "step/tokens_per_second": sum(len(s.tokens) for s in samples) / seconds,
        **reward_metrics(samples),
        **_fact_metrics(samples),
        **_route_metrics(samples),
    }


def _route_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """With router replay, the share of tokens whose experts the engine told: all but the last of each sample."""
    known = sum(len(s.routes) for s in samples if s.routes is not None)
    return {"rollout/routes_known": known / sum(len(s.tokens) - 1 for s in samples)} if known else {}


def _fact_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean of each number a workflow reported, over the samples that have it."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.facts.items():
            values.setdefault(f"workflow/{name}", []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def finish_ppo(
    options: PPOOptions,
    directory: Path,
    rows: Sequence[Row],
    before: Evaluation,
    after: Evaluation,
    *,
    model_path: Path | None,
    seconds_total: float,
    seconds_rl: float,
    display: ProgressDisplay,
) -> None:
    """Write sampled answers, summary and plot, then print them."""
    answers = [{"when": "before", **answer} for answer in before.answers]
    answers += [{"when": "after", **answer} for answer in after.answers]
    write_lines(directory / "samples.jsonl", answers)
    mismatches = [m for r in rows if (m := r.get("mismatch/mean")) is not None]
    summary = {
        "experiment": options.experiment,
        "seed": options.seed,
        "steps": options.steps,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "seconds_total": round(seconds_total, 2),
        "seconds_rl": round(seconds_rl, 2),
        "mismatch_mean": sum(mismatches) / len(mismatches) if mismatches else None,
        "model_path": str(model_path) if model_path else None,
    }
    lines = []
    for b, a in zip(before.answers, after.answers, strict=False):  # a resumed run may show more than before
        lines.append(f"  {b['question']!r}")
        lines.append(f"      right {b['answer']!r}   before {b['response']!r}   after {a['response']!r}")
    lines.append(f"held-out accuracy: {percent(before)} before, {percent(after)} after")
    title = f"{options.experiment}, seed {options.seed}: {percent(before)} → {percent(after)}"
    finish(options, directory, rows, summary, display, panels=PPO_PANELS, title=title, lines=lines)


def finish(
    options: CommonOptions,
    directory: Path,
    rows: Sequence[Row],
    summary: dict[str, Any],
    display: ProgressDisplay,
    *,
    panels: Sequence[tuple[str, Sequence[str]]],
    title: str,
    lines: Sequence[str] = (),
) -> None:
    """Write the summary, then the plot, then say ``lines`` and where everything is; the summary is printed last."""
    path = write_summary(directory, summary)
    if options.telemetry.plot:
        try:
            plot_run(directory / "curves.png", rows, panels, title)
        except Exception as error:  # a run that worked does not fail for want of a font or of room for a picture
            display.say(f"curves.png could not be drawn: {error}")
    for line in lines:
        display.say(line)
    display.say(f"run directory: {directory} (also {Path(options.output) / 'latest'})")
    display.say(path.read_text().rstrip())


def _answer(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt.text,
        "question": sample.prompt.metadata.get("question", sample.prompt.text),
        "answer": sample.prompt.answer,
        "response": sample.text,
        "correct": sample.correct,
        "finish_reason": sample.finish_reason,
    }
