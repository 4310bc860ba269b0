"""Options that follow from others where the user left them open."""

from __future__ import annotations

from collections.abc import Iterator

from areal_mega.config.options import CommonOptions, PPOOptions

# AReaL's cap of the weight pi_proximal/pi_behavior (arXiv:2505.24298, appendix).
BEHAVIOR_CAP = 5.0

# Field of SGLang's ServerArgs: answers come with the experts that were chosen for each token.
TELLS_EXPERTS = "enable_return_routed_experts"


def derive(options: CommonOptions) -> Iterator[str]:
    """Set what was left open; yields a sentence about each, to be said aloud."""
    if isinstance(options, PPOOptions):
        yield from _decoupled(options)
        if options.policy.moe.replay:
            options.rollout.sglang.setdefault(TELLS_EXPERTS, True)


def _decoupled(options: PPOOptions) -> Iterator[str]:
    """Samples of older weights need their weight in the loss: decoupled PPO (AReaL, arXiv:2505.24298, section 5.2)."""
    a = options.algorithm
    if options.staleness and a.proximal != "behavior" and a.behavior is None and a.behavior_cap is None:
        a.behavior, a.behavior_high = "sequence-mean" if a.ratio == "sequence" else "token", BEHAVIOR_CAP
        yield (
            f"rollout.mode={options.rollout.mode} trains on samples of older weights: algorithm.behavior={a.behavior}, "
            f"behavior_high={BEHAVIOR_CAP:g} (decoupled PPO; algorithm.proximal=behavior is PPO without it)."
        )
