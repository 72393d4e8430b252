"""What a model is now, by content: so that nothing computed by other weights is used again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from packfuse.errors import MemberError
from packfuse.hf_compat.models import attention_of

_MACHINERY = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module that say nothing about its outputs, or are looked at by themselves."""

_CHANGED_BY_FORWARD = ("max_seq_len_cached", "long_inv_freq", "warnings_issued")
"""Ends of names of modules' attributes that a forward pass changes, and that no output depends on.
Some models have one of them for each type of layer."""

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model at one time, as cheap as it can be told from another: a few milliseconds.

    Equal states mean equal outputs, but for edits through `.data` of a few single weights: one
    weight of every row of each matrix is looked at, and torch's counters of edits in place.

    Attributes:
        sampled: Digest of the modules, their plain attributes, and samples of their tensors.
        versions: torch's counters of edits in place, by tensor.
        embeddings: Number of input embeddings.
        tokens: Number of tokens of the tokenizer.
    """

    sampled: str
    versions: tuple[int, ...]
    embeddings: int
    tokens: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ModelState:
        """The present state of a model and its tokenizer."""
        tensors = _Tensors()
        found = xxhash.xxh3_128("\n".join(_describe(model, tensors)).encode())
        for samples in _together(map(_diagonal, tensors.readable)):
            found.update(samples)
        # Inference tensors cannot be edited outside of inference mode, and count nothing.
        versions = tuple(0 if t.is_inference() else t._version for t in tensors.found)
        found.update(repr([tensor.device for tensor in tensors.found]).encode())
        embedding: Any = model.get_input_embeddings()
        return cls(found.hexdigest(), versions, len(embedding.weight), len(tokenizer))

    def check_tokens(self, name: str, before: ModelState) -> None:
        """Refuse a model whose tokens are others than those in a state `before`.

        Raises:
            MemberError: naming the member `name`.
        """
        if (self.embeddings, self.tokens) != (before.embeddings, before.tokens):
            raise MemberError(
                f"member {name!r} has {self.embeddings} embeddings and {self.tokens} tokens; when "
                f"it joined the pack it had {before.embeddings} and {before.tokens}",
                hint="add tokens and resize embeddings first, then make the pack",
            )


def content_digest(model: nn.Module) -> str:
    """Digest of a model: its modules, their plain attributes, and all of its weights.

    It is equal in another process that loads the same files in the same way, and takes about as
    long as reading the weights once. Weights that are not in memory (offloaded to disk) enter by
    shape and type only.
    """
    tensors = _Tensors()
    found = xxhash.xxh3_128("\n".join(_describe(model, tensors)).encode())
    for tensor in tensors.readable:
        found.update(_bytes(tensor))
    return found.hexdigest()


_digests: WeakKeyDictionary[PreTrainedModel, tuple[ModelState, str]] = WeakKeyDictionary()
"""By model, its state when its content was read last, and the digest of its content."""


def digest_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """`content_digest`; the content is read again only if the model's state has changed."""
    now = ModelState.of(model, tokenizer)
    before, digest = _digests.get(model, (None, ""))
    if before != now:
        digest = content_digest(model)
        _digests[model] = now, digest
    return digest


def forget_digest(model: PreTrainedModel) -> None:
    """Read the content of a model again when its digest is asked for next."""
    _digests.pop(model, None)


class _Tensors:
    """The tensors of a model in the order in which they were found, each once."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def number(self, tensor: Tensor) -> int:
        """The tensor's number; tied weights have one number."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.found)
            self.found.append(tensor)
        return self._numbers[id(tensor)]

    @property
    def readable(self) -> Iterator[Tensor]:
        """The tensors whose content is in memory; of wrapped ones, the tensors inside."""
        for tensor in self.found:
            yield from _plain_tensors(tensor)


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor without gradient, or those that a quantized one is made of."""
    flatten: Callable[[], tuple[list[str], Any]] | None = getattr(
        tensor, "__tensor_flatten__", None
    )
    if flatten is not None:
        for name in flatten()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    elif not tensor.is_meta and tensor.layout == torch.strided and tensor.numel():
        yield tensor.detach()


def _describe(model: nn.Module, tensors: _Tensors) -> Iterator[str]:
    """Lines that describe a model, but for the content of its tensors, which are collected."""
    config = getattr(model, "config", None)
    if config is not None:
        facts = {k: v for k, v in config.to_dict().items() if k not in _NO_FACTS}
        yield json.dumps([facts, attention_of(config)], sort_keys=True, default=str)
    for name, module in model.named_modules():
        yield f"{name}: {type(module).__qualname__}"
        for key, value in vars(module).items():
            if key not in _MACHINERY and not key.endswith(_CHANGED_BY_FORWARD):
                yield f"{key}={_value(value, tensors)}"
        # Buffers that are not saved follow from the configuration; some change with the text.
        derived = module._non_persistent_buffers_set
        buffers = {k: b for k, b in module._buffers.items() if k not in derived}
        for key, tensor in (*module._parameters.items(), *buffers.items()):
            yield f"{key}={_value(tensor, tensors)}"
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield f"hook {_value(hook, tensors)}"


_NO_FACTS = ("_name_or_path", "transformers_version", "_commit_hash")
"""Entries of a configuration that no output depends on."""


def _value(value: Any, tensors: _Tensors) -> str:
    """A value as text that is equal in another process; objects by the name of their type."""
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        # A quantized parameter has its scales in attributes; the compiler marks what it has seen.
        known = getattr(value, "__dict__", None) or {}
        kept = {k: v for k, v in known.items() if not str(k).startswith("_dynamo")}
        own = _value(kept or None, tensors)
        shape = tuple(value.shape)
        return f"{tensors.number(value)} {type(value).__name__} {value.dtype} {shape} {own}"
    if isinstance(value, dict):
        items = (f"{_value(k, tensors)}: {_value(v, tensors)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, tensors) for item in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_value(item, tensors) for item in value)) + "}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _diagonal(tensor: Tensor) -> Tensor:
    """One value of every row of a tensor, in turn of every column."""
    width = tensor.shape[-1] if tensor.dim() > 1 else 1
    return tensor.reshape(-1)[:: max(1, width - 1)]


def _together(picked: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of many small tensors, by few copies from each device."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for values in picked:
        groups.setdefault((values.device, values.dtype), []).append(values)
    for group in groups.values():
        yield _bytes(torch.cat(group))


def _bytes(tensor: Tensor) -> memoryview:
    """The content of a tensor; what is in a processor's memory is not copied."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data
