"""Products of weights with few vectors, which is what a step of a language model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MOST = 64
"""Vectors above which a product is left to `linear`: there it is as fast. 0 switches this off."""

_FOUR = 4
_BLOCK = 256


def product(given: Tensor, weight: Tensor) -> Tensor:
    """`given` `[P, in]` times the transpose of `weight` `[out, in]`: `[P, out]`, P at most `MOST`.

    On processors, BLAS libraries serve the usual order of the two with one thread where there is
    one vector, and worse than one by one where there are two or three. The other way round, by
    fours, all threads work; so they do on blocks of the weights (docs/log.md, "few vectors").

    Example:
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[3., 7.]])
    """
    count, (out, width) = len(given), weight.shape
    if count <= _FOUR and out >= width:
        padded = functional.pad(given, (0, 0, 0, _FOUR - count))
        return torch.mm(weight, padded.t()).t()[:count].contiguous()
    block = _BLOCK if out >= 16 * _BLOCK else max(1, out // 2)
    whole = out - out % block
    blocks = weight[:whole].view(-1, block, width)
    parts = torch.bmm(given.expand(len(blocks), count, width), blocks.transpose(1, 2))
    if whole == out:
        return parts.transpose(0, 1).reshape(count, out).contiguous()
    found = given.new_empty(count, out)
    found[:, :whole].view(count, -1, block).copy_(parts.transpose(0, 1))
    found[:, whole:] = given @ weight[whole:].t()
    return found


class FewVectors(TorchFunctionMode):
    """While it is on, linear layers of this thread use `product` where it is faster.

    That is for float32 on processors and up to `MOST` vectors; the rest goes its usual way.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch's `TorchFunctionMode`."""
        if func is functional.linear and not kwargs and _fits(*args):
            given, weight, *bias = args
            found = product(given.reshape(-1, given.shape[-1]), weight)
            found = found.view(*given.shape[:-1], -1)
            return found if not bias or bias[0] is None else found + bias[0]
        return func(*args, **(kwargs or {}))


def _fits(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        type(given) is Tensor
        and 0 < given.numel() <= MOST * given.shape[-1]
        and given.dtype == weight.dtype == torch.float32
        and given.device.type == weight.device.type == "cpu"
        and weight.dim() == 2
        and weight.is_contiguous()
    )
