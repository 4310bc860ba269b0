"""Started by torchrun on three ranks: how far the fused linear operations are from one rank's result, as JSON."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_linear_policy_loss import EVERYTHING, problem

from areal_mega import ops

TOKENS, WIDTH, VOCABULARY, PADDING = 30, 8, 101, 7


def main(out: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    pair, everyone = dist.new_group([0, 1]), dist.new_group([0, 1, 2])
    found: dict[str, float] = {}
    for ranks, group in ((2, pair), (3, everyone)):
        if dist.get_rank() >= ranks:
            continue
        for sequence_parallel, equal, fused in product((False, True), repeat=3):
            name = f"ranks {ranks}, sequence parallel {sequence_parallel}, equal shards {equal}, fused loss {fused}"
            found[name] = largest(deviation(group, sequence_parallel, equal, fused), group)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def deviation(group: dist.ProcessGroup, sequence_parallel: bool, equal: bool, fused: bool) -> float:
    """Of outputs and gradients, on this rank. Odd workspaces: several blocks and chunks, the last of them smaller."""
    rank, ranks = group.rank(), group.size()
    inputs = problem(TOKENS, WIDTH, VOCABULARY)
    expected = run(inputs, fused)
    first, last = bounds(rank, ranks, equal)
    padded = torch.cat([inputs["weight"].detach(), torch.full((PADDING, WIDTH), torch.nan, dtype=torch.float64)])
    tokens = slice(rank * TOKENS // ranks, (rank + 1) * TOKENS // ranks) if sequence_parallel else slice(TOKENS)
    here = {
        **inputs,
        "hidden": inputs["hidden"].detach()[tokens].requires_grad_(),
        "weight": padded[first:last].requires_grad_(),
    }
    layout = {"vocab_size": VOCABULARY, "vocab_start": first, "group": group, "sequence_parallel": sequence_parallel}
    *outputs, of_hidden, of_weight = run(here, fused, workspace_bytes=2000, **layout)
    *wanted, whole_hidden, whole_weight = expected
    whole_weight = torch.cat([whole_weight, torch.zeros(PADDING, WIDTH, dtype=torch.float64)])
    pairs = [
        *zip(outputs, wanted, strict=True),
        (of_hidden, whole_hidden[tokens]),
        (of_weight, whole_weight[first:last]),
    ]
    return max(float((a - e).abs().nan_to_num(nan=torch.inf).max()) for a, e in pairs)


def run(inputs: dict[str, Tensor], fused: bool, **head) -> list[Tensor]:
    """Outputs and the gradients of the loss, or of a weighted sum of log-probs and entropy."""
    if fused:
        outputs = ops.linear_policy_loss(options=EVERYTHING, **inputs, **head)
        total = outputs[0]
    else:
        outputs = ops.linear_logprob(inputs["hidden"], inputs["weight"], inputs["targets"], **head)
        total = (outputs[0] * inputs["advantages"]).sum() + 0.3 * outputs[1].sum()
    gradients = torch.autograd.grad(total, (inputs["hidden"], inputs["weight"]))
    return [x.detach() for x in (*outputs, *gradients)]


def bounds(rank: int, ranks: int, equal: bool) -> tuple[int, int]:
    """This rank's rows of the padded vocabulary. Unequal: the first rank has a few, the last what is left."""
    size = VOCABULARY + PADDING
    if equal:
        return rank * size // ranks, (rank + 1) * size // ranks
    cuts = [0, *(11 * (i + 1) for i in range(ranks - 1)), size]
    return cuts[rank], cuts[rank + 1]


def largest(number: float, group: dist.ProcessGroup) -> float:
    x = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return float(x)


if __name__ == "__main__":
    main(sys.argv[1])
