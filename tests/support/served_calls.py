"""What the recorded exchanges of servers hold: these calls of a member behind SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packfuse import Pack
from packfuse.models.member import Member, Read
from tests.support import packs
from tests.support.llama_server import llama_server
from tests.support.starter_files import write_gguf

PROMPT = "The capital of Italy is"
NEXT = 7042
"""A token that may come next."""
CHAT = [{"role": "user", "content": "Who are you?"}]
BATCH = ["One", "Two and", "Three or four", "The sun", "A cat", "Many dogs", "My", "His name is"]
FITTED: dict[str, Any] = {"max_new_tokens": 12}
FIXED: dict[str, Any] = {"max_new_tokens": 4, "weights": {"deepseek": 0.1, "smol": 0.9}}
THREE: dict[str, Any] = {
    "max_new_tokens": 4,
    "weights": {"deepseek": 0.1, "tiny": 1e-3, "smol": 0.899},
}
"""With a member whose exact values differ from machine to machine, and so has next to no weight."""


def served(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """The settings of the member; few candidates, so that the recordings stay small."""
    return {"url": url, "tokenizer": str(folder), "name": "smol", "candidates": 20, **more}


def load(url: str, folder: Path, **more: Any) -> Member:
    """The member behind the server."""
    return Pack.from_pretrained([served(url, folder, **more)], progress=False).members[0]


def pack_of(*members: Member) -> Pack:
    """A pack whose reference is a tiny random model in this process."""
    local = packs.tiny_member("deepseek")
    return packs.tiny_pack([local, *members], reference=local.name, prefix_cache=0)


@contextmanager
def tiny_served(folder: Path) -> Iterator[Member]:
    """A tiny random model behind llama.cpp's server; its file is written to a folder."""
    gguf = folder / "tiny.gguf"
    write_gguf(gguf, 0, eot=2, context=256)
    with llama_server(gguf) as server:
        settings = {"url": server.url, "tokenizer": str(gguf), "name": "tiny"}
        yield Pack.from_pretrained([settings], progress=False).members[0]


def read(member: Member) -> None:
    """All places of a prompt, its last one, and a token after it."""
    ids = member.vocabulary.encode(PROMPT)
    member.refresh()
    member.read([Read(member.open(), ids, len(ids))])
    session = member.open()
    member.read([Read(session, ids)])
    member.read([Read(session, [NEXT])])


def answer(member: Member, tiny: Member) -> None:
    """Fitted weights, chats, and batches, with one served member and with two."""
    pack_of(member).generate(PROMPT, **FITTED)
    for pack, arguments in ((pack_of(member), FIXED), (pack_of(tiny, member), THREE)):
        pack.generate(CHAT, **arguments)
        pack.generate(BATCH, **arguments)
