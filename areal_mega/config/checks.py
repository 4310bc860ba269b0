"""Options that cannot be meant stop the run here, before anything starts.

Each check yields sentences that name the option and the way out; all of them are shown together. Values that are
wrong by themselves come first: the other checks calculate with them.
"""

from __future__ import annotations

import difflib
import json
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from areal_mega.config.algorithm import algorithm_problems
from areal_mega.config.command_line import walk
from areal_mega.config.divisibility import experts_of, layout_problems, rank_problems
from areal_mega.config.engine import engine_problems
from areal_mega.config.errors import UserError
from areal_mega.config.megatron import megatron_problems
from areal_mega.config.options import (
    DATA_FORMATS,
    PROMPT_TYPES,
    VERIFIER_NAMES,
    CommonOptions,
    DataOptions,
    DPOOptions,
    EvaluateOptions,
    OptimizerOptions,
    PPOOptions,
    PreferenceOptions,
    RejectionOptions,
    RewardOptions,
    RolloutOptions,
    ServeRewardOptions,
    SupervisedOptions,
)
from areal_mega.config.rollout import rollout_problems

# The parts of a layer that Megatron can compute again.
RECOMPUTABLE = ("core_attn", "mlp", "moe", "shared_experts", "moe_act", "mla_up_proj", "layernorm")

# What can be checked. (Runs of training have options in common, the other programs have few.)
Checked = CommonOptions | EvaluateOptions | ServeRewardOptions

BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "minimum": (operator.ge, "at least"),
    "maximum": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}


def check(options: Checked, ranks: int, cuda: bool) -> None:
    """Check the options for a run on so many ranks, with or without a GPU. Of an evaluation the ranks are the engines'.

    Raises:
        UserError: the options contradict each other, the machine or the model; all reasons are listed.
    """
    problems = list(_values(options))
    if not problems:
        problems += _device(options, cuda)
        if isinstance(options, CommonOptions):
            problems += [*_policy(options, ranks), *_mix(options.data)]
        if isinstance(options, PPOOptions):
            problems += _ppo(options, ranks, resolve_device(options.runtime.device, cuda))
        elif isinstance(options, SupervisedOptions):
            problems += _supervised(options, ranks)
            if isinstance(options, PreferenceOptions):
                problems += _preference(options)
            elif isinstance(options, RejectionOptions):
                problems += _rejection(options, ranks, resolve_device(options.runtime.device, cuda))
        elif isinstance(options, EvaluateOptions):
            problems += _evaluate(options, ranks, resolve_device(options.runtime.device, cuda))
    if problems:
        raise UserError("These options cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))


def resolve_device(device: str, cuda: bool) -> str:
    """``cpu`` or ``cuda``: what runtime.device means on a machine with or without a GPU."""
    return ("cuda" if cuda else "cpu") if device == "auto" else device


def _ppo(options: PPOOptions, ranks: int, device: str) -> Iterator[str]:
    yield from _divisible_by_layout("model.path", options.model.path, options)
    if options.critic.path is not None:
        yield from _divisible_by_layout("critic.path", options.critic.path, options)
    if options.algorithm.reference_path is not None:
        yield from _divisible_by_layout("algorithm.reference_path", options.algorithm.reference_path, options)
    yield from _batch(options, ranks)
    yield from _sampling(options)
    yield from algorithm_problems(options)
    yield from _reward(options.reward)
    if options.algorithm.has_critic:
        yield from _schedule("critic.optimizer", options.critic.optimizer, options.critic_updates)
    yield from _schedule("policy.optimizer", options.policy.optimizer, options.policy_updates)
    longest = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    yield from _length(options, "rollout.max_prompt_tokens + rollout.max_new_tokens", longest)
    yield from rollout_problems(options)
    if options.evaluation.keep_best and not (options.data.validation and options.evaluation.every):
        yield "evaluation.keep_best=true chooses among evaluations; set data.validation and evaluation.every."
    yield from engine_problems(options, ranks, device)


def _supervised(options: SupervisedOptions, ranks: int) -> Iterator[str]:
    yield from _divisible_by_layout("model.path", options.model.path, options)
    dp = _data_parallel(options, ranks)
    if options.items_per_step % dp:
        name = "pairs_per_step" if isinstance(options, PreferenceOptions) else "sequences_per_step"
        yield f"{name}={options.items_per_step} must be divisible by data parallel size {dp}."
    if options.steps is not None:
        yield from _schedule("policy.optimizer", options.policy.optimizer, options.steps)
    if isinstance(options, RejectionOptions):
        yield from _length(options, "rollout.max_prompt_tokens + rollout.max_new_tokens + 1", options.max_tokens)
    else:
        yield from _context(options.model.path, "max_tokens", options.max_tokens)
        pairs = isinstance(options, PreferenceOptions)
        what = "both answers of a pair, 2 * (max_tokens + 1)" if pairs else "max_tokens"
        yield from _budget(options, what, options.longest_item)


def _preference(options: PreferenceOptions) -> Iterator[str]:
    if options.data.format != "auto":
        yield f"data.format={options.data.format}: pairs are told by their fields (docs/data.md); leave it out."
    if isinstance(options, DPOOptions):
        if options.reference_path is not None:
            yield from _divisible_by_layout("reference_path", options.reference_path, options)
        if options.label_smoothing and options.loss != "sigmoid":
            yield (
                f"label_smoothing={options.label_smoothing} is for loss=sigmoid, not for {options.loss}; leave one of "
                "them out."
            )


def _rejection(options: RejectionOptions, ranks: int, device: str) -> Iterator[str]:
    if options.data.validation:
        yield (
            "data.validation: problems are no answers to learn; evaluate the model that comes out with "
            "tools/evaluate.py, and leave it out."
        )
    if options.data.curriculum:
        yield "data.curriculum: all prompts are sampled, in no order; leave it out."
    weights = {"data": options.data.weight, **{f"data.mix[{i}]": one.weight for i, one in enumerate(options.data.mix)}}
    for name, weight in weights.items():
        if weight != 1:
            yield f"{name}.weight={weight}: every prompt is sampled as often as any other; leave it out."
    yield from _repeats(options.rollout)
    yield from _reward(options.reward)
    yield from engine_problems(options, ranks, device)


def _evaluate(options: EvaluateOptions, ranks: int, device: str) -> Iterator[str]:
    rollout = options.rollout
    if not options.benchmarks:
        yield "benchmarks names nothing to evaluate; set benchmarks=[aime24,math-500] or another (see --list)."
    for k in options.pass_at or []:
        if not 1 <= k <= rollout.samples_per_prompt:
            yield f"pass_at has {k}; it must be between 1 and rollout.samples_per_prompt={rollout.samples_per_prompt}."
    yield from _repeats(rollout)
    longest = rollout.max_prompt_tokens + rollout.max_new_tokens
    yield from _context(options.model.path, "rollout.max_prompt_tokens + rollout.max_new_tokens", longest)
    yield from _reward(options.reward)
    yield from engine_problems(options, ranks, device)


def _repeats(rollout: RolloutOptions) -> Iterator[str]:
    if rollout.temperature == 0 and rollout.samples_per_prompt > 1:
        yield "rollout.temperature=0 gives the same answer every time; set rollout.samples_per_prompt=1."


def _values(options: Checked) -> Iterator[str]:
    for name, field in walk(type(options)):
        value: Any = operator.attrgetter(name)(options)
        if value is None:
            continue
        choices = field.metadata["choices"]
        if choices and value not in choices:
            yield f"{name}={value}: must be {' or '.join(choices)}."
        for kind, (holds, words) in BOUNDS.items():
            bound = field.metadata[kind]
            if bound is not None and not holds(value, bound):
                yield f"{name}={value}: must be {words} {bound}."


def _device(options: Checked, cuda: bool) -> Iterator[str]:
    if options.runtime.device == "cuda" and not cuda:
        yield "runtime.device=cuda: this machine has no CUDA device that torch can use; set runtime.device=cpu."


def _policy(options: CommonOptions, ranks: int) -> Iterator[str]:
    yield from rank_problems(options.policy.parallel, ranks)
    yield from megatron_problems(options)
    recompute = options.policy.recompute
    for module in set(recompute.modules) - set(RECOMPUTABLE):
        yield f"policy.recompute.modules names {module}; it can name {', '.join(RECOMPUTABLE)}."
    if recompute.mode == "selective" and not recompute.modules:
        yield "policy.recompute.mode=selective recomputes policy.recompute.modules, which is empty; name some."


def _divisible_by_layout(name: str, path: str, options: CommonOptions) -> Iterator[str]:
    model = _config_of(path)
    for problem in layout_problems(model, options.policy.parallel) if model else ():
        yield f"{name}={path}: {problem}."
    if name == "model.path" and model and options.policy.moe.replay and not experts_of(model):
        yield f"policy.moe.replay=true: the model of {name}={path} has no experts to replay; leave it out."


def _data_parallel(options: CommonOptions, ranks: int) -> int:
    p = options.policy.parallel
    return max(1, ranks // (p.tensor * p.pipeline * p.context))


def _batch(options: PPOOptions, ranks: int) -> Iterator[str]:
    a, samples, dp = options.algorithm, options.samples_per_step, _data_parallel(options, ranks)
    if samples % (dp * a.mini_batches):
        yield (
            f"rollout.prompts_per_step * rollout.samples_per_prompt = {samples} must be divisible by data "
            f"parallel size {dp} * algorithm.mini_batches {a.mini_batches} = {dp * a.mini_batches}; change "
            "one of them."
        )


def _sampling(options: PPOOptions) -> Iterator[str]:
    r = options.rollout
    if r.top_p < 1 or r.top_k != -1:
        yield (
            f"rollout.top_p={r.top_p}, rollout.top_k={r.top_k}: the engine's log-probs would be those of the "
            "cut distribution and every importance ratio biased; use top_p=1 and top_k=-1 in training."
        )


def _mix(data: DataOptions) -> Iterator[str]:
    """`_values` does not look into lists."""
    for i, one in enumerate(data.mix):
        name = f"data.mix[{i}]"
        if not one.weight > 0:
            yield f"{name}.weight={one.weight}: must be above 0; leave the set out to draw nothing from it."
        if one.format not in DATA_FORMATS:
            yield f"{name}.format={one.format}: must be {' or '.join(DATA_FORMATS)}."
        if one.prompt_type is not None and one.prompt_type not in PROMPT_TYPES:
            yield f"{name}.prompt_type={one.prompt_type}: must be {' or '.join(PROMPT_TYPES)}."


def _reward(reward: RewardOptions) -> Iterator[str]:
    used = {"reward.name": [reward.name], "reward.require": reward.require, "reward.extra": list(reward.extra)}
    for option, names in used.items():
        known = (*VERIFIER_NAMES, "task") if option == "reward.name" else VERIFIER_NAMES
        for name in names:
            if name not in known and ":" not in name:
                close = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                yield f"{option}={name}: no such verifier.{hint} Use {', '.join(known)} or your own, module:function."
    if any("http" in names for names in used.values()) and not reward.http.url:
        yield "the verifier http needs the address of its server; set reward.http.url."


def _schedule(name: str, optimizer: OptimizerOptions, updates: int) -> Iterator[str]:
    """A decay needs a step after the warm-up. A run of no updates is an evaluation and needs no schedule."""
    needed = optimizer.warmup_steps + (optimizer.schedule != "constant")
    if 0 < updates < needed:
        yield (
            f"{name}.schedule={optimizer.schedule} with {name}.warmup_steps={optimizer.warmup_steps} needs at least "
            f"{needed} optimizer steps, but the run has {updates}; lower warmup_steps or raise steps."
        )


def _length(options: CommonOptions, what: str, length: int) -> Iterator[str]:
    yield from _context(options.model.path, what, length)
    yield from _budget(options, what, length)


def _budget(options: CommonOptions, what: str, length: int) -> Iterator[str]:
    budget = options.policy.max_tokens_per_micro_batch
    if length > budget:
        yield (
            f"{what} = {length} does not fit policy.max_tokens_per_micro_batch={budget}; raise it to at least {length}."
        )


def _context(path: str, what: str, length: int) -> Iterator[str]:
    context = _config_of(path).get("max_position_embeddings")
    if context is not None and length > context:
        yield f"{what} = {length} is longer than the model's context of {context} tokens; lower it."


def _config_of(path: str) -> dict[str, Any]:
    """A model folder's config.json; empty where there is none (reported when the model is read)."""
    try:
        config = json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
