"""Copies of members with 8-bit integer weights: draft models for speculative decoding.

Invariants: a copy has the same vocabulary object and the same layout of the KV cache as its member
(layers, heads, head_dim and dtype). A draft model relies on both: it forks a sequence and sets
`stream.member` of the fork to the copy, which reads on from the keys and values that the member
computed. Those of drafted tokens are approximate, so the fork is dropped after drafting and the
member reads accepted tokens itself. Only linear layers may differ between a member and its copy.
"""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from packfuse.hf_compat import has_int8_linear, int8_linear
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.fingerprint import ModelState
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member

_models: WeakKeyDictionary[PreTrainedModel, tuple[ModelState, PreTrainedModel]]
_models = WeakKeyDictionary()
_copies: WeakKeyDictionary[HFMember, tuple[ModelState, HFMember]] = WeakKeyDictionary()


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output; it computes in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize the weights of `linear`, which is not changed."""
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self._weight = (weight / scales[:, None]).round_().to(torch.int8)
        self._scales = scales.to(torch.bfloat16)
        bias: Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach()

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, in the dtype of the input."""
        flat = hidden.to(torch.bfloat16).reshape(-1, hidden.shape[-1])
        out = int8_linear(flat, self._weight, self._scales)
        out = out.reshape(*hidden.shape[:-1], -1).to(hidden.dtype)
        return out if self._bias is None else out + self._bias


def can_copy(member: Member) -> bool:
    """Whether `int8_copy` takes this member: a model on processors, and a torch with the kernel."""
    return isinstance(member, HFMember) and member.model.device.type == "cpu" and has_int8_linear()


def int8_copy(member: Member) -> HFMember:
    """The quantized copy of a member, made once for a state; all but linear layers is shared.

    Raises:
        TypeError: if the member is not an `HFMember`.
    """
    if not isinstance(member, HFMember):
        raise TypeError(f"{member.name} is not a transformers model in this process")
    state, quantized = _copies.get(member, (None, member))
    if state != member.state:
        quantized = HFMember(member.name, _quantized(member), member.vocabulary)
        if isinstance(member, Compiled) and member.refused is None:
            quantized = compile_steps(quantized)
        _copies[member] = member.state, quantized
    return quantized


def _quantized(member: HFMember) -> PreTrainedModel:
    """The quantized copy of a member's model, made once for all members with that model."""
    model = member.model
    state, quantized = _models.get(model, (None, model))
    if state != member.state:
        shared = {id(p): p for p in model.parameters()}
        # Parameters in the memo of `deepcopy` are shared, not copied.
        quantized = copy.deepcopy(model, shared)
        _quantize_linear(quantized)
        _models[model] = member.state, quantized
    return quantized


def _quantize_linear(module: nn.Module) -> None:
    """Replace all linear layers inside a module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            _quantize_linear(child)
