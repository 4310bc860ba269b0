"""What follows the run: numbers that change from step to step and must survive a resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from areal_mega.algorithms.advantages import AllReduce


@dataclass
class KLCoefficient:
    """The weight of the KL, adapted so that the KL comes to a target (Ziegler et al., 2019, arXiv:1909.08593).

    After n samples with the KL of K nats per response:
    ``coef *= 1 + clip(K / target - 1, -0.2, 0.2) * n / horizon``. target None: it stays.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, samples: int) -> None:
        """kl: mean over responses of the sum over tokens. samples: number of responses."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * samples / self.horizon


@dataclass
class ValueNorm:
    """Running mean and deviation of the returns, so that a critic may learn numbers near 1 whatever the rewards.

    PopArt (van Hasselt et al., 2016, arXiv:1602.07714) without the correction of the output layer, which MAPPO (Yu et
    al., 2022, arXiv:2103.01955) and ReaLHF do without as well: moments with exponential decay beta, divided by the
    weight they have so far; the variance is at least 1e-2. Until the first update nothing is changed.
    """

    decay: float
    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def update(self, returns: Tensor, all_reduce: AllReduce) -> None:
        """returns: ``[K]`` of the valid tokens of this data-parallel rank; all_reduce sums over the ranks."""
        x = returns.double()
        sums = all_reduce(torch.stack([torch.tensor(float(x.numel())).double(), x.sum(), x.square().sum()]))
        count, total, squares = sums.tolist()
        if count:
            beta = self.decay
            self.weight = beta * self.weight + (1 - beta)
            self.mean = beta * self.mean + (1 - beta) * total / count
            self.square = beta * self.square + (1 - beta) * squares / count

    def normalize(self, returns: Tensor) -> Tensor:
        """Returns as the critic learns them."""
        mean, deviation = self._moments()
        return ((returns.double() - mean) / deviation).to(returns.dtype)

    def denormalize(self, values: Tensor) -> Tensor:
        """The critic's outputs as values."""
        mean, deviation = self._moments()
        return (values.double() * deviation + mean).to(values.dtype)

    def _moments(self) -> tuple[float, float]:
        if self.weight == 0:
            return 0.0, 1.0
        mean = self.mean / self.weight
        return mean, max(self.square / self.weight - mean**2, 1e-2) ** 0.5


@dataclass
class Adaptive:
    """All of it, for the trainer: `state` goes into a checkpoint, `restore` takes it from there."""

    kl: KLCoefficient
    value_norm: ValueNorm | None = None

    def state(self) -> dict:
        """As JSON can hold it; Python's floats come back bit for bit."""
        return {"kl_coef": self.kl.coef, "value_norm": self.value_norm and asdict(self.value_norm)}

    def restore(self, state: dict) -> None:
        """Go on from a `state`; the options are those of this run."""
        if self.kl.target is not None and "kl_coef" in state:
            self.kl.coef = state["kl_coef"]
        if self.value_norm and state.get("value_norm"):
            self.value_norm = ValueNorm(**{**state["value_norm"], "decay": self.value_norm.decay})
