"""What is measured, by operation. A new family of cases is a file here with a function like the others' and its line in
`OPERATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from areal_mega.bench.case import Plan, Shapes
from areal_mega.bench.cases import balance, gae, linear, logits, losses, pieces

# The plans of an operation for shapes of a size on a device; none: it does not run there.
OPERATIONS: Mapping[str, Callable[[Shapes, torch.device], list[Plan]]] = {
    "logprob_from_logits": logits.logprob_from_logits,
    "linear_logprob": linear.linear_logprob,
    "linear_policy_loss": linear.linear_policy_loss,
    "gae": gae.gae,
    "policy_loss": losses.policy_loss,
    "value_loss": losses.value_loss,
    "pack_pieces": pieces.pack_pieces,
    "unpack_pieces": pieces.unpack_pieces,
    "balance": balance.balance,
    "first_fit": balance.first_fit,
}
