"""Started by torchrun with gloo: log-probs of a vocabulary that is cut over the ranks, against all of it on one rank.

Every rank writes what it got, so that `test_logprob` can compare them.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega import ops

TEMPERATURE = 0.7
TOKENS = 12


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    group = dist.new_group(list(range(ranks)))
    results = {}
    # Equal shards with padding, unequal ones, and one that is empty but for padding.
    for name, widths, size in (
        ("equal", [40] * ranks, 40 * ranks - 9),
        ("unequal", [7 + 30 * rank for rank in range(ranks)], None),
        ("empty", [25] * ranks, 25 * (ranks - 1)),
    ):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            results[f"{name}, {str(dtype).removeprefix('torch.')}"] = one_case(widths, size, dtype, group)
    results["compiled"] = compiled(group)
    torch.save(results, f"{folder}/rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def one_case(widths: list[int], size: int | None, dtype: torch.dtype, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """This rank's outputs and gradient, and those of one rank that has all columns."""
    rank = group.rank()
    start, width = sum(widths[:rank]), widths[rank]
    size = size or sum(widths)
    generator = torch.Generator().manual_seed(3)
    whole = (torch.randn(TOKENS, sum(widths), generator=generator) * 3).to(dtype)
    whole[1, :size] += 1e4
    whole[2, : size - 1] = -torch.inf  # one token is possible, and none on most ranks
    whole[:, size:] = torch.nan
    g, h = torch.randn(2, TOKENS, generator=generator).to(torch.promote_types(dtype, torch.float32))
    bounds = [at for i in range(len(widths)) for at in (sum(widths[:i]), sum(widths[: i + 1]) - 1) if at < size]
    targets = torch.randint(0, size, (TOKENS,), generator=generator)
    targets[2], targets[3], targets[4 : 4 + len(bounds)] = size - 1, -1, torch.tensor(bounds)

    own = whole[:, start : start + width].clone().requires_grad_()
    options = {"temperature": TEMPERATURE, "vocab_start": start, "vocab_size": size, "group": group}
    if len(set(widths)) == 1:
        del options["vocab_start"]
    logprob, entropy = ops.logprob_from_logits(own, targets, **options)
    (grad,) = torch.autograd.grad((g * logprob + h * entropy).sum(), own)

    whole.requires_grad_()
    alone = ops.logprob_from_logits(whole, targets, temperature=TEMPERATURE, vocab_size=size)
    (whole_grad,) = torch.autograd.grad((g * alone[0] + h * alone[1]).sum(), whole)
    return {
        "outputs": torch.stack([logprob, entropy]).detach(),
        "alone": torch.stack(alone).detach(),
        "grad": grad,
        "grad alone": whole_grad[:, start : start + width].clone(),
    }


def compiled(group: dist.ProcessGroup) -> dict[str, Tensor]:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(group.rank()))
    targets = torch.arange(6) + 7
    function = torch.compile(ops.logprob_from_logits, fullgraph=True, backend="aot_eager")
    return {
        "compiled": torch.stack(function(logits, targets, group=group)),
        "outputs": torch.stack(ops.logprob_from_logits(logits, targets, group=group)),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
