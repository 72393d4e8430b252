"""A server that fails under `on_member_failure="drop"`, in calls that cannot go on without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ServerError
from packfuse.models.member import Member
from tests.support.llama_server import LlamaServer, llama_server
from tests.support.starter_files import write_gguf
from tests.support.steps import at_step

TOKENS = {"max_new_tokens": 12, "min_new_tokens": 12}
CALLS: dict[str, Callable[[Pack], Any]] = {
    "beams": lambda pack: pack.generate("the", num_beams=2, **TOKENS),
    "score": lambda pack: pack.score("the", " llamas " * 20),
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Member:
    """The member in this process, the reference."""
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    write_gguf(path, 7, eot=2, context=256, more=[("llamas", 1)])
    return Pack.from_pretrained([str(path)], progress=False).members[0]


@pytest.fixture
def server(gguf: Path) -> Iterator[LlamaServer]:
    """A server that a test kills."""
    with llama_server(gguf) as found:
        yield found


@pytest.fixture
def pack(server: LlamaServer, gguf: Path, local: Member) -> Pack:
    settings = {"url": server.url, "tokenizer": str(gguf), "name": "served", "timeout": 5.0}
    (member,) = Pack.from_pretrained([settings], progress=False).members
    return Pack(
        [local, member],
        progress=False,
        prefix_cache=0,
        reference=local.name,
        weighting="uniform",
        on_member_failure="drop",
    )


@pytest.mark.parametrize("kind", CALLS)
def test_what_cannot_go_on_raises_the_error_and_the_pack_stays_usable(
    server: LlamaServer, pack: Pack, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    CALLS[kind](pack)

    def kill() -> None:
        server.process.kill()
        server.process.wait()

    match = f"'served' at {server.url}"
    with at_step(monkeypatch, 2, kill), pytest.raises(ServerError, match=match):
        CALLS[kind](pack)
    assert pack.scheduler.running == 0
    answer = pack.generate("the", **TOKENS)
    assert answer.record.left_out == {"served": 0}


def test_a_server_that_is_down_already(server: LlamaServer, pack: Pack) -> None:
    """Beams go on without it, and say so; a score has no record that could."""
    server.process.kill()
    server.process.wait()
    assert CALLS["beams"](pack).record.left_out == {"served": 0}
    with pytest.raises(ServerError, match="nothing listens"):
        CALLS["score"](pack)


def test_drafts_are_not_used(
    server: LlamaServer, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a member can be left out between two tokens; without dropping, they raise the error."""
    asked: dict[str, Any] = {"draft": "lookup", **TOKENS}
    strict = Pack(pack.members, pack.settings, progress=False, on_member_failure="raise")
    assert strict.generate("the the the the", **asked).record.drafts is not None
    with at_step(monkeypatch, 9, server.process.kill):
        record = pack.generate("the the the the", **asked).record
    assert record.left_out == {"served": 8}
    assert record.drafts is None
    assert "no drafts: on_member_failure" in record.notes[0]
    with pytest.raises(ServerError, match=f"'served' at {server.url}"):
        strict.generate("the the the the", **asked)
