"""Products of weights with vectors on processors, which is what reading a text is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from packfuse.hf_compat import onednn_linear

ENABLED = torch.backends.mkldnn.is_available()
"""Whether torch comes with oneDNN; False leaves all products to torch's own linear layer."""

_FOUR = 4


def product(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`given` `[P, in]` times the transpose of `weight` `[out, in]`, plus `bias`: `[P, out]`.

    Torch's linear layer asks a BLAS library, which takes one core for one vector, is worse with two
    or three than one by one, and leaves half of some processors' vector units idle. oneDNN does
    none of that, and takes the weights as they are. For two to four vectors weights times vectors
    is faster still (dev/log.md, "oneDNN").

    Example:
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[3., 7.]])
    """
    count, (out, width) = len(given), weight.shape
    if 1 < count <= _FOUR and out >= width:
        padded = functional.pad(given, (0, 0, 0, _FOUR - count))
        found = torch.mm(weight, padded.t()).t()[:count].contiguous()
        return found if bias is None else found + bias
    return onednn_linear(given, weight, bias)


# The compiler takes oneDNN's operation only with weights in an order of its own: a copy.
_library = torch.library.Library("packfuse", "FRAGMENT")
_library.define("product(Tensor given, Tensor weight, Tensor? bias=None) -> Tensor")
_library.impl("product", product, "CPU")


@torch.library.register_fake("packfuse::product")  # type: ignore[untyped-decorator]
def _(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return given.new_empty(given.shape[0], weight.shape[0])


class OneDNNLinear(TorchFunctionMode):
    """While it is on, linear layers of this thread use `product`.

    That is for float32 on processors, and where nobody wants gradients; the rest goes its usual
    way.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch's `TorchFunctionMode`."""
        if func is functional.linear and not kwargs and _fits(*args):
            given, *weights = args
            how = torch.ops.packfuse.product if torch.compiler.is_compiling() else product
            found: Tensor = how(given.reshape(-1, given.shape[-1]), *weights)
            return found.view(*given.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def _fits(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = (Tensor, nn.Parameter)
    return (
        ENABLED
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and type(given) is Tensor
        and type(weight) in plain
        and given.dtype == weight.dtype == torch.float32
        and given.device.type == weight.device.type == "cpu"
        and given.numel() > 0
        and weight.dim() == 2
        and weight.is_contiguous()
        and given.shape[-1] == weight.shape[1]
        # oneDNN reads a bias as if it were contiguous, whatever it is.
        and (bias is None or (type(bias) in plain and bias.shape == weight.shape[:1]))
        and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()))
    )
