"""The kernels' Python face: checks, autograd, and one signature for every backend.

Each operation has a plain-torch reference that works in float64. A faster backend is chosen by the device of
its tensors; the ``backend`` argument or ``AREAL_MEGA_OPS_BACKEND`` forces one.
"""

from areal_mega.ops.balance import balance, first_fit
from areal_mega.ops.gae import gae, length_adaptive_lambda
from areal_mega.ops.linear_logprob import linear_logprob
from areal_mega.ops.linear_policy_loss import linear_policy_loss
from areal_mega.ops.logprob import logprob_from_logits
from areal_mega.ops.pieces import Piece, PieceTable, pack_pieces, unpack_pieces
from areal_mega.ops.policy_loss import POLICY_STATISTICS, PolicyLossOptions, policy_loss, policy_loss_and_gradients
from areal_mega.ops.value_loss import VALUE_STATISTICS, value_loss

__all__ = [
    "POLICY_STATISTICS",
    "VALUE_STATISTICS",
    "Piece",
    "PieceTable",
    "PolicyLossOptions",
    "balance",
    "first_fit",
    "gae",
    "length_adaptive_lambda",
    "linear_logprob",
    "linear_policy_loss",
    "logprob_from_logits",
    "pack_pieces",
    "policy_loss",
    "policy_loss_and_gradients",
    "unpack_pieces",
    "value_loss",
]
