"""Names of models, KV caches, attention kernels and compilation.

Tested with transformers 5.20 (oldest) to 5.24 (newest), torch 2.9 (oldest) to 2.14 (newest).
Features are looked up by name, not by version number. Differences within this range:

- 5.23 added `DummyLayer`, for layers without a KV cache. Before, `moe` and `mlp` layers had an
  empty `LinearAttentionLayer`, and layers that share keys and values had none.
- 5.24 renamed `past_key_values` to `cache`: in `forward`, in outputs and in `generate`. Its
  `generate` reads `is_linear` of caches, and assisted decoding reads `is_croppable`.
- 5.23 added an environment variable that makes sdpa attention use grouped kernels, 5.24 stopped
  copying keys and values for single tokens. `grouped_attention` needs neither.
- torch 2.13 added `isolate_recompiles`. Before, graphs are counted by the code of the function that
  is compiled, so each gets a copy of the code.
"""

from __future__ import annotations

import copy
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import Cache, PreTrainedModel, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations import sdpa_attention
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

# The KV cache of a call, by name.

_OLD_CACHE = "past_key_values"
CACHE = "cache" if any(f.name == "cache" for f in fields(CausalLMOutputWithPast)) else _OLD_CACHE
"""Name of the KV cache in `generate`, in models of transformers and in their outputs."""

CACHE_NAMES = ("cache", _OLD_CACHE)
"""Both names."""


def cache_argument(model: nn.Module) -> str | None:
    """Name of the KV cache in a model's `forward`; None if it has no argument of a known name.

    Remote code of a model may use the old name with any version of transformers.
    """
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in (CACHE, _OLD_CACHE) if name in parameters), None)


def name_cache(arguments: dict[str, Any]) -> None:
    """Rename the KV cache among arguments of `generate` to the name in this version, in place.

    Raises:
        TypeError: if both names are given.
    """
    other = _OLD_CACHE if CACHE != _OLD_CACHE else "cache"
    given = arguments.pop(other, None)
    if given is None:
        return
    if arguments.get(CACHE) is not None:
        raise TypeError(f"`{CACHE}` and `{other}` are one argument; pass one of them")
    arguments[CACHE] = given


def causal_output(logits: Tensor, cache: Any) -> CausalLMOutputWithPast:
    """A causal language model's output."""
    return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})


def output_cache(output: Any) -> Any:
    """The KV cache in an output of a model or of `generate`."""
    return getattr(output, CACHE)


# Layers of KV caches.

STATES = ("conv_states", "recurrent_states")
"""Attributes of a layer that map a state's number to its tensor or None."""

STATE_FLAGS = (
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)
"""Attributes of a layer that map a state's number to its metadata."""

_DUMMY: Any = getattr(cache_utils, "DummyLayer", None)
_SUPPORTED = (
    DynamicLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    *([_DUMMY] if _DUMMY else []),
)


def is_supported(layer: Any) -> bool:
    """Whether rows of a cache layer can be stacked, copied and rolled back."""
    return type(layer) in _SUPPORTED


def is_dummy(layer: Any) -> bool:
    """Whether a cache layer is the placeholder of a model layer without a cache."""
    return _DUMMY is not None and isinstance(layer, _DUMMY)


def is_stateful(layer: Any) -> bool:
    """Whether a cache layer has convolutional or recurrent states."""
    return hasattr(layer, STATES[0])


def unbounded(layer: Any) -> Any:
    """A layer that keeps all tokens, in place of a sliding-window layer; any other layer itself."""
    if type(layer) is DynamicSlidingWindowLayer:
        whole: Any = DynamicLayer()
    elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
        whole = LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    else:
        return layer
    whole.is_sliding, whole.sliding_window = True, layer.sliding_window
    return whole


class RowsCache(Cache):
    """Base class of a cache without layers of tensors, for `generate`.

    It can be cropped to any length at any time. It is not a linear-attention cache: `generate`
    treats a cache as without length if all of its layers are linear, which is true of no layers.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self) -> None:
        """A cache with no layers."""
        super().__init__(layers=[])

    @property
    def is_linear(self) -> list[bool]:
        """Flags of one layer with a length, for `generate`."""
        return [False]

    def activate_past_recording(self) -> None:
        """Does nothing: the cache can always be cropped."""


# Facts about models.


def causal_architectures() -> Mapping[str, str]:
    """Class names of causal language models in transformers, by model type."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def composite_architectures() -> Mapping[str, str]:
    """Class names of models that read text and other media, by model type."""
    return MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def hub_file(repository: str, name: str, **hub: Any) -> str | None:
    """The path of a repository's file, downloaded if needed; None if it is not to be had."""
    quiet = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    return cached_file(repository, name, **dict.fromkeys(quiet, False), **hub)


def attention_of(config: Any) -> str | None:
    """The attention implementation that a text configuration names."""
    name: str | None = config._attn_implementation
    return name


def tekken_tokenizer(path: str) -> Any:
    """The fast tokenizer of a file `tekken.json`."""
    return convert_tekken_tokenizer(path)


def byte_characters() -> Mapping[int, str]:
    """The character that byte-level tokenizers write for each byte."""
    found: Mapping[int, str] = bytes_to_unicode()
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks or forward pre-hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_any_hooks(model: nn.Module) -> bool:
    """Whether a model or a module inside it has forward hooks or forward pre-hooks."""
    return any(has_hooks(module) for module in model.modules())


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """A module's direct children by name; a module with two names is listed under both."""
    return module._modules


def with_child(model: PreTrainedModel, name: str, child: nn.Module) -> PreTrainedModel:
    """A shallow twin of a model in which one child is replaced.

    Only the module object and its dict of children are copied: all other children, parameters,
    buffers and hooks are the same objects in both, and the model itself is not altered. Setting
    another attribute or child of the twin has no effect on the model, unless the value is a shared
    dict that is changed in place. Functions that are bound to the model (a `forward` set on the
    object) still use the model and not the twin.
    """
    twin = copy.copy(model)
    twin._modules = {**model._modules, name: child}
    return twin


# Attention.

_original_choice: Callable[..., bool] = sdpa_attention.use_gqa_in_sdpa


def _grouped_on_cpu(attention_mask: Tensor | None, key: Tensor, value: Tensor) -> bool:
    """Replaces `use_gqa_in_sdpa`: whether attention heads share keys and values in the kernel."""
    return key.device.type == "cpu" or _original_choice(attention_mask, key, value)


class _Users:
    """Number of threads inside `grouped_attention`."""

    count = 0
    lock = threading.Lock()

    @classmethod
    def add(cls, change: int) -> None:
        with cls.lock:
            cls.count += change
            sdpa_attention.use_gqa_in_sdpa = _grouped_on_cpu if cls.count else _original_choice

    @classmethod
    def renew_lock(cls) -> None:
        """In a forked child nobody would release a lock that another thread held."""
        cls.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Users.renew_lock)


@contextmanager
def grouped_attention() -> Iterator[None]:
    """A context in which masked attention on processors does not copy keys and values.

    With a mask, transformers repeats keys and values for every head of a group, because CUDA
    kernels are slow otherwise. Kernels on processors give the same results without the copies. The
    context also applies to other threads that run models at the same time.
    """
    _Users.add(1)
    try:
        yield
    finally:
        _Users.add(-1)


# torch.compile.

COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)
"""Errors of torch.compile: a graph cannot be compiled, or there are too many graphs."""


def isolates_graphs() -> bool:
    """Whether torch.compile can limit the number of graphs for each function separately."""
    return "isolate_recompiles" in inspect.signature(torch.compile).parameters


def compile_hindrance(model: Any) -> str | None:
    """Why a model's forward pass cannot be one graph of its own; None if it can."""
    quantizer = getattr(model, "hf_quantizer", None)
    if not model._can_compile_fullgraph:
        return f"transformers does not compile {type(model).__name__}"
    if quantizer is not None and not quantizer.is_compileable:
        return f"{type(quantizer).__name__} cannot be compiled"
    return None


def capture_hindrance(model: Any) -> str | None:
    """Why a model's forward pass cannot be captured as a CUDA graph; None if it may be."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_compileable:
        return f"{type(quantizer).__name__} cannot be captured"
    return None


def compiled_call(model: nn.Module, recompile_limit: int, **options: Any) -> Callable[..., Any]:
    """A model's call, compiled to one graph for each kind of input.

    Graphs of other functions do not count against the limit.

    Args:
        model: The model.
        recompile_limit: Most graphs.
        options: Further options of torch.compile.
    """
    options = {"fullgraph": True, "options": {"guard_filter_fn": _guards}, **options}
    if isolates_graphs():
        own: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": recompile_limit}
        return torch.compile(model.__call__, **options, **own)

    def call(**inputs: Any) -> Any:
        return model(**inputs)

    # A function with a copy of the code, by which graphs are counted.
    copied = FunctionType(
        call.__code__.replace(), call.__globals__, closure=call.__closure__, name=call.__name__
    )
    copied.__kwdefaults__ = call.__kwdefaults__
    compiled = torch.compile(copied, **options)

    def limited(**inputs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=recompile_limit):
            return compiled(**inputs)

    return limited


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Which guards of a graph are kept: not those on the model classes known to transformers."""
    return ["_CAN_RECORD_REGISTRY" not in entry.name for entry in entries]


def mark_dynamic(tensor: Tensor, dim: int) -> None:
    """Let a size of a graph's input vary between calls, if the graph allows it."""
    torch._dynamo.maybe_mark_dynamic(tensor, dim)


# Operations of torch.


def abandon_capture(device: torch.device, pool: Any) -> None:
    """Clean up after the capture of a CUDA graph that failed.

    torch leaves its allocator and its random numbers in the middle of the capture: later, memory
    can neither be released nor captured into, and sampling on the device raises an error.

    Args:
        device: The device.
        pool: The memory pool of the capture.
    """
    with suppress(AttributeError, RuntimeError):
        # Raises if the capture itself has ended, with an error of the code inside it.
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    with suppress(AttributeError, IndexError, RuntimeError):
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer by oneDNN, float32 on processors: `[P, in]` to `[P, out]`."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return found


def has_int8_linear() -> bool:
    """Whether this torch has the kernel of `int8_linear`."""
    return hasattr(torch, "_weight_int8pack_mm")


def int8_linear(hidden: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """A linear layer with int8 weights `[out, in]`, scaled by output: `[P, in]` to `[P, out]`.

    Inputs, scales and outputs are bfloat16.
    """
    found: Tensor = torch._weight_int8pack_mm(hidden, weight, scales)
    return found
