"""The policy loss as loops over tokens in Python's floats: slow, and with nothing in common with the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from areal_mega.ops import POLICY_STATISTICS, PolicyLossOptions

LIMIT = 20.0


@dataclass
class Expected:
    """What comes out, and what its rounding is measured by: the sizes of the terms that were added."""

    loss: float
    loss_size: float
    statistics: Tensor
    statistics_size: Tensor
    grad_logprobs: Tensor
    grad_size: Tensor
    grad_entropy: Tensor


def cut(x: float) -> float:
    return max(-LIMIT, min(LIMIT, x))


def problem(lengths: list[int], seed: int, valid: float = 0.7, spread: float = 0.3) -> dict[str, Tensor]:
    """Random float64 arguments; each token is valid with the given probability."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(n, generator=g, dtype=torch.float64)

    base = -noise(1.0).abs() - 0.1
    return {
        "logprobs": base + noise(spread),
        "entropy": noise(1.0).abs(),
        "advantages": noise(1.5),
        "proximal_logprobs": base,
        "loss_mask": torch.rand(n, generator=g) < valid,
        "loss_weight": torch.rand(n, generator=g, dtype=torch.float64) + 0.1,
        "behavior_logprobs": base + noise(0.5 * spread),
        "reference_logprobs": base + noise(spread),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }


def by_definition(x: dict[str, Tensor], o: PolicyLossOptions) -> Expected:
    """Loss, statistics and gradients, one token after the other."""
    n = len(x["logprobs"])
    values = {k: v.tolist() for k, v in x.items()}
    lp, px, bh, rf = (values[f"{k}logprobs"] for k in ("", "proximal_", "behavior_", "reference_"))
    adv, weight, entropy = values["advantages"], values["loss_weight"], values["entropy"]
    sums = {name: [0.0] for name in POLICY_STATISTICS}
    grad, size, grad_entropy, losses = [0.0] * n, [0.0] * n, [0.0] * n, [0.0]
    for begin, end in pairwise(values["cu_seqlens"]):
        tokens = [t for t in range(begin, end) if values["loss_mask"][t]]
        mean_log_ratio = math.fsum(lp[t] - px[t] for t in tokens) / max(len(tokens), 1)
        log_behavior = math.fsum(px[t] - bh[t] for t in tokens)
        for t in tokens:
            raw = lp[t] - px[t] if o.ratio == "token" else mean_log_ratio
            d = cut(raw)
            rho = math.exp(d)
            bounded = min(max(rho, 1 - o.clip_low), 1 + o.clip_high)
            direct, through, dual_clipped = 0.0, 0.0, False
            if o.objective == "cispo":
                loss, clipped, direct = -bounded * adv[t] * lp[t], rho != bounded, -bounded * adv[t]
            else:
                loss, clipped = max(-rho * adv[t], -bounded * adv[t]), -bounded * adv[t] > -rho * adv[t]
                if o.dual_clip is not None and adv[t] < 0 and loss > -o.dual_clip * adv[t]:
                    loss, dual_clipped = -o.dual_clip * adv[t], True
                if not clipped and not dual_clipped and abs(raw) <= LIMIT:
                    through = -rho * adv[t]
            level = {
                "token": px[t] - bh[t],
                "sequence": log_behavior,
                "sequence-mean": log_behavior / len(tokens),
            }
            w, capped = 1.0, False
            if o.behavior:
                w = math.exp(cut(level[o.behavior]))
                high = math.inf if o.behavior_high is None else o.behavior_high
                inside = o.behavior_low <= w <= high
                capped = w > high if o.behavior_mode == "truncate" else not inside
                w = min(w, high) if o.behavior_mode == "truncate" else w * inside
                if o.behavior_mode == "reject":
                    w = float(inside)
            difference = lp[t] - rf[t]
            y = cut(difference)
            kl = {"k1": y, "k2": y * y / 2, "k3": math.expm1(-y) + y}[o.kl_estimator]
            slope = {"k1": 1.0, "k2": y, "k3": -math.expm1(-y)}[o.kl_estimator] * (abs(difference) <= LIMIT)

            losses += [weight[t] * w * loss, weight[t] * o.kl_coef * kl, -weight[t] * o.entropy_coef * entropy[t]]
            grad[t] += weight[t] * (w * direct + o.kl_coef * slope)
            size[t] += weight[t] * (abs(w * direct) + o.kl_coef * max(abs(slope), 1.0))
            for j in [t] if o.ratio == "token" else tokens:
                share = weight[t] * w * through / (1 if o.ratio == "token" else len(tokens))
                grad[j] += share
                size[j] += abs(share)
            grad_entropy[t] = -o.entropy_coef * weight[t]
            approx_kl = math.expm1(d) - d
            row = (1.0, rho, approx_kl, clipped, dual_clipped, entropy[t], kl, w, capped, abs(px[t] - bh[t]), adv[t])
            for name, value in zip(POLICY_STATISTICS, row, strict=True):
                sums[name].append(float(value))
    return Expected(
        math.fsum(losses),
        math.fsum(map(abs, losses)),
        torch.tensor([math.fsum(s) for s in sums.values()], dtype=torch.float64),
        torch.tensor([math.fsum(map(abs, s)) for s in sums.values()], dtype=torch.float64),
        torch.tensor(grad, dtype=torch.float64),
        torch.tensor(size, dtype=torch.float64),
        torch.tensor(grad_entropy, dtype=torch.float64),
    )
