"""What losses do with the gradients that they stored, once the gradient that reaches them is known."""

from __future__ import annotations

from torch import Tensor


def scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """``upstream [] * gradient``; without a pass over it where upstream is a 1 that can be looked at.

    That is at hand on the CPU only: a GPU would have to be waited for, and under torch.compile there is no number yet.
    """
    if type(upstream) is Tensor and upstream.device.type == "cpu" and upstream.item() == 1:
        return gradient
    return upstream * gradient
