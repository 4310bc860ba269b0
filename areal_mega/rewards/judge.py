"""From responses to rewards, and the self-test of a data set's own answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

from areal_mega.config.errors import UserError
from areal_mega.config.options import RewardOptions
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rewards.registry import TASKS, VERIFIERS, load, verifier
from areal_mega.rewards.score import Score
from areal_mega.rewards.workers import Job, VerifierPool

# How many bad reference answers a message shows.
_SHOWN = 3


class VerifierError(RuntimeError):
    """No answer of a batch could be judged: the verifier is broken, and training on its zeros would be harm."""


def judge(samples: Sequence[Sample], options: RewardOptions) -> None:
    """Set ``correct``, ``reward`` and ``reward_parts`` of each sample.

    A response is worth ``scale`` where the verifier gives 1, ``wrong`` where it gives 0, and in proportion between.
    One that lacks a format of ``require`` is wrong. ``extra`` adds its weighted scores. An answer that could not be
    judged (time limit, crash) is wrong, and counted in the part ``failed``. Where the workflow knows a sample's
    ``outcome``, that takes the place of the verifier's value.

    Raises:
        VerifierError: none of the answers could be judged.
    """
    wanted = [(s.text, s.prompt, name) for s in samples for name in _names(s, options)]
    scores = iter(score_all(wanted, options))
    notes: list[str] = []
    for sample in samples:
        own = {name: next(scores) for name in _names(sample, options)}
        formed = all(own[name].value >= 1 for name in options.require)
        value = _value(sample, own, options) if formed else 0.0
        sample.correct = value >= 1
        sample.reward = options.scale * value + options.wrong * (1 - value)
        if sample.truncated and options.truncated is not None:
            sample.reward = options.truncated
        sample.reward += sum(weight * own[name].value for name, weight in options.extra.items())
        sample.reward_parts = _parts(own, value)
        notes += [score.note for score in own.values() if score.failed]
    failed = [s for s in samples if s.reward_parts["failed"]]
    if len(failed) == len(samples) > 1:
        raise VerifierError(f"none of {len(samples)} answers could be judged by reward.name={options.name}: {notes[0]}")


def check_answers(
    prompts: Sequence[Prompt], options: RewardOptions, source: str, skip_unusable: bool = False
) -> list[Prompt]:
    """The prompts whose own reference answers get full reward: all of them, or the run does not start.

    source: the option that names the data. skip_unusable: leave bad ones out rather than stop.

    Raises:
        UserError: a reference answer does not get full reward, or its task has no verifier; the lines are named.
    """
    tests, bad = [], {}
    for index, prompt in enumerate(prompts):
        try:
            name = _answer_name(prompt, options)
            said = verifier(name).reference
        except UserError as error:
            bad[index] = str(error)
            continue
        # Programs and puzzles with many solutions come without an answer that could be tested.
        if (
            said is not None
            and (prompt.answer or name != "reasoning_gym")
            and not (name == "code" and not prompt.answer)
        ):
            tests += [(index, said(answer), prompt, name) for answer in prompt.references]
    scores = score_all([test[1:] for test in tests], options)
    for (index, *_), score in zip(tests, scores, strict=True):
        if score.value < 1:
            bad.setdefault(index, f"gets {score.value:g} of 1{f' ({score.note})' if score.note else ''}")
    usable = [prompt for index, prompt in enumerate(prompts) if index not in bad]
    if bad and (not skip_unusable or not usable):
        raise UserError(_refusal([(prompts[i], why) for i, why in bad.items()], len(prompts), options, source))
    if bad:
        print(f"{source}: {len(bad)} problems left out, whose own answer gets no full reward", file=sys.stderr)
    return usable


def score_all(wanted: Sequence[tuple[str, Prompt, str]], options: RewardOptions) -> list[Score]:
    """The scores of (response, prompt, verifier), in their order, each where its verifier runs."""
    scores: dict[int, Score] = {}
    places: dict[str, list[int]] = {"here": [], "worker": [], "remote": []}
    for index, (_, _, name) in enumerate(wanted):
        places[verifier(name).runs].append(index)
    for index in places["here"]:
        response, prompt, name = wanted[index]
        scores[index] = Score.of(load(name)(response, prompt))
    if places["remote"]:
        from areal_mega.rewards.remote import http_scores  # workers import this module too, and need no HTTP

        answers = http_scores([wanted[i][:2] for i in places["remote"]], options.http)
        scores.update(zip(places["remote"], answers, strict=True))
    jobs = [
        Job(name, response, prompt, options.time_limit or verifier(name).seconds)
        for response, prompt, name in (wanted[i] for i in places["worker"])
    ]
    scores.update(zip(places["worker"], _pool(options.workers).score(jobs), strict=True))
    return [scores[index] for index in range(len(wanted))]


def reward_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean of each part of the reward over the samples that have it."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.reward_parts.items():
            values.setdefault(f"reward/{name}", []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def _answer_name(prompt: Prompt, options: RewardOptions) -> str:
    """The verifier of the answer: the option's, or the one of the prompt's task."""
    if options.name != "task":
        return options.name
    if ":" in prompt.task:
        return prompt.task
    if prompt.task not in TASKS:
        raise UserError(
            f"its task is {prompt.task!r}, but reward.name=task needs one of {', '.join(TASKS)}; name it in the line, "
            "or set reward.name"
        )
    return TASKS[prompt.task]


def _names(sample: Sample, options: RewardOptions) -> list[str]:
    """Every verifier that looks at a response, once."""
    answer = [_answer_name(sample.prompt, options)] if sample.outcome is None else []
    return list(dict.fromkeys([*answer, *options.require, *options.extra]))


def _value(sample: Sample, own: dict[str, Score], options: RewardOptions) -> float:
    return own[_answer_name(sample.prompt, options)].value if sample.outcome is None else sample.outcome


def _parts(own: dict[str, Score], value: float) -> dict[str, float]:
    parts = {"answer": value, "failed": float(any(score.failed for score in own.values()))}
    for name, score in own.items():
        parts |= {name: score.value, **score.parts}
    return parts


def _refusal(bad: list[tuple[Prompt, str]], total: int, options: RewardOptions, source: str) -> str:
    shown = [f"  {p.source or f'problem {p.id}'}: the answer {_short(p.answer)} {why}" for p, why in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        shown.append(f"  and {len(bad) - _SHOWN} more")
    return "\n".join(
        [
            f"{source}: {len(bad)} of {total} problems do not get full reward for their own answer with "
            f"reward.name={options.name}:",
            *shown,
            "Mend or remove the lines, leave them out with data.unusable=skip, or set another reward.name "
            f"({', '.join(VERIFIERS)}).",
        ]
    )


def _short(answer: str) -> str:
    return repr(answer if len(answer) <= 60 else answer[:57] + "...")


@cache
def _pool(size: int) -> VerifierPool:
    """One pool for the process; its workers end with it."""
    return VerifierPool(size)
