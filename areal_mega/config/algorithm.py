"""Algorithms whose options contradict each other or their rollouts."""

from __future__ import annotations

from collections.abc import Iterator

from areal_mega.config.options import AlgorithmOptions, PPOOptions


def algorithm_problems(options: PPOOptions) -> Iterator[str]:
    """Sentences that name the option and the way out."""
    a = options.algorithm
    yield from _advantages(options)
    yield from _critic(options) if a.has_critic else _no_critic(options)
    yield from _teacher(a)
    yield from _kl(options)
    yield from _objective(a)
    yield from _proximal(a)
    yield from _behavior(a)
    yield from _lengths(options)


def _advantages(options: PPOOptions) -> Iterator[str]:
    a, samples = options.algorithm, options.rollout.samples_per_prompt
    if samples < 2 and a.advantage in ("grpo", "rloo"):
        yield (
            f"algorithm.advantage={a.advantage} compares samples of a group; set rollout.samples_per_prompt to 2 or "
            "more."
        )
    if samples < 2 and a.normalize_advantages in ("group", "mixed"):
        yield (
            f"algorithm.normalize_advantages={a.normalize_advantages} compares samples of a group; set "
            "rollout.samples_per_prompt to 2 or more."
        )
    if a.reward_std != "group" and a.advantage != "grpo":
        yield (
            f"algorithm.reward_std={a.reward_std} is an option of algorithm.advantage=grpo, not of {a.advantage}; use "
            "algorithm.normalize_advantages, or leave it out."
        )


def _critic(options: PPOOptions) -> Iterator[str]:
    a = options.algorithm
    if a.length_adaptive_alpha is not None and a.gae_lambda != 1:
        yield (
            f"algorithm.length_adaptive_alpha={a.length_adaptive_alpha} takes the place of "
            f"algorithm.gae_lambda={a.gae_lambda}; leave one of them out."
        )
    if 0 < options.steps <= options.critic.warmup_steps:
        yield (
            f"critic.warmup_steps={options.critic.warmup_steps}: none of the steps={options.steps} would train "
            "the policy; lower it or raise steps."
        )


def _no_critic(options: PPOOptions) -> Iterator[str]:
    a, without = options.algorithm, f"algorithm.advantage={options.algorithm.advantage} has no critic"
    if options.critic.path is not None:
        yield f"critic.path is set, but {without}; leave one of them out."
    if options.critic.warmup_steps:
        yield f"critic.warmup_steps is set, but {without}; set it to 0."
    of_gae = {
        "gae_lambda": a.gae_lambda != 1,
        "length_adaptive_alpha": a.length_adaptive_alpha is not None,
        "critic_lambda": a.critic_lambda is not None,
        "value_norm": a.value_norm is not None,
    }
    for name in (name for name, is_set in of_gae.items() if is_set):
        yield f"algorithm.{name} is set, but {without}; leave it out, or use algorithm.advantage=gae."


def _teacher(a: AlgorithmOptions) -> Iterator[str]:
    if a.reference_path is not None and not a.use_reference:
        yield "algorithm.reference_path is set; set algorithm.use_reference=true, or leave it out."
    if a.advantage != "distill":
        return
    if a.reference_path is None or not a.use_reference:
        yield (
            "algorithm.advantage=distill learns from a teacher; set algorithm.reference_path to its folder, and "
            "algorithm.use_reference=true."
        )
    if a.kl_coef > 0:
        yield (
            f"algorithm.kl_coef={a.kl_coef}: with algorithm.advantage=distill the KL to the teacher is all that is "
            "learned; set it to 0."
        )
    if a.gamma != 1:
        yield f"algorithm.gamma={a.gamma}: with algorithm.advantage=distill nothing is discounted; leave it out."


def _kl(options: PPOOptions) -> Iterator[str]:
    a, samples = options.algorithm, options.samples_per_step
    if a.kl_coef > 0 and not a.use_reference:
        yield (
            f"algorithm.kl_coef={a.kl_coef} needs a reference model; set algorithm.use_reference=true, "
            "or algorithm.kl_coef=0."
        )
    if a.kl_coef > 0 and a.kl_in == "loss" and a.kl_estimator == "k1" and not a.kl_unbiased:
        yield (
            "algorithm.kl_estimator=k1 has a gradient of 0 on average, so it does nothing in the loss; use k2 or "
            "k3, algorithm.kl_unbiased=true, or algorithm.kl_in=reward."
        )
    if a.kl_unbiased and (a.kl_in == "reward" or a.kl_coef == 0):
        yield (
            "algorithm.kl_unbiased=true corrects the gradient of a KL in the loss; set algorithm.kl_in=loss and "
            "algorithm.kl_coef above 0, or leave it out."
        )
    if a.kl_target is not None and a.kl_coef == 0:
        yield (
            f"algorithm.kl_target={a.kl_target} multiplies algorithm.kl_coef, which is 0 and would stay 0; set kl_coef "
            "above 0, the value to start from."
        )
    if a.kl_target is not None and a.kl_horizon < samples:
        yield (
            f"algorithm.kl_horizon={a.kl_horizon} is less than the {samples} samples of one step, in which kl_coef "
            "would change by more than a fifth; raise it."
        )


def _objective(a: AlgorithmOptions) -> Iterator[str]:
    if a.objective != "clip" and a.dual_clip is not None:
        yield (
            f"algorithm.dual_clip={a.dual_clip} bounds the clipped objective, but algorithm.objective={a.objective} "
            "has no such bound; leave one of them out."
        )
    if a.objective == "sapo" and a.ratio == "sequence":
        yield "algorithm.objective=sapo gates each token by its own ratio; use algorithm.ratio=token."
    if a.objective != "sapo" and (a.sapo_tau_positive, a.sapo_tau_negative) != (1.0, 1.05):
        yield "algorithm.sapo_tau_positive or sapo_tau_negative is set; set algorithm.objective=sapo, or leave it out."
    if a.ratio == "sequence" and a.m2_threshold is not None:
        yield (
            f"algorithm.m2_threshold={a.m2_threshold} leaves out tokens, but with algorithm.ratio=sequence every token "
            "of a sequence moves the ratio of all; use algorithm.ratio=token."
        )
    if a.ratio == "sequence" and (a.behavior == "token" or a.behavior_cap is not None):
        yield (
            "algorithm.ratio=sequence has one ratio for a whole sequence, over which weights of its tokens would only "
            "be averaged; use algorithm.behavior=sequence-mean or sequence, or algorithm.ratio=token."
        )


def _proximal(a: AlgorithmOptions) -> Iterator[str]:
    if a.proximal == "behavior" and (a.behavior not in (None, "none") or a.behavior_cap is not None):
        yield (
            "algorithm.proximal=behavior takes the ratio to the policy that sampled, so the weight "
            "pi_proximal/pi_behavior is 1; set algorithm.behavior=none, or algorithm.proximal=recomputed."
        )
    if a.proximal != "recomputed" and a.m2_threshold is not None:
        yield (
            f"algorithm.m2_threshold={a.m2_threshold} needs the proximal log-probs before the step; set "
            "algorithm.proximal=recomputed, or leave it out."
        )


def _behavior(a: AlgorithmOptions) -> Iterator[str]:
    limits = a.behavior_low > 0 or a.behavior_high is not None
    if a.behavior_cap is not None and (a.behavior is not None or limits or a.behavior_mode != "truncate"):
        yield (
            f"algorithm.behavior_cap={a.behavior_cap} says behavior=token, behavior_mode=truncate and "
            "behavior_high at once; set either it or the other algorithm.behavior options."
        )
    elif a.behavior in (None, "none") and (limits or a.behavior_mode != "truncate"):
        yield (
            "algorithm.behavior_mode, behavior_low or behavior_high is set, but no weight is taken; set "
            "algorithm.behavior to token, sequence or sequence-mean."
        )
    elif a.behavior_mode == "truncate" and a.behavior_low > 0:
        yield (
            f"algorithm.behavior_low={a.behavior_low} does nothing with algorithm.behavior_mode=truncate; use mask or "
            "reject, or leave it out."
        )
    elif a.behavior_mode != "truncate" and not limits:
        yield (
            f"algorithm.behavior_mode={a.behavior_mode} without limits keeps every token; set algorithm.behavior_low "
            "or algorithm.behavior_high."
        )
    elif a.behavior_high is not None and a.behavior_high < a.behavior_low:
        yield (
            f"algorithm.behavior_high={a.behavior_high} is below algorithm.behavior_low={a.behavior_low}; raise the "
            "one or lower the other."
        )


def _lengths(options: PPOOptions) -> Iterator[str]:
    a = options.algorithm
    if (a.aggregation == "constant") != (a.aggregation_length is not None):
        yield (
            f"algorithm.aggregation={a.aggregation} with algorithm.aggregation_length={a.aggregation_length}: "
            "constant, and only constant, divides by that length; set both, such as "
            "algorithm.aggregation_length='${rollout.max_new_tokens}', or neither."
        )
    if a.overlong_buffer is None and a.overlong_penalty != 1:
        yield (
            f"algorithm.overlong_penalty={a.overlong_penalty} is the penalty at the end of algorithm.overlong_buffer, "
            "which is null; set that too."
        )
    if a.overlong_buffer is not None and a.advantage == "remax":
        yield (
            f"algorithm.overlong_buffer={a.overlong_buffer} would punish the samples, but not the greedy response that "
            "algorithm.advantage=remax compares them with; leave it out."
        )
