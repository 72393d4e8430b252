"""Loading members from hub ids, folders, GGUF files or loaded (model, tokenizer) pairs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from packfuse.errors import ConfigError, LoadError, PackError
from packfuse.models.compute.threads import release_openmp_threads
from packfuse.models.devices import check_devices, check_dtype, without_weights
from packfuse.models.hf_member import HFMember
from packfuse.models.loading.checkpoint import check_headroom, weights_on
from packfuse.models.loading.engine import engine_of
from packfuse.models.loading.gguf_model import load_gguf, load_in_place
from packfuse.models.loading.given import given_pairs
from packfuse.models.loading.pretrained import load_model, load_tokenizer
from packfuse.models.loading.quantization import make_quantization
from packfuse.models.loading.self_test import self_test
from packfuse.models.loading.source import Source, shortened
from packfuse.models.member import Member
from packfuse.models.remote import load_remote
from packfuse.settings import LLAMA_CPP, OTHER_NAMES, LoadSettings, MemberSettings, PackConfig
from packfuse.text.vocabulary import Vocabulary

M = TypeVar("M", bound=Member)


def load_given(models: Sequence[Any]) -> list[HFMember] | None:
    """Members of loaded (model, tokenizer) pairs; None if `models` are names.

    Raises:
        ConfigError: if `models` is not a list, or mixes pairs and names.
        LoadError: for a model that cannot be a member.
    """
    pairs = given_pairs(models)
    if pairs is None:
        return None
    names = unique_names([short_name(str(model.name_or_path or "member")) for model, _ in pairs])
    return [wrap(name, *pair) for name, pair in zip(names, pairs, strict=True)]


def member_entry(model: Any) -> dict[str, Any]:
    """The fields of `MemberSettings` for a hub id, a path, or a mapping of those fields.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(model, Mapping):
        return dict(model)
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"{model!r} is not a model", hint="name it, or write (model, tokenizer) if it is loaded"
        )
    return {"model": os.fspath(model)}


def refuse_loading(overrides: Iterable[str]) -> None:
    """Raise an error for settings that have no effect on loaded models.

    Raises:
        ConfigError: if there are any; the message names them.
    """
    useless = sorted({*overrides} & {*LoadSettings.model_fields, *OTHER_NAMES})
    if useless:
        raise ConfigError(
            f"{', '.join(useless)} would have no effect on models that are loaded already",
            hint="set them when you load the models",
        )


def load_members(
    config: PackConfig, shared: MutableMapping[str, Member] | None = None
) -> list[Member]:
    """Load every member of a pack.

    Args:
        config: The pack.
        shared: Members that other packs have loaded, by how they were loaded. They are used, and
            those that are loaded here are added.

    Raises:
        LoadError: if a member fails to load; those loaded before it are freed.
        ConfigError: for settings that nothing can be loaded with.
    """
    names = member_names(config)
    for member in config.members:  # before anything is loaded
        loading_arguments(member, config)
        engine_of(member, config)
    # Servers are asked first: what is wrong with one is known before weights are loaded.
    order = sorted(range(len(names)), key=lambda k: config.members[k].url is None)
    found: dict[int, Member] = {}
    known: MutableMapping[str, Member] = {} if shared is None else shared
    _check_headroom(names, config, known)
    try:
        with _collector_paused():
            for k in order:
                found[k] = _loaded(names[k], config.members[k], config, known)
                _refuse_twice([own.facts.source for own in found.values() if own.elsewhere])
    except BaseException:
        found.clear()
        gc.collect()
        raise
    return [found[k] for k in range(len(names))]


def _refuse_twice(sources: Sequence[str]) -> None:
    """Refuse one model of one server as two members.

    Raises:
        ConfigError: naming the address and the model.
    """
    if twice := next((source for source in sources if sources.count(source) > 1), None):
        raise ConfigError(
            f"two members are at {twice}, with the same model", hint="leave one of them out"
        )


def _loaded(
    name: str, member: MemberSettings, config: PackConfig, shared: MutableMapping[str, Member]
) -> Member:
    """A member, which is loaded unless another pack has loaded the same model in the same way."""
    key = _loading_key(member, config)
    if key not in shared:
        shared[key] = load_member(name, member, config)
    found = shared[key]
    return found if found.name == name else found.renamed(name)


def _loading_key(member: MemberSettings, config: PackConfig) -> str:
    """What decides how a member is loaded."""
    return repr(({**member.values, "name": None}, LoadSettings.of(config).values))


def _check_headroom(names: Sequence[str], config: PackConfig, known: Mapping[str, Member]) -> None:
    """Refuse members for whose weights a device has no room; those that are loaded need none."""
    wanted: dict[str, tuple[torch.device, int]] = {}
    for name, member in zip(names, config.members, strict=True):
        elsewhere = member.url or member.ray is not None
        placed = member.device_map or config.device_map
        if elsewhere or placed is None or _loading_key(member, config) in known:
            continue
        how = loading_arguments(member, config)
        try:
            if engine_of(member, config) != LLAMA_CPP and (
                found := weights_on(Source.of(member, config), how)
            ):
                wanted[name] = found
        except PackError:
            continue  # it is refused by its name when it is loaded
    check_headroom(wanted)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection: parsing a tokenizer makes a million objects, all of them in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_member(name: str, member: MemberSettings, pack: LoadSettings) -> Member:
    """Load one member, and test it.

    Args:
        name: Its name in the pack.
        member: Its settings, which take precedence.
        pack: Settings of the pack.

    Raises:
        LoadError: if it cannot be loaded; the message names the member and the reason.
        TokenizerError: if its tokens cannot be mapped to bytes.
        ConfigError: for settings that nothing can be loaded with.
    """
    if member.ray is not None:
        raise ConfigError(
            f"member {name!r} is to be loaded by a node of a cluster (ray)",
            hint="packfuse deploy and packfuse batch --workers do so; or leave ray out",
        )
    how = loading_arguments(member, pack)
    engine = engine_of(member, pack)
    try:
        if member.url:
            return load_remote(name, member, lambda: tokenizer_for_server(member, pack))
        source = Source.of(member, pack)
        if engine == LLAMA_CPP:
            return _checked(load_in_place(name, source, member))
        if source.gguf:
            model, tokenizer = load_gguf(source, how, member.tokenizer)
        else:
            model, base = load_model(source, how, unsafe=pack.unsafe_weights)
            tokenizer = load_tokenizer(source, member.tokenizer, base)
    except PackError as error:
        raise type(error)(_place(name, member, error.message), hint=error.hint) from error
    except Exception as error:  # libraries and remote code raise all kinds of errors
        reason = shortened(str(error)) or type(error).__name__
        raise LoadError(_place(name, member, reason), hint=_next_step(error)) from error
    return wrap(name, model, tokenizer)


def tokenizer_for_server(member: MemberSettings, pack: LoadSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model in a server, which has to be here.

    Raises:
        ConfigError: if the settings name none.
        Exception: what the libraries raise.
    """
    place = member.tokenizer or member.model
    if not place:
        raise ConfigError("a model in a server needs its tokenizer here", hint="set tokenizer")
    source = Source.of(member.replace(model=place), pack)
    return load_tokenizer(source, None, source)


def _place(name: str, member: MemberSettings, reason: str) -> str:
    return (
        f"member {name!r} cannot be loaded from {shortened(member.url or member.model)!r}: {reason}"
    )


def loading_arguments(member: MemberSettings, pack: LoadSettings) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the weights, those of the member before the pack's.

    Raises:
        ConfigError: for an unknown dtype, a device that is not there, or an unusable quantization.
    """
    names = ("dtype", "device_map", "max_memory", "offload_folder", "attn_implementation")
    found = {name: getattr(member, name) or getattr(pack, name) for name in names}
    check_dtype(found["dtype"])
    check_devices(found["device_map"])
    settings = pack.quantization if member.quantization is None else member.quantization
    found["quantization_config"] = make_quantization(settings)
    return {name: value for name, value in found.items() if value is not None}


def wrap(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HFMember:
    """A member from a loaded model and its tokenizer, tested with a few tokens.

    Raises:
        LoadError: if the model's weights are not loaded, or it cannot be read in steps.
        TokenizerError: if its tokens cannot be mapped to bytes.
    """
    if empty := without_weights(model):
        raise LoadError(f"member {name!r}: its weights are not loaded, for example {empty}")
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    end_ids = [ends] if isinstance(ends, int) else list(ends or ())
    vocab_size = int(model.config.get_text_config().vocab_size)
    return _checked(HFMember(name, model, Vocabulary(tokenizer, vocab_size, end_ids)))


def _checked(member: M) -> M:
    self_test(member)
    release_openmp_threads()
    return member


def short_name(model: str) -> str:
    """The last part of a hub id or a path.

    Example:
        >>> short_name("google/gemma-3-270m")
        'gemma-3-270m'
    """
    return Path(model.rstrip("/")).name.removesuffix(".gguf") or model


def member_names(config: PackConfig) -> list[str]:
    """What the members of a pack are called."""
    return unique_names([m.name or short_name(m.model or str(m.url)) for m in config.members])


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number appended to each that occurred before.

    Example:
        >>> unique_names(["a", "b", "a"])
        ['a', 'b', 'a-2']
    """
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def _next_step(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code from its repository; trust_remote_code=True runs it at your risk"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "use a smaller dtype, a quantization, or device_map='auto'"
    if isinstance(error, ImportError):
        return "install the package that it names"
    return "check the id or the path; `packfuse check` inspects models without loading them"
