"""Looks at models before they are loaded, or even fetched: do they make a pack?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig, AutoTokenizer

from packfuse.errors import LoadError, PackError
from packfuse.hf_compat import causal_architectures
from packfuse.models.checkpoint import checkpoint_size
from packfuse.models.hf_member import context_window
from packfuse.models.loading import is_causal, short_name, split_gguf, unique_names
from packfuse.settings import MemberSettings
from packfuse.text.vocabulary import Vocabulary


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReport(_Plain):
    """One model; None where it is not known.

    Attributes:
        model: Hub id, folder or GGUF file.
        name: What a pack would call it.
        architecture: Its class in transformers.
        causal: Whether it is a causal language model.
        parameters: How many numbers its weights are.
        memory_bytes: What they take at the dtype asked for.
        context_window: Tokens that it can read.
        chat_template: Whether it can chat by itself.
        vocabulary_size: Tokens, control tokens included.
        fast_tokenizer: Whether its tokens can be read as bytes.
        problems: Why it cannot join a pack; empty if it can.
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
    problems: list[str] = []


class PairReport(_Plain):
    """How much two vocabularies have in common, compared by the bytes of their tokens.

    Attributes:
        overlap: Byte strings in both, as a share of those in either.
        twins: By model, the share of its tokens whose bytes are a token of the other, too.
        same: Whether they are one tokenizer, so that nothing has to be carried.
    """

    models: tuple[str, str]
    overlap: float
    twins: dict[str, float]
    same: bool


class PackReport(_Plain):
    """What `packfuse check` found.

    Attributes:
        models: In the order asked for.
        pairs: Every two whose tokenizers could be read.
        memory_bytes: Weights of all models together, as far as known.
        verdicts: What follows, in words.
        ok: Whether all of them can join one pack.
    """

    models: list[ModelReport]
    pairs: list[PairReport]
    memory_bytes: int
    verdicts: list[str]
    ok: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """One model that was looked at, with its vocabulary if that could be read."""

    report: ModelReport
    vocabulary: Vocabulary | None


def inspect_model(
    member: MemberSettings, dtype: str = "auto", trust_remote_code: bool = False
) -> Inspected:
    """Look at one model's configuration, tokenizer and weight headers; nothing is raised.

    Args:
        member: Which model.
        dtype: What it would be loaded as, where the member does not say.
        trust_remote_code: Run code that comes with the tokenizer or the configuration.
    """
    folder, gguf = split_gguf(member.model)
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if member.revision:
        shared["revision"] = member.revision
    if gguf:
        shared["gguf_file"] = gguf
    facts: dict[str, Any] = {}
    problems: list[str] = []
    vocabulary = None
    try:
        config = AutoConfig.from_pretrained(folder, **shared)
        facts |= _architecture(config, problems)
        tokenizer = AutoTokenizer.from_pretrained(member.tokenizer or folder, **shared)
        facts |= _tokenizer_facts(config, tokenizer)
        vocabulary = Vocabulary(tokenizer, int(config.get_text_config().vocab_size))
        facts["fast_tokenizer"] = True
        facts |= _weights(member, dtype)
    except PackError as error:
        problems.append(str(error))
    except Exception as error:  # whatever a broken repository makes of the libraries
        problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    name = member.name or short_name(member.model)
    report = ModelReport(model=member.model, name=name, problems=problems, **facts)
    return Inspected(report, vocabulary)


def _architecture(config: Any, problems: list[str]) -> dict[str, Any]:
    causal = is_causal(config)
    # A GGUF file names its kind of model alone.
    usual = causal_architectures().get(config.model_type, type(config).__name__)
    own = str((config.architectures or [usual])[0])
    if not causal:
        problems.append(f"it is a {own}, not a causal language model")
    return {"architecture": own, "causal": causal}


def _tokenizer_facts(config: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "context_window": context_window(config, tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "vocabulary_size": len(tokenizer),
        "fast_tokenizer": bool(tokenizer.is_fast),
    }


def _weights(member: MemberSettings, dtype: str) -> dict[str, Any]:
    found = checkpoint_size(member.model, member.revision)
    memory = found.memory_bytes(member.dtype or dtype)
    return {"parameters": found.parameters, "memory_bytes": memory}


def report(seen: Sequence[Inspected]) -> PackReport:
    """Put together what was seen of each model.

    Raises:
        LoadError: for no models.
    """
    if not seen:
        raise LoadError("there are no models to look at", hint="name at least one")
    names = unique_names([one.report.name for one in seen])
    models = [
        one.report.model_copy(update={"name": name}) for one, name in zip(seen, names, strict=True)
    ]
    read = [
        (model.name, one.vocabulary)
        for one, model in zip(seen, models, strict=True)
        if one.vocabulary
    ]
    pairs = [pair(*one, *other) for one, other in combinations(read, 2)]
    return PackReport(
        models=models,
        pairs=pairs,
        memory_bytes=sum(model.memory_bytes or 0 for model in models),
        verdicts=_verdicts(models, pairs),
        ok=not any(model.problems for model in models),
    )


def pair(one_name: str, one: Vocabulary, other_name: str, other: Vocabulary) -> PairReport:
    """Compare two vocabularies by bytes."""
    common = one.ids_of.keys() & other.ids_of.keys()
    either = one.ids_of.keys() | other.ids_of.keys()

    def share(own: Vocabulary) -> float:
        twins = sum(len(own.ids_of[token]) for token in common)
        return twins / max(1, sum(map(len, own.ids_of.values())))

    return PairReport(
        models=(one_name, other_name),
        overlap=len(common) / max(1, len(either)),
        twins={one_name: share(one), other_name: share(other)},
        same=one.fingerprint == other.fingerprint,
    )


def _verdicts(models: list[ModelReport], pairs: list[PairReport]) -> list[str]:
    bad = [model.name for model in models if model.problems]
    if bad:
        return [f"{', '.join(bad)} cannot join a pack."]
    count = len(models)
    found = ["It can be a pack of one." if count == 1 else f"These {count} models make a pack."]
    silent = [model.name for model in models if not model.chat_template]
    if silent and len(silent) == count:
        found.append("None has a chat template: chats are written plainly ('User: ...').")
    elif silent:
        found.append(
            f"Without a chat template ({', '.join(silent)}) a member reads chats written plainly, "
            "and leaves the end of a turn to the others."
        )
    shortest = min(models, key=lambda model: model.context_window or 0)
    window = f"{shortest.context_window or 0:,} tokens, the window of {shortest.name}"
    found.append(f"Together they read up to {window}." if count > 1 else f"It reads {window}.")
    shared = [" and ".join(item.models) for item in pairs if item.same]
    found += [f"{both} share a tokenizer: nothing is lost between them." for both in shared]
    return found
