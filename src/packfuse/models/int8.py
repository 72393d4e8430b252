"""Copies of members whose weights are 8-bit integers: fast and nearly right, to draft with."""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from packfuse.hf_compat import has_int8_linear, int8_linear
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member

_models: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()
_copies: WeakKeyDictionary[HFMember, HFMember] = WeakKeyDictionary()


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale an output; it computes in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weights of `linear`, which stays as it is."""
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self._weight = (weight / scales[:, None]).round_().to(torch.int8)
        self._scales = scales.to(torch.bfloat16)
        bias: Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach()

    def forward(self, given: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, in the type that was given."""
        flat = given.to(torch.bfloat16).reshape(-1, given.shape[-1])
        out = int8_linear(flat, self._weight, self._scales)
        out = out.reshape(*given.shape[:-1], -1).to(given.dtype)
        return out if self._bias is None else out + self._bias


def can_copy(member: Member) -> bool:
    """Whether a quantized copy of this member would be faster."""
    return isinstance(member, HFMember) and member.model.device.type == "cpu" and has_int8_linear()


def int8_copy(member: Member) -> HFMember:
    """The copy of a member, made once; it shares all that is not a linear layer."""
    if not isinstance(member, HFMember):
        raise TypeError(f"{member.name} is not a local member")
    if member not in _copies:
        light = HFMember(member.name, _light(member.model), member.vocabulary)
        compiled = isinstance(member, Compiled) and member.refused is None
        _copies[member] = compile_steps(light) if compiled else light
    return _copies[member]


def _light(model: PreTrainedModel) -> PreTrainedModel:
    """The copy of a model, which all members over it share."""
    if model not in _models:
        shared = {id(p): p for p in model.parameters()}
        light = copy.deepcopy(model, shared)
        _replace(light)
        _models[model] = light
    return _models[model]


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            _replace(child)
