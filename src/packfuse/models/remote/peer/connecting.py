"""Connects to a server of the member protocol: its card, its tokenizer, and the member."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from packfuse.models.remote.client import Client
from packfuse.models.remote.peer.exchange import Transfer
from packfuse.models.remote.peer.peer_member import PeerMember
from packfuse.models.remote.peer.wire import CARD, TOKENIZER, TOKENS, VERSION, MemberCard
from packfuse.models.remote.tokens import check_tokens
from packfuse.text.vocabulary import Vocabulary

PEER = "packfuse"
"""What settings call the protocol."""

_FILES = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|chat_template\.jinja|additional_chat_templates/\w[\w.-]*\.jinja"
)
"""The files of a tokenizer that a server may send."""


def card_of(client: Client) -> MemberCard | None:
    """What a server says of its member; None if it has no such page.

    Raises:
        ServerError: if it cannot be reached, or has another version of the protocol.
    """
    found: Any = client.get(CARD)
    if not isinstance(found, Mapping) or "protocol" not in found:
        return None
    if found["protocol"] != VERSION:
        raise client.error(
            f"it speaks version {found['protocol']} of the member protocol (packfuse "
            f"{found.get('packfuse')}), and packfuse here speaks version {VERSION}",
            "install the same packfuse on both sides",
        )
    try:
        return MemberCard.model_validate(found)
    except ValueError as error:
        raise client.error(f"its description of the member is not complete: {error}") from error


def fetched_tokenizer(client: Client) -> PreTrainedTokenizerBase:
    """The tokenizer of a server's member. Files that could run code are refused.

    Raises:
        ServerError: if the server sends none.
    """
    files: Any = client.get(TOKENIZER)
    if not isinstance(files, Mapping) or not files:
        raise client.error("it sends no tokenizer", "set tokenizer")
    with tempfile.TemporaryDirectory(prefix="packfuse-") as folder:
        for name, text in files.items():
            if not _FILES.fullmatch(str(name)) or not isinstance(text, str):
                raise client.error(f"its tokenizer has the file {name!r}", "set tokenizer")
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    found.name_or_path = client.url
    return found


def wrap_peer(
    name: str,
    client: Client,
    card: MemberCard,
    tokenizer: PreTrainedTokenizerBase,
    transfer: Transfer,
) -> PeerMember:
    """A member of a server whose card is known.

    Args:
        name: The member's name.
        client: The connection.
        card: What the server said of the member.
        tokenizer: The tokenizer.
        transfer: What the server is asked to send.

    Raises:
        ServerError: if its tokenizer is not that of the server.
        TokenizerError: if its tokens cannot be mapped to bytes.
    """
    vocabulary = Vocabulary(tokenizer, card.columns, card.end_ids)
    check_tokens(client, vocabulary, lambda text: client.post(TOKENS, {"text": text})["tokens"])
    if vocabulary.fingerprint != card.vocabulary:
        raise client.error(
            "its tokenizer differs from the one here in control tokens or in how text is split",
            "set tokenizer to that of the server's model, or leave it out",
        )
    return PeerMember(name, client, card, vocabulary, transfer)
