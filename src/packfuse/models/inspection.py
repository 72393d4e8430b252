"""Checks without loading or downloading weights whether models can form a pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig

from packfuse.errors import LoadError, PackError, UnsupportedError
from packfuse.hf_compat.models import causal_architectures
from packfuse.models.cache_size import CacheSize, cache_size
from packfuse.models.kv.fixed_shape import unsupported_reason
from packfuse.models.kv.store import new_cache
from packfuse.models.llama_cpp import open_vocabulary
from packfuse.models.loading import (
    load_model,
    load_tokenizer,
    loading_arguments,
    short_name,
    tokenizer_for_server,
    unique_names,
)
from packfuse.models.loading.adapters import find_adapter
from packfuse.models.loading.architecture import auto_class
from packfuse.models.loading.checkpoint import checkpoint_size
from packfuse.models.loading.engine import engine_of
from packfuse.models.loading.gguf.fields import main_type
from packfuse.models.loading.gguf_model import gguf_in_place
from packfuse.models.loading.source import Source, shortened
from packfuse.models.remote import PeerMember, RemoteMember, load_remote
from packfuse.models.window import context_window
from packfuse.settings import LLAMA_CPP, LoadSettings, MemberSettings
from packfuse.text.vocabulary import Vocabulary


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReport(_Report):
    """Facts about one model; None for those that could not be read.

    Attributes:
        model: Hub id, folder, GGUF file, or the address of a server.
        name: Its name as a member of a pack.
        architecture: Name of its class in transformers.
        causal: Whether it is a causal language model.
        parameters: Number of parameters.
        memory_bytes: Bytes of its weights at the requested dtype; 0 for those in a server, which
            take no memory here.
        context_window: The most tokens that it can read.
        chat_template: Whether its tokenizer has a chat template.
        vocabulary_size: Number of tokens, control tokens included.
        fast_tokenizer: Whether the bytes of its tokens are known.
        scored_places: At how many places of a prompt its server is asked for scores, from which
            weights are fitted; None for as many as are wanted.
        candidates: How many tokens its server names at each place; None for all of them.
        engine: What runs it: transformers, llama.cpp, or the kind of its server.
        cache: Bytes of its KV cache; None unless asked for, and under other engines.
        static_steps: Whether it decodes in captured steps on CUDA (`PackSettings.steps`).
        eager_reason: Why it does not.
        problems: Reasons why it cannot join a pack; empty if it can.
    """

    model: str
    name: str
    architecture: str | None = None
    causal: bool | None = None
    parameters: int | None = None
    memory_bytes: int | None = None
    context_window: int | None = None
    chat_template: bool | None = None
    vocabulary_size: int | None = None
    fast_tokenizer: bool | None = None
    scored_places: int | None = None
    candidates: int | None = None
    engine: str | None = None
    cache: CacheSize | None = None
    static_steps: bool | None = None
    eager_reason: str | None = None
    problems: list[str] = []


class PairReport(_Report):
    """How much two vocabularies have in common; tokens are compared by their bytes.

    Attributes:
        models: Names of the two models.
        overlap: Number of byte strings in both, divided by the number in either.
        twins: By model, the share of its tokens whose bytes are also a token of the other.
        same: Whether both write every text with the same token ids, so that no alignment is needed.
    """

    models: tuple[str, str]
    overlap: float
    twins: dict[str, float]
    same: bool


class AnswerMemory(_Report):
    """Memory of answers that are decoded at the same time, beside the weights.

    Attributes:
        context: Tokens of each sequence, prompt and answer together.
        rows: Number of answers.
        cache_bytes: Bytes of the KV caches of all members whose size is known.
        unknown: Members whose KV cache is not known.
    """

    context: int
    rows: int
    cache_bytes: int
    unknown: list[str]


class PackReport(_Report):
    """The result of `packfuse check`.

    Attributes:
        models: The models, in the order of the arguments.
        pairs: All pairs of models whose tokenizers could be read.
        memory_bytes: Bytes of the weights of all models that are known; None if none is.
        answers: What answers need beside the weights; None unless asked for.
        verdicts: Conclusions in plain sentences.
        ok: Whether all models can join one pack.
    """

    models: list[ModelReport]
    pairs: list[PairReport]
    memory_bytes: int | None
    answers: AnswerMemory | None = None
    verdicts: list[str]
    ok: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """The report on one model, and its vocabulary; None if that could not be read."""

    report: ModelReport
    vocabulary: Vocabulary | None


def inspect_model(
    member: MemberSettings, pack: LoadSettings | None = None, *, caches: bool = False
) -> Inspected:
    """Read a model's configuration, tokenizer and weight headers.

    Errors are listed in `problems` of the report, not raised.

    Args:
        member: Settings of the member, which name the model.
        pack: How it would be loaded, where the settings of the member do not say.
        caches: Whether the size of its KV cache is computed, which takes seconds.
    """
    pack = pack or LoadSettings()
    facts: dict[str, Any] = {}
    problems: list[str] = []
    vocabulary = None
    try:
        if member.url:
            remote = load_remote(member.url, member, lambda: tokenizer_for_server(member, pack))
            vocabulary = remote.vocabulary
            facts |= _served_facts(remote)
            return _inspected(member, facts, problems, vocabulary)
        how = loading_arguments(member, pack)
        source, engine = Source.of(member, pack), engine_of(member, pack)
        facts["engine"] = engine
        if engine == LLAMA_CPP:
            facts_in_place, vocabulary = _in_place(source, member)
            return _inspected(member, facts | facts_in_place, problems, vocabulary)
        adapter = find_adapter(source)
        base = adapter.base if adapter else source
        config = AutoConfig.from_pretrained(base.place, **base.arguments)
        facts |= _architecture(config, problems)
        tokenizer = load_tokenizer(source, member.tokenizer, base)
        facts |= _tokenizer_facts(config, tokenizer)
        vocabulary = Vocabulary(tokenizer, int(config.get_text_config().vocab_size))
        facts["fast_tokenizer"] = True
        facts |= _steps(config, how)
        size = checkpoint_size(base)
        memory = size.memory_bytes(how["dtype"])
        facts |= {"parameters": size.parameters, "memory_bytes": memory}
        if not problems and base.folder and not base.gguf and not adapter:
            # Without memory for the weights: their names and shapes are compared.
            load_model(source, {"device_map": "meta"}, unsafe=pack.unsafe_weights)
        if caches and not problems:
            facts["cache"] = cache_size(config, how["dtype"])
    except PackError as error:
        problems.append(str(error))
    except Exception as error:  # broken repositories raise all kinds of errors
        problems.append(f"{type(error).__name__}: {shortened(str(error))}")
    return _inspected(member, facts, problems, vocabulary)


def _inspected(
    member: MemberSettings, facts: dict[str, Any], problems: list[str], known: Vocabulary | None
) -> Inspected:
    place = member.url or member.model
    name = member.name or short_name(member.model or place)
    return Inspected(ModelReport(model=place, name=name, problems=problems, **facts), known)


def _in_place(source: Source, member: MemberSettings) -> tuple[dict[str, Any], Vocabulary]:
    """What is said of a GGUF file that llama.cpp runs, and its vocabulary."""
    found = gguf_in_place(source, member.tokenizer)
    llama, vocabulary = open_vocabulary(found.paths[0], found.tokenizer, found.ends)
    sizes = [header.nbytes for header in found.headers]
    return {
        "architecture": f"{llama.architecture} ({main_type(found.headers)})",
        "causal": True,
        "parameters": sum(header.parameters for header in found.headers),
        "memory_bytes": None if None in sizes else sum(filter(None, sizes)),
        "context_window": found.headers[0].fields.get(f"{llama.architecture}.context_length"),
        "chat_template": bool(found.tokenizer.chat_template),
        "vocabulary_size": len(found.tokenizer),
        "fast_tokenizer": True,
    }, vocabulary


def _served_facts(remote: RemoteMember | PeerMember) -> dict[str, Any]:
    return {
        "architecture": f"{remote.model_name} ({remote.api})",
        "causal": True,
        "parameters": remote.facts.parameters,
        "memory_bytes": 0,
        "context_window": remote.context_window,
        "chat_template": bool(remote.tokenizer.chat_template),
        "vocabulary_size": len(remote.tokenizer),
        "fast_tokenizer": True,
        "engine": remote.api,
        "scored_places": remote.max_scored_places,
        "candidates": remote.named_tokens,
    }


def _architecture(config: Any, problems: list[str]) -> dict[str, Any]:
    causal = auto_class(config) is not None
    # A GGUF file names the model type, and no architecture.
    usual = causal_architectures().get(config.model_type, type(config).__name__)
    own = str((config.architectures or [usual])[0])
    if not causal:
        problems.append(f"it is a {own}, not a causal language model")
    return {"architecture": own, "causal": causal}


def _steps(config: Any, how: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the model decodes in captured steps on CUDA, as far as its configuration tells."""
    try:
        reason = unsupported_reason(new_cache(config), config, how.get("attn_implementation"))
    except UnsupportedError:
        return {}  # it is not loaded either, which has its own message
    if reason is None and isinstance(how.get("device_map"), Mapping):
        reason = "its weights may be on several devices"
    return {"static_steps": reason is None, "eager_reason": reason}


def _tokenizer_facts(config: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "context_window": context_window(config, tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "vocabulary_size": len(tokenizer),
        "fast_tokenizer": bool(tokenizer.is_fast),
    }


def report(inspected: Sequence[Inspected], context: int | None = None, rows: int = 1) -> PackReport:
    """The report on several models together.

    Args:
        inspected: The models.
        context: Tokens of a sequence, for the memory of answers.
        rows: Number of answers that are decoded at the same time.

    Raises:
        LoadError: if there are none.
    """
    if not inspected:
        raise LoadError("there are no models to check", hint="name at least one")
    names = unique_names([one.report.name for one in inspected])
    models = [
        one.report.model_copy(update={"name": name})
        for one, name in zip(inspected, names, strict=True)
    ]
    read = [
        (model.name, one.vocabulary)
        for one, model in zip(inspected, models, strict=True)
        if one.vocabulary
    ]
    pairs = [pair(*one, *other) for one, other in combinations(read, 2)]
    sizes = [model.memory_bytes for model in models if model.memory_bytes is not None]
    return PackReport(
        models=models,
        pairs=pairs,
        memory_bytes=sum(sizes) if sizes else None,
        answers=None if context is None else _answers(models, context, rows),
        verdicts=_verdicts(models, pairs),
        ok=not any(model.problems for model in models),
    )


def _answers(models: Sequence[ModelReport], context: int, rows: int) -> AnswerMemory:
    here = [model for model in models if model.memory_bytes != 0]
    return AnswerMemory(
        context=context,
        rows=rows,
        cache_bytes=sum(model.cache.total(context, rows) for model in here if model.cache),
        unknown=[model.name for model in here if model.cache is None],
    )


def pair(one_name: str, one: Vocabulary, other_name: str, other: Vocabulary) -> PairReport:
    """Compare two vocabularies by the bytes of their tokens."""
    common = one.ids_of.keys() & other.ids_of.keys()
    either = one.ids_of.keys() | other.ids_of.keys()

    def share(own: Vocabulary) -> float:
        twins = sum(len(own.ids_of[token]) for token in common)
        return twins / max(1, sum(map(len, own.ids_of.values())))

    return PairReport(
        models=(one_name, other_name),
        overlap=len(common) / max(1, len(either)),
        twins={one_name: share(one), other_name: share(other)},
        same=one.text_digest == other.text_digest,
    )


def _verdicts(models: list[ModelReport], pairs: list[PairReport]) -> list[str]:
    bad = [model.name for model in models if model.problems]
    if bad:
        return [f"{', '.join(bad)} cannot join a pack."]
    count = len(models)
    found = ["It can be a pack of one." if count == 1 else f"These {count} models make a pack."]
    without_template = [model.name for model in models if not model.chat_template]
    if without_template and len(without_template) == count:
        found.append("None has a chat template: chats are formatted as plain text ('User: ...').")
    elif without_template:
        found.append(
            f"Members without a chat template ({', '.join(without_template)}) read chats as plain "
            "text; the other members decide where a turn ends."
        )
    shortest = min(models, key=lambda model: model.context_window or 0)
    window = f"{shortest.context_window or 0:,} tokens, the window of {shortest.name}"
    found.append(f"Together they read up to {window}." if count > 1 else f"It reads {window}.")
    shared = [" and ".join(item.models) for item in pairs if item.same]
    found += [f"{both} share a tokenizer: no alignment is needed between them." for both in shared]
    return found
