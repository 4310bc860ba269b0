"""Every algorithm as its paper writes it: loops over samples and tokens in float64, gradients by autograd.

Nothing here is shared with the package: no packing, no masks, no weights, no sums over ranks.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LONGEST = 40


@dataclass
class Response:
    """One sampled response; the lists have a number for each of its tokens. now: log-probs of the current policy."""

    group: int
    reward: float
    greedy_reward: float
    correct: bool
    truncated: bool
    now: Tensor
    entropy: Tensor
    proximal: list[float]
    behavior: list[float]
    reference: list[float]
    values: list[float]

    def __len__(self) -> int:
        return len(self.proximal)

    @property
    def ages(self) -> list[int]:
        """How many versions before the proximal policy each token was sampled: 3, 2, 1, 0, 0 and so on."""
        return [max(0, 3 - t) for t in range(len(self))]


def responses(seed: int, groups: int = 4, size: int = 4, stale: float = 0.3) -> list[Response]:
    """Random responses. Rewards are 0 or 1, and every third group has no right one.

    stale: spread of the log-probs of proximal and behavior policy.
    """
    g = torch.Generator().manual_seed(seed)

    def noise(n: int, scale: float) -> Tensor:
        return scale * torch.randn(n, generator=g, dtype=torch.float64)

    made = []
    for group in range(groups):
        for _ in range(size):
            n = int(torch.randint(2, LONGEST + 1, (), generator=g))
            right = group % 3 != 2 and bool(torch.rand((), generator=g) < 0.5)
            # Numbers that float32 has, as the batch does: what is compared is arithmetic, not the rounding of inputs.
            base = (-noise(n, 1.0).abs() - 0.1).float().double()
            now, behavior, reference = ((base + noise(n, s)).float().double() for s in (0.3, stale, 0.4))
            made.append(
                Response(
                    group=group,
                    reward=float(right),
                    greedy_reward=float(torch.rand((), generator=g) < 0.5),
                    correct=right,
                    truncated=n > 0.8 * LONGEST,
                    now=now.requires_grad_(),
                    entropy=noise(n, 1.0).abs().float().double().requires_grad_(),
                    proximal=base.tolist(),
                    behavior=behavior.tolist(),
                    reference=reference.tolist(),
                    values=noise(n, 0.5).float().double().tolist(),
                )
            )
    return made


# Advantages: a list for each response


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al., 2016: A_t = sum_k (gamma lam)^k delta_(t+k)."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    delta = [r + gamma * v1 - v0 for r, v1, v0 in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


def at_the_end(response: Response, reward: float, penalties: list[float] | None = None) -> list[float]:
    rewards = [-p for p in penalties] if penalties else [0.0] * len(response)
    return [*rewards[:-1], rewards[-1] + reward]


def whitened(advantages: list[list[float]]) -> list[list[float]]:
    """Over all tokens of all responses."""
    every = [a for row in advantages for a in row]
    mean, std = statistics.fmean(every), statistics.stdev(every)
    return [[(a - mean) / (std + 1e-8) for a in row] for row in advantages]


def spread(numbers: list[float], data: list[Response]) -> list[list[float]]:
    return [[x] * len(r) for x, r in zip(numbers, data, strict=True)]


def group_of(r: Response, data: list[Response], rewards: list[float]) -> list[float]:
    return [x for other, x in zip(data, rewards, strict=True) if other.group == r.group]


def grpo_advantages(data: list[Response], rewards: list[float]) -> list[list[float]]:
    numbers = []
    for r, x in zip(data, rewards, strict=True):
        group = group_of(r, data, rewards)
        numbers.append((x - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6))
    return spread(numbers, data)


def centred(data: list[Response], rewards: list[float]) -> list[float]:
    return [x - statistics.fmean(group_of(r, data, rewards)) for r, x in zip(data, rewards, strict=True)]


def ppo_advantages(data: list[Response], lam: float = 1.0) -> list[list[float]]:
    return whitened([gae(at_the_end(r, r.reward), r.values, 1.0, lam) for r in data])


# Objectives: a loss for each token of a response


def clipped(ratio: Tensor, a: float, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def ratios(r: Response) -> Tensor:
    return torch.exp(r.now - torch.tensor(r.proximal, dtype=torch.float64))


def ppo_clip(r: Response, advantages: list[float], low: float = 0.2, high: float = 0.2) -> list[Tensor]:
    return [clipped(ratio, a, low, high) for ratio, a in zip(ratios(r), advantages, strict=True)]


def stale_weights(r: Response) -> list[float]:
    """pi_proximal / pi_behavior of each token."""
    return [math.exp(p - b) for p, b in zip(r.proximal, r.behavior, strict=True)]


# Aggregations


def token_mean(losses: list[list[Tensor]]) -> Tensor:
    return sum(sum(row) for row in losses) / sum(len(row) for row in losses)


def sequence_mean(losses: list[list[Tensor]]) -> Tensor:
    return sum(sum(row) / len(row) for row in losses) / len(losses)


def sequence_sum(losses: list[list[Tensor]]) -> Tensor:
    return sum(sum(row) for row in losses) / len(losses)


# Algorithms


def ppo(data: list[Response]) -> Tensor:
    return token_mean([ppo_clip(r, a) for r, a in zip(data, ppo_advantages(data), strict=True)])


def vapo(data: list[Response]) -> Tensor:
    lams = [max(0.0, 1 - 1 / (0.05 * len(r))) for r in data]
    advantages = [gae(at_the_end(r, r.reward), r.values, 1.0, lam) for r, lam in zip(data, lams, strict=True)]
    losses = [ppo_clip(r, a, 0.2, 0.28) for r, a in zip(data, whitened(advantages), strict=True)]
    right = [r for r in data if r.correct]
    likelihood = -sum(r.now.sum() for r in right) / sum(len(r) for r in right)
    return token_mean(losses) + 0.1 * likelihood


def rewards_of(data: list[Response]) -> list[float]:
    return [r.reward for r in data]


def grpo(data: list[Response]) -> Tensor:
    advantages = grpo_advantages(data, rewards_of(data))
    return sequence_mean([ppo_clip(r, a) for r, a in zip(data, advantages, strict=True)])


def dr_grpo(data: list[Response]) -> Tensor:
    advantages = spread(centred(data, rewards_of(data)), data)
    losses = [sum(ppo_clip(r, a)) / LONGEST for r, a in zip(data, advantages, strict=True)]
    return sum(losses) / len(losses)


def lite_ppo(data: list[Response]) -> Tensor:
    std = statistics.stdev(rewards_of(data))
    advantages = spread([x / (std + 1e-6) for x in centred(data, rewards_of(data))], data)
    return token_mean([ppo_clip(r, a) for r, a in zip(data, advantages, strict=True)])


def dapo(data: list[Response]) -> Tensor:
    cache = 0.2 * LONGEST

    def penalty(n: int) -> float:
        if n <= LONGEST - cache:
            return 0.0
        return (LONGEST - cache - n) / cache if n <= LONGEST else -1.0

    advantages = grpo_advantages(data, [r.reward + penalty(len(r)) for r in data])
    losses = []
    for r, row in zip(data, advantages, strict=True):
        tokens = ppo_clip(r, row, 0.2, 0.28)
        # Dual clip: for a negative advantage the loss is at most c |A|, c = 10.
        losses.append([t if a >= 0 else t.clamp(max=-10.0 * a) for t, a in zip(tokens, row, strict=True)])
    return token_mean(losses)


def rloo(data: list[Response]) -> Tensor:
    numbers = []
    for i, r in enumerate(data):
        others = [o.reward for j, o in enumerate(data) if o.group == r.group and j != i]
        numbers.append(r.reward - statistics.fmean(others))
    return sequence_sum([ppo_clip(r, a) for r, a in zip(data, spread(numbers, data), strict=True)])


def remax(data: list[Response]) -> Tensor:
    advantages = spread([r.reward - r.greedy_reward for r in data], data)
    return sequence_sum([ppo_clip(r, a) for r, a in zip(data, advantages, strict=True)])


def reinforce_plus_plus(data: list[Response], kl_coef: float = 0.0) -> Tensor:
    advantages = []
    for r in data:
        k1 = [p - f for p, f in zip(r.proximal, r.reference, strict=True)]
        rewards = at_the_end(r, r.reward, [kl_coef * k for k in k1])
        advantages.append([sum(rewards[t:]) for t in range(len(r))])
    return token_mean([ppo_clip(r, a) for r, a in zip(data, whitened(advantages), strict=True)])


def reinforce_plus_plus_baseline(data: list[Response]) -> Tensor:
    advantages = whitened(spread(centred(data, rewards_of(data)), data))
    return token_mean([ppo_clip(r, a) for r, a in zip(data, advantages, strict=True)])


def gspo(data: list[Response]) -> Tensor:
    losses = []
    for r, row in zip(data, grpo_advantages(data, rewards_of(data)), strict=True):
        ratio = torch.exp((r.now - torch.tensor(r.proximal, dtype=torch.float64)).sum() / len(r))
        losses.append(clipped(ratio, row[0], 3e-4, 4e-4))
    return sum(losses) / len(losses)


def cispo(data: list[Response]) -> Tensor:
    losses = []
    for r, row in zip(data, grpo_advantages(data, rewards_of(data)), strict=True):
        weights = ratios(r).detach().clamp(max=5.0)
        losses.append([-w * a * x for w, a, x in zip(weights, row, r.now, strict=True)])
    return token_mean(losses)


def sapo(data: list[Response]) -> Tensor:
    losses = []
    for r, row in zip(data, grpo_advantages(data, rewards_of(data)), strict=True):
        gated = []
        for ratio, a in zip(ratios(r), row, strict=True):
            tau = 1.0 if a > 0 else 1.05
            gated.append(-4 / tau * torch.sigmoid(tau * (ratio - 1)) * a)
        losses.append(gated)
    return sequence_mean(losses)


def m2po_kept(data: list[Response], advantages: list[list[float]], threshold: float) -> list[list[bool]]:
    """Algorithm 1 as it stands: take the largest away, look again."""
    kept = [[True] * len(r) for r in data]
    squares = {}
    for i, (r, row) in enumerate(zip(data, advantages, strict=True)):
        for t, a in enumerate(row):
            log_ratio = r.proximal[t] - r.behavior[t]
            if (a > 0 and log_ratio > 0) or (a < 0 and log_ratio < 0):
                squares[i, t] = log_ratio**2
    while squares and statistics.fmean(squares.values()) > threshold:
        i, t = max(squares, key=squares.__getitem__)
        kept[i][t] = False
        del squares[i, t]
    return kept


def m2po(data: list[Response]) -> Tensor:
    advantages = grpo_advantages(data, rewards_of(data))
    kept = m2po_kept(data, advantages, 0.04)
    losses = []
    for r, row, k in zip(data, advantages, kept, strict=True):
        weighted = zip(stale_weights(r), ppo_clip(r, row), k, strict=True)
        losses.append([w * loss * keep for w, loss, keep in weighted])
    return token_mean(losses)


def _ppo_weighted(data: list[Response], weigh) -> Tensor:
    """PPO with each token's loss weighted; ``weigh`` makes the weights of one response from its ratios."""
    losses = []
    for r, row in zip(data, ppo_advantages(data), strict=True):
        losses.append([w * x for w, x in zip(weigh(stale_weights(r)), ppo_clip(r, row), strict=True)])
    return token_mean(losses)


def decoupled(data: list[Response]) -> Tensor:
    return _ppo_weighted(data, lambda ws: [min(w, 5.0) for w in ws])


def a3po(data: list[Response]) -> Tensor:
    """A token of age d is d of the d + 1 updates away from its behavior policy, where the proximal policy is."""
    near = []
    for r in data:
        between = zip(r.ages, r.behavior, r.now.tolist(), strict=True)
        near.append(replace(r, proximal=[b + d / (d + 1) * (x - b) for d, b, x in between]))
    return decoupled(near)


def behavior_ppo(data: list[Response]) -> Tensor:
    """PPO as it stands, whose old policy is the one that sampled."""
    return ppo([replace(r, proximal=r.behavior) for r in data])


def tis(data: list[Response]) -> Tensor:
    return _ppo_weighted(data, lambda ws: [min(w, 2.0) for w in ws])


def mis(data: list[Response]) -> Tensor:
    return _ppo_weighted(data, lambda ws: [math.prod(ws) * (math.prod(ws) <= 3.0)] * len(ws))


def icepop(data: list[Response]) -> Tensor:
    return _ppo_weighted(data, lambda ws: [w * (0.5 <= w <= 5.0) for w in ws])


def distill(data: list[Response]) -> Tensor:
    losses = []
    for r in data:
        advantages = [teacher - student for teacher, student in zip(r.reference, r.proximal, strict=True)]
        losses.append(ppo_clip(r, advantages))
    return token_mean(losses)


ALGORITHMS = {
    "ppo": ppo,
    "vapo": vapo,
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "lite-ppo": lite_ppo,
    "dapo": dapo,
    "rloo": rloo,
    "remax": remax,
    "reinforce-plus-plus": reinforce_plus_plus,
    "reinforce-plus-plus-baseline": reinforce_plus_plus_baseline,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "m2po": m2po,
    "decoupled": decoupled,
    "a3po": a3po,
    "tis": tis,
    "mis": mis,
    "icepop": icepop,
    "distill": distill,
}
