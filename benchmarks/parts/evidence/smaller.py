"""Members that compute in bfloat16, with weights in the layout that oneDNN reads fastest.

Reading and writing take half the time on processors with AVX-512 BF16. What it changes is
measured by `benchmarks/evidence.py --shipped`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member

_LEAST = 50_000
"""Fewest weights of a layer whose layout is changed."""
_ROWS = 16
"""Vectors at a time that the layout is made for."""


def in_bfloat16(members: Iterable[Member]) -> None:
    """Let members, and all linear layers of this process in bfloat16, compute that way.

    The layout is made when a layer is first used, beside its weights, which are kept.
    """
    for member in members:
        if isinstance(member, HFMember):
            member.model.bfloat16()
    functional.linear = cast(Any, PackedLinear(functional.linear))


class PackedLinear:
    """In place of `torch.nn.functional.linear`."""

    def __init__(self, plain: Any) -> None:
        """`plain` computes layers that are small or in other types."""
        self._plain = plain
        # The weights are kept with their layout, so that no others take their address.
        self._packed: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `torch.nn.functional.linear`."""
        small = weight.numel() < _LEAST or torch.is_grad_enabled()
        if small or not hidden.dtype == weight.dtype == torch.bfloat16:
            plain: Tensor = self._plain(hidden, weight, bias)
            return plain
        key = weight.data_ptr(), weight.shape
        if key not in self._packed:
            self._packed[key] = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), weight
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._packed[key][0], bias, "none", [], ""
        )
        return out
