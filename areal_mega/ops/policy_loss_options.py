"""What a policy loss is made of: the variants of `areal_mega.ops.policy_loss` and the names of its statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

# Larger log-ratios are cut to this: their exp() says nothing more, and overflows in fp32.
MAX_LOG_RATIO = 20.0

POLICY_STATISTICS = (
    "tokens",
    "ratio",
    "approx_kl",
    "clipped",
    "dual_clipped",
    "entropy",
    "kl",
    "behavior_weight",
    "behavior_capped",
    "mismatch",
    "advantage",
)

# A kernel gets the position of the choice.
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "objective": ("clip", "cispo"),
    "ratio": ("token", "sequence"),
    "behavior": (None, "token", "sequence", "sequence-mean"),
    "behavior_mode": ("truncate", "mask", "reject"),
    "kl_estimator": ("k1", "k2", "k3"),
}


@dataclass(frozen=True)
class PolicyLossOptions:
    """The terms of the policy loss; `areal_mega.ops.policy_loss` has their formulas.

    objective: ``clip`` (PPO; Schulman et al., 2017, arXiv:1707.06347) or ``cispo`` (MiniMax, 2025, arXiv:2506.13585).
    clip_low, clip_high: epsilon_low and epsilon_high; the ratio is clipped to [1 - clip_low, 1 + clip_high].
    dual_clip: c > 1, the bound c |A| of the loss for negative advantages (Ye et al., 2020, arXiv:1912.09729), only
    with ``clip``; None: off.
    ratio: pi / pi_proximal of each ``token``, or one for each ``sequence``, the geometric mean of its tokens'
    (GSPO; Zheng et al., 2025, arXiv:2507.18071).
    behavior: level of the weight pi_proximal / pi_behavior (the decoupled objective; Hilton et al., 2022,
    arXiv:2110.00641): ``token``, ``sequence`` (the product over its tokens), ``sequence-mean`` (their geometric
    mean); None: no weight.
    behavior_mode: with weight w: ``truncate`` min(w, behavior_high); ``mask`` w inside [behavior_low, behavior_high]
    and 0 outside; ``reject`` 1 inside and 0 outside. behavior_high None: no upper limit.
    kl_coef, kl_estimator: weight and form (``k1``, ``k2``, ``k3``) of the KL to the reference.
    entropy_coef: weight of the entropy bonus.

    Raises ValueError, naming the option, for values that are not these or that contradict each other.
    """

    objective: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio: str = "token"
    behavior: str | None = None
    behavior_mode: str = "truncate"
    behavior_low: float = 0.0
    behavior_high: float | None = None
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {expected}")
        _require(0 <= self.clip_low <= 1, "clip_low", self.clip_low, "a number in [0, 1]")
        for name in ("clip_high", "kl_coef", "entropy_coef"):
            number = getattr(self, name)
            _require(0 <= number < math.inf, name, number, "a finite number, 0 or more")
        if self.dual_clip is not None:
            _require(1 < self.dual_clip < math.inf, "dual_clip", self.dual_clip, "a number above 1, or None")
            _require(self.objective == "clip", "dual_clip", self.dual_clip, "None, since objective is 'cispo'")
        self._check_behavior()

    def _check_behavior(self) -> None:
        low, high = self.behavior_low, self.behavior_high
        limits = low != 0 or high is not None
        _require(self.behavior is not None or not limits, "behavior", None, "a level, since there are limits for it")
        _require(0 <= low < math.inf, "behavior_low", low, "a finite number, 0 or more")
        if high is not None:
            _require(low <= high < math.inf and high > 0, "behavior_high", high, f"above 0 and at least {low}, or None")
        if low:
            _require(self.behavior_mode != "truncate", "behavior_low", low, "0, since behavior_mode is 'truncate'")

    @property
    def over_sequences(self) -> bool:
        """Whether tokens of a sequence share a ratio or a weight, so that the bounds of sequences are needed."""
        return self.ratio == "sequence" or self.behavior in ("sequence", "sequence-mean")

    def numbers(self) -> list[float]:
        """All options in order as numbers, as torch operators and kernels take them (csrc/policy_loss.h)."""
        return [_number(field.name, getattr(self, field.name)) for field in fields(self)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> PolicyLossOptions:
        """The options that have these `numbers`."""
        return cls(*(_value(field.name, x) for field, x in zip(fields(cls), numbers, strict=True)))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}: expected {expected}")


def _number(name: str, value: Any) -> float:
    if name in _CHOICES:
        return float(_CHOICES[name].index(value))
    return math.inf if value is None else float(value)


def _value(name: str, number: float) -> Any:
    if name in _CHOICES:
        return _CHOICES[name][int(number)]
    return None if number == math.inf else number
