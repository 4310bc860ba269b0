"""Matrix products through torch, in the way that is fastest where they run and loses least of a long sum."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a [M, K] @ b [K, N]``, in their dtype."""
    if _better_by_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")  # a @ w.T
    return torch.mm(a, b)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds ``a @ b`` to ``total [M, N]``, which is float32 for 16-bit factors.

    A GPU adds in float32 before anything is rounded. The CPU has no such product: there torch rounds it to 16 bits
    once, then it is added in float32.
    """
    long = a.shape[1] > b.shape[1]  # then the product is small beside its factors, and adding it costs little
    if (total.dtype != a.dtype and not total.is_cuda) or (long and _better_by_onednn(a, b)):
        total.add_(product(a, b))
    elif total.dtype != a.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a, b, out=total)


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _better_by_onednn(a: Tensor, b: Tensor) -> bool:
    """torch.mm in float32 goes to MKL, which reaches about a third of an AMD processor's peak; oneDNN is 1.1 to 1.25
    times as fast. Its only door for float32 is the operator that inductor uses. In 16 bits torch.mm takes it itself."""
    return _ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() > 0 and b.numel() > 0
