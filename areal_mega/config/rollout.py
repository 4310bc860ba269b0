"""Options of rollout that contradict each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from areal_mega.config.options import TOOL_NAMES, WORKFLOW_NAMES, DataOptions, PPOOptions, RolloutOptions


def rollout_problems(options: PPOOptions) -> Iterator[str]:
    """What is wrong with workflow, selection and curriculum, in sentences."""
    yield from _workflow(options.rollout)
    yield from _selection(options)
    yield from _curriculum(options.data, options.rollout)


def _workflow(rollout: RolloutOptions) -> Iterator[str]:
    known = {"rollout.workflow": ([rollout.workflow], WORKFLOW_NAMES), "rollout.tools": (rollout.tools, TOOL_NAMES)}
    for option, (given, names) in known.items():
        for name in given:
            if name not in names and ":" not in name:
                close = difflib.get_close_matches(name, names, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                yield f"{option}={name}: there is none.{hint} Use {', '.join(names)} or your own, module:NAME."
    needed = {"multi_turn": "environment", "tools": "tools", "openai": "agent"}
    for workflow, option in needed.items():
        value = getattr(rollout, option)
        if rollout.workflow == workflow and not value:
            yield f"rollout.workflow={workflow} needs rollout.{option}; set it."
        # A user's own workflow may use any of them.
        if value and rollout.workflow in WORKFLOW_NAMES and rollout.workflow != workflow:
            yield f"rollout.{option} is for rollout.workflow={workflow}; set that, or leave it out."
    if "search" in rollout.tools and rollout.documents is None:
        yield "rollout.tools=search needs something to search; set rollout.documents to a JSONL file."


def _selection(options: PPOOptions) -> Iterator[str]:
    selection, rollout = options.rollout.selection, options.rollout
    if selection.min_success > selection.max_success:
        yield (
            f"rollout.selection.min_success={selection.min_success} is above "
            f"max_success={selection.max_success}; no group would be trained on."
        )
    if selection.mixed and rollout.samples_per_prompt < 2:
        yield "rollout.selection.mixed compares samples of a group; set rollout.samples_per_prompt to 2 or more."
    if selection.max_draws <= selection.oversample:
        yield (
            f"rollout.selection.max_draws={selection.max_draws} must be above oversample={selection.oversample}: so "
            "many are started at once."
        )
    if rollout.max_running is not None and rollout.max_running < rollout.prompts_per_step:
        yield (
            f"rollout.max_running={rollout.max_running} is less than rollout.prompts_per_step="
            f"{rollout.prompts_per_step}; raise it or leave it out."
        )


def _curriculum(data: DataOptions, rollout: RolloutOptions) -> Iterator[str]:
    for i, stage in enumerate(data.curriculum):
        name, last = f"data.curriculum[{i}]", i == len(data.curriculum) - 1
        if stage.prompts is None and not last:
            yield f"{name}.prompts is missing: only the last stage lasts to the end."
        if stage.prompts is not None and last:
            yield f"{name}.prompts={stage.prompts}: the last stage has no end; leave it out."
        elif stage.prompts is not None and stage.prompts < 1:
            yield f"{name}.prompts={stage.prompts}: must be at least 1."
        if stage.max_new_tokens is not None and not 1 <= stage.max_new_tokens <= rollout.max_new_tokens:
            yield (
                f"{name}.max_new_tokens={stage.max_new_tokens}: must be from 1 to rollout.max_new_tokens="
                f"{rollout.max_new_tokens}."
            )
