"""Connects to a server, and checks that it has the model and the tokenizer of the settings."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from packfuse.errors import ConfigError, LoadError, MemberError
from packfuse.models.remote.client import Client
from packfuse.models.remote.protocols import PROTOCOLS, Protocol
from packfuse.models.remote.remote_member import CANDIDATES, RemoteMember
from packfuse.models.token_check import TEXT, difference
from packfuse.settings import MemberSettings
from packfuse.text.vocabulary import Vocabulary

FEW = 100
"""Number of candidates below which fusion loses much (dev/log.md)."""


def load_remote(
    name: str, member: MemberSettings, tokenizer: PreTrainedTokenizerBase
) -> RemoteMember:
    """A member whose model a server runs.

    Args:
        name: The member's name.
        member: Its settings, with a `url`.
        tokenizer: The model's tokenizer.

    Raises:
        ConfigError: for an unknown kind of server, or a key that is not in the environment.
        LoadError: if the server has another model or tokenizer, or cannot be reached.
        TokenizerError: if its tokens cannot be mapped to bytes.

    Warns:
        RuntimeWarning: if the server names few candidates.
    """
    client = Client(name, str(member.url), _key(member), member.timeout)
    try:
        protocol = _protocol(client, member)
        _check_model(protocol, member.model)
        vocabulary = Vocabulary(tokenizer, protocol.facts.columns)
        _check_tokens(protocol, vocabulary)
    except MemberError as error:
        raise LoadError(error.message, hint=error.hint) from error
    most = protocol.facts.max_candidates
    wanted = member.candidates or min(CANDIDATES, most or CANDIDATES)
    if most is not None and wanted > most:
        raise ConfigError(
            f"candidates={wanted}: {client.url} names at most {most}",
            hint=protocol.raise_limit or f"set candidates to {most}",
        )
    found = RemoteMember(name, protocol, vocabulary, wanted)
    if found.candidates < min(FEW, vocabulary.size):
        warnings.warn(
            f"member {name!r} names {found.candidates} tokens at each place; fewer than {FEW} "
            f"cost much of what fusion gains. {protocol.raise_limit}".rstrip(),
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _key(member: MemberSettings) -> str | None:
    if member.api_key_env is None:
        return None
    key = os.environ.get(member.api_key_env)
    if not key:
        raise ConfigError(
            f"the environment has no {member.api_key_env}", hint="export it with the server's key"
        )
    return key


def _protocol(client: Client, member: MemberSettings) -> Protocol:
    """The kind of server at an address, which has been probed."""
    if member.api != "auto" and member.api not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError(f"no kind of server is called {member.api!r}", hint=f"auto, {known}")
    kinds = list(PROTOCOLS) if member.api == "auto" else [member.api]
    for kind in kinds:
        protocol = PROTOCOLS[kind](client, member.model or None)
        if protocol.probe():
            return protocol
    raise client.error(f"no server of {', '.join(kinds)} answers there", "check url and api")


def _check_model(protocol: Protocol, model: str) -> None:
    """Refuse a server that has another model than the settings name.

    Raises:
        MemberError: naming both.
    """
    found = protocol.facts.model
    if model and model not in (found, Path(found).name, Path(found).stem):
        raise protocol.client.error(
            f"it has the model {found!r}, not {model!r}",
            "leave out model, or correct it; tokenizer says where the tokenizer is",
        )


def _check_tokens(protocol: Protocol, vocabulary: Vocabulary) -> None:
    """Compare the tokens of a text with the server's own.

    Raises:
        MemberError: if they differ, with the first difference.
    """
    theirs = protocol.tokenize(TEXT)
    ours = vocabulary.encode(TEXT)
    if theirs is None or theirs == ours:
        return
    raise protocol.client.error(
        f"its tokens are not those of the tokenizer: {difference(ours, theirs, 'there')}",
        "set tokenizer to that of the server's model",
    )
