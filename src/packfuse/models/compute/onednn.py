"""Linear layers on processors by oneDNN, which is faster for few tokens than torch's default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from packfuse.hf_compat.models import onednn_linear

ENABLED = torch.backends.mkldnn.is_available()
"""Whether linear layers use oneDNN: True if torch was built with it."""

_SMALL_BATCH = 4
"""Most vectors for which `torch.mm` of weights and vectors is faster than oneDNN."""


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`hidden` `[P, in]` times the transpose of `weight` `[out, in]`, plus `bias`: `[P, out]`.

    Torch's linear layer calls a BLAS library, which uses one core for one vector, is slower for two
    or three vectors together than one by one, and does not use the full vector width of some
    processors. oneDNN has none of these problems and needs no copy of the weights. For two to four
    vectors `torch.mm` of weights and vectors is faster still (dev/log.md, "oneDNN").

    Example:
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[3., 7.]])
    """
    count, (out, width) = len(hidden), weight.shape
    if 1 < count <= _SMALL_BATCH and out >= width:
        padded = functional.pad(hidden, (0, 0, 0, _SMALL_BATCH - count))
        out_vectors = torch.mm(weight, padded.t()).t()[:count].contiguous()
        return out_vectors if bias is None else out_vectors + bias
    return onednn_linear(hidden, weight, bias)


# The compiler would replace oneDNN's operation by one with reordered weights, which are a copy.
_library = torch.library.Library("packfuse", "FRAGMENT")
_library.define("product(Tensor hidden, Tensor weight, Tensor? bias=None) -> Tensor")
_library.impl("product", product, "CPU")


@torch.library.register_fake("packfuse::product")  # type: ignore[untyped-decorator]
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return hidden.new_empty(hidden.shape[0], weight.shape[0])


def has_layers(model: nn.Module) -> bool:
    """Whether a model has linear layers that `OneDNNLinear` may compute."""
    return any(
        type(module) is nn.Linear and module.weight.dtype == torch.float32
        for module in model.modules()
    )


class OneDNNLinear(TorchFunctionMode):
    """A context in which linear layers of this thread use `product`.

    This applies to float32 tensors on processors without gradients and autocast; all other calls
    are unchanged.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch's `TorchFunctionMode`."""
        if func is functional.linear and not kwargs and _fits(*args):
            hidden, *weights = args
            function = torch.ops.packfuse.product if torch.compiler.is_compiling() else product
            out: Tensor = function(hidden.reshape(-1, hidden.shape[-1]), *weights)
            return out.view(*hidden.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def _fits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = (Tensor, nn.Parameter)
    return (
        ENABLED
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and type(hidden) is Tensor
        and type(weight) in plain
        and hidden.dtype == weight.dtype == torch.float32
        and hidden.device.type == weight.device.type == "cpu"
        and hidden.numel() > 0
        and weight.dim() == 2
        and weight.is_contiguous()
        and hidden.shape[-1] == weight.shape[1]
        # oneDNN reads any bias as if it were contiguous.
        and (bias is None or (type(bias) in plain and bias.shape == weight.shape[:1]))
        and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()))
    )
