"""Copies of members with 8-bit integer weights: draft models for speculative decoding.

Invariants: a copy has the same vocabulary object and the same layout of the KV cache as its member
(layers, heads, head_dim and dtype). A draft model relies on both: it forks a sequence and sets
`stream.member` of the fork to the copy, which reads on from the keys and values that the member
computed. Those of drafted tokens are approximate, so the fork is dropped after drafting and the
member reads accepted tokens itself. Only linear layers may differ between a member and its copy.
"""

from __future__ import annotations

import copy
import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from packfuse.errors import MemberError, PackError
from packfuse.hf_compat.models import has_int8_linear, int8_linear
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.devices import is_offloaded
from packfuse.models.fingerprint import ModelState
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member, Read

WIDTH_STEP = 16
"""The kernel reads beyond the weights of a layer whose input is no multiple of this."""

LARGEST_DISTANCE = 0.5
"""Most probability that a copy may place differently than its member, on average. Rounding moves
about a tenth of this."""

_PROBE = " The capital of France is Paris."

_models: WeakKeyDictionary[PreTrainedModel, tuple[ModelState, PreTrainedModel]]
_models = WeakKeyDictionary()
_copies: WeakKeyDictionary[HFMember, tuple[ModelState, HFMember]] = WeakKeyDictionary()
_useless: WeakKeyDictionary[HFMember, ModelState] = WeakKeyDictionary()


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
        flat = hidden.to(torch.bfloat16).reshape(-1, hidden.shape[-1]).contiguous()
        out = int8_linear(flat, self._weight, self._scales)
        out = out.reshape(*hidden.shape[:-1], -1).to(hidden.dtype)
        return out if self._bias is None else out + self._bias


def drafting_copy(member: Member) -> HFMember | None:
    """The quantized copy of a member, if drafting with it is faster and makes sense.

    Returns:
        The copy; None if the member is not a model on processors, if this torch lacks the kernel,
        or if the copy cannot be made or does not predict about what the member predicts.

    Warns:
        RuntimeWarning: the first time, if a copy was made and is of no use.
    """
    if not isinstance(member, HFMember) or not _can_copy(member):
        return None
    if _useless.get(member) == member.state:
        return None
    try:
        return int8_copy(member)
    except MemberError as error:
        _useless[member] = member.state
        warnings.warn(
            f"member {member.name!r} drafts with its own weights, which is slower: {error.message}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def int8_copy(member: Member) -> HFMember:
    """The quantized copy of a member, made once for a state; all but linear layers is shared.

    Raises:
        TypeError: if the member is not an `HFMember`.
        MemberError: if the copy fails, or predicts something else than its member.
    """
    if not isinstance(member, HFMember):
        raise TypeError(f"{member.name} is not a transformers model in this process")
    state, quantized = _copies.get(member, (None, member))
    if state != member.state:
        quantized = _checked(member)
        if isinstance(member, Compiled) and member.refused is None:
            quantized = compile_steps(quantized)
        _copies[member] = member.state, quantized
    return quantized


def _can_copy(member: HFMember) -> bool:
    """Whether all weights are on processors, where the kernel is."""
    devices = {parameter.device.type for parameter in member.model.parameters()}
    return has_int8_linear() and devices == {"cpu"} and not is_offloaded(member.model)


def _checked(member: HFMember) -> HFMember:
    try:
        quantized = HFMember(member.name, _quantized(member), member.vocabulary)
        problem = _problem(member, quantized)
    except Exception as error:  # some models look at the weights of their layers
        problem = error.message if isinstance(error, PackError) else repr(error)
        raise MemberError(f"its copy with 8-bit weights fails: {problem}") from error
    if problem:
        raise MemberError(f"its copy with 8-bit weights differs: {problem}")
    return quantized


def _problem(member: HFMember, quantized: HFMember) -> str | None:
    """Why a copy is of no use; None if it predicts about what the member predicts.

    Raises:
        MemberError: if it fails.
    """
    ids = member.vocabulary.encode(_PROBE)[: member.context_window]
    exact, rounded = (
        HFMember.read(one, [Read(one.open(), ids, keep=len(ids))])[0].exp()
        for one in (member, quantized)
    )
    distance = float((exact - rounded).abs().sum(-1).mean()) / 2
    return None if distance <= LARGEST_DISTANCE else f"{distance:.0%} of the probability differs"


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
    """Replace all linear layers inside a module that the kernel can compute, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            if _is_plain(child):
                setattr(module, name, Int8Linear(child))
        else:
            _quantize_linear(child)


def _is_plain(linear: nn.Linear) -> bool:
    """Whether the weights are numbers, not yet quantized, of a width that the kernel can read."""
    weight = linear.weight
    plain = type(weight.data) is Tensor and weight.is_floating_point()
    return plain and weight.shape[1] % WIDTH_STEP == 0
