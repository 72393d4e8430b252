"""Connects to a server, and checks that it has the model and the tokenizer of the settings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from packfuse.errors import ConfigError, LoadError, ServerError
from packfuse.models.remote.client import Client
from packfuse.models.remote.peer import PEER, PeerMember, card_of, fetched_tokenizer, wrap_peer
from packfuse.models.remote.peer.exchange import Transfer
from packfuse.models.remote.peer.wire import MemberCard
from packfuse.models.remote.protocols import PROTOCOLS, Protocol
from packfuse.models.remote.remote_member import CANDIDATES, RemoteMember
from packfuse.models.remote.rows import FEW
from packfuse.models.remote.tokens import check_tokens
from packfuse.settings import MemberSettings
from packfuse.text.vocabulary import Vocabulary

KINDS = (*PROTOCOLS, PEER)
"""Kinds of servers, in the order in which "auto" tries them."""


def load_remote(
    name: str, member: MemberSettings, tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> RemoteMember | PeerMember:
    """A member whose model a server runs.

    Args:
        name: The member's name.
        member: Its settings, with a `url`.
        tokenizer: Loads the model's tokenizer.

    Raises:
        ConfigError: for an unknown kind of server, or a key that is not in the environment.
        LoadError: if the server has another model or tokenizer, or cannot be reached.
        TokenizerError: if its tokens cannot be mapped to bytes.

    Warns:
        RuntimeWarning: if the server names few candidates.
    """
    if member.api not in (*KINDS, "auto"):
        known = ", ".join(KINDS)
        raise ConfigError(f"no kind of server is called {member.api!r}", hint=f"auto, {known}")
    client = Client(name, str(member.url), _key(member), member.timeout)
    try:
        protocol = _protocol(client, member)
        if protocol is not None:
            return _remote(name, protocol, member, tokenizer)
        card = card_of(client) if member.api in ("auto", PEER) else None
        if card is not None:
            return _peer(name, client, card, member, tokenizer)
        tried = ", ".join(KINDS if member.api == "auto" else [member.api])
        raise client.error(f"no server of {tried} answers there", "check url and api")
    except ServerError as error:
        raise LoadError(error.problem, hint=error.hint) from error


def _peer(
    name: str,
    client: Client,
    card: MemberCard,
    member: MemberSettings,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> PeerMember:
    """A member that another packfuse serves, whose tokenizer may come from there."""
    _check_model(client, card.model, member.model)
    own = tokenizer() if member.tokenizer else fetched_tokenizer(client)
    transfer = Transfer(member.transfer_dtype or "float32", member.candidates)
    found = wrap_peer(name, client, card, own, transfer)
    named = member.candidates
    if named is not None and named >= found.vocabulary.size:
        raise ConfigError(
            f"candidates={named}: the member has {found.vocabulary.size} tokens",
            hint="leave it out for whole distributions",
        )
    _warn_of_few(found, "Leave out candidates for all of them.")
    return found


def _remote(
    name: str,
    protocol: Protocol,
    member: MemberSettings,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> RemoteMember:
    """A member behind a server of another kind."""
    client = protocol.client
    if member.transfer_dtype is not None:
        raise ConfigError(
            f"transfer_dtype: of no effect with a server of {protocol.api}",
            hint="packfuse member has it",
        )
    _check_model(client, protocol.facts.model, member.model)
    vocabulary = Vocabulary(tokenizer(), protocol.facts.columns)
    check_tokens(client, vocabulary, protocol.tokenize)
    most = protocol.facts.max_candidates
    wanted = member.candidates or min(CANDIDATES, most or CANDIDATES)
    if most is not None and wanted > most:
        raise ConfigError(
            f"candidates={wanted}: {client.url} names at most {most}",
            hint=protocol.raise_limit or f"set candidates to {most}",
        )
    found = RemoteMember(name, protocol, vocabulary, wanted)
    _warn_of_few(found, protocol.raise_limit)
    return found


def _warn_of_few(found: RemoteMember | PeerMember, advice: str) -> None:
    if found.names_few:
        warnings.warn(
            f"member {found.name!r} names {found.named_tokens} tokens at each place; fewer than "
            f"{FEW} cost much of what fusion gains. {advice}".rstrip(),
            RuntimeWarning,
            stacklevel=4,
        )


def _key(member: MemberSettings) -> str | None:
    if member.api_key_env is None:
        return None
    key = os.environ.get(member.api_key_env)
    if not key:
        raise ConfigError(
            f"the environment has no {member.api_key_env}", hint="export it with the server's key"
        )
    return key


def _protocol(client: Client, member: MemberSettings) -> Protocol | None:
    """The kind of server at an address, which has been probed; None if it is none of them."""
    kinds = [kind for kind in PROTOCOLS if member.api in (kind, "auto")]
    for kind in kinds:
        protocol = PROTOCOLS[kind](client, member.model or None)
        if protocol.probe():
            return protocol
    return None


def _check_model(client: Client, found: str, model: str) -> None:
    """Refuse a server that has another model than the settings name.

    Raises:
        MemberError: naming both.
    """
    if model and model not in (found, Path(found).name, Path(found).stem):
        raise client.error(
            f"it has the model {found!r}, not {model!r}",
            "leave out model, or correct it; tokenizer says where the tokenizer is",
        )
