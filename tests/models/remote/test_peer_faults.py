"""Servers of members that die, stall, restart, change, forget, or answer nonsense."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI, Response
from torch import Tensor

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError, MemberError, PackError, ServerError
from packfuse.models.hf_member import HFMember
from packfuse.models.loading import load_member
from packfuse.models.member import Read
from packfuse.models.remote.client import Client
from packfuse.models.remote.peer import connecting
from packfuse.models.remote.peer.wire import READ, Answer, AnswerHeader
from packfuse.settings import LoadSettings, MemberSettings
from tests.support.member_server import (
    card,
    member_process,
    member_server,
    peer_of,
    until_sessions,
)
from tests.support.quick import quick
from tests.support.serving import running
from tests.support.small import small_pack
from tests.support.steps import at_step

IDS = [*range(60, 90)]
ASKED: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "weighting": "uniform"}


@pytest.fixture(scope="module")
def local() -> Pack:
    return small_pack(prefix_cache=0)


def served_member(seed: int = 0) -> HFMember:
    """The second member of `local`, or another model with its tokenizer."""
    if not seed:
        return small_pack().members[1]  # type: ignore[return-value]
    one = small_pack().members[1]
    with torch.no_grad():
        one.model.lm_head.weight.mul_(1 + seed)
    return HFMember("short", one.model, one.vocabulary)


def pack_with(url: str, local: Pack, *, timeout: float = 60.0, **given: Any) -> Pack:
    peer = peer_of(url, local.names[1], timeout=timeout)
    how: dict[str, Any] = {"progress": False, "reference": "long", "prefix_cache": 0}
    return Pack([local.members[0], peer], **how, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The member as files."""
    path, one = tmp_path_factory.mktemp("short"), served_member()
    one.model.save_pretrained(path)
    one.tokenizer.save_pretrained(path)
    return path


def fails(pack: Pack, url: str, match: str = "") -> None:
    with pytest.raises(ServerError, match=f"'short' at {url}: .*{match}") as caught:
        pack.generate("hello the", **ASKED)
    assert caught.value.member == "short"
    assert pack.scheduler.running == 0


@pytest.mark.parametrize("stage", quick(["step", "before", "prompt"], 1))
def test_a_killed_server_is_named_and_may_be_left_out(
    folder: Path, local: Pack, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the token on at which it died; the next call finds a new server at its place."""
    expected = local.generate("hello the", **ASKED)
    with member_process(str(folder)) as server:
        pack = pack_with(server.url, local)
        drops = pack_with(server.url, local, on_member_failure="drop")
        assert drops.generate("hello the", **ASKED).token_ids == expected.token_ids
        threads = threading.active_count()
        if stage == "step":
            with at_step(monkeypatch, 9, lambda: _end(server.process)):
                found = drops.generate("hello the", **ASKED)
            assert found.record.left_out == {"short": 8}
            assert found.token_ids[:8] == expected.token_ids[:8]
        else:
            if stage == "before":
                _end(server.process)
            else:
                _at_read(monkeypatch, lambda: _end(server.process))
            found = drops.generate("hello the", **ASKED)
            assert found.record.left_out == {"short": 0}
            monkeypatch.undo()
        fails(pack, server.url)
        assert threading.active_count() <= threads + 1
    again = load_member("short", MemberSettings(model=str(folder)), LoadSettings())
    with member_server(again, port=server.port):
        for one in (pack, drops):
            assert one.generate("hello the", **ASKED).token_ids == expected.token_ids


def _end(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _at_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, after the server was asked what it is and before its first read."""
    from packfuse.models.remote.peer.peer_member import PeerMember

    read = PeerMember.read

    def acting(member: PeerMember, requests: Sequence[Read]) -> list[Tensor]:
        monkeypatch.undo()
        act()
        return read(member, requests)

    monkeypatch.setattr(PeerMember, "read", acting)


def test_a_server_that_stands_still_is_named(
    folder: Path, local: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every stage; once it goes on, it answers, and keeps nothing of the calls that failed."""
    expected = local.generate("hello the", **ASKED)
    with member_process(str(folder)) as server:
        pack = pack_with(server.url, local, timeout=0.5)

        def stop() -> None:
            os.kill(server.process.pid, signal.SIGSTOP)

        for stage in ("before", "prompt", "step"):
            with ExitStack() as stack:
                if stage == "before":
                    stop()
                elif stage == "prompt":
                    _at_read(monkeypatch, stop)
                else:
                    stack.enter_context(at_step(monkeypatch, 9, stop))
                fails(pack, server.url, "no answer within 0.5 s")
            os.kill(server.process.pid, signal.SIGCONT)
            assert (
                pack_with(server.url, local).generate("hello the", **ASKED).token_ids
                == expected.token_ids
            )
        del pack
        gc.collect()
        until_sessions(server.url, 0)


class Slow(HFMember):
    """A member that takes its time."""

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """See `Member.read`."""
        time.sleep(3)
        return super().read(requests)


@pytest.mark.parametrize("timeout", [0.3, 1.5])
def test_a_server_that_is_slow_is_named(local: Pack, timeout: float) -> None:
    """Also where it says in time that it lives, which it does every second."""
    own = served_member()
    with member_server(Slow("short", own.model, own.vocabulary)) as url:
        peer = peer_of(url, "short", timeout=timeout)
        with pytest.raises(ServerError, match=f"'short' at {url}: no answer within"):
            peer.read([Read(peer.open(), IDS)])
        patient = peer_of(url)
        (found,) = patient.read([Read(patient.open(), IDS)])
    assert torch.equal(found, own.read([Read(own.open(), IDS)])[0])


def test_a_restart_in_the_middle_of_an_answer_is_not_seen(
    local: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new server has no sessions, and reads them again."""
    expected = local.generate("hello the", **ASKED)
    with restarting(served_member(), served_member()) as (url, restart):
        pack = pack_with(url, local)
        with at_step(monkeypatch, 9, restart):
            found = pack.generate("hello the", **ASKED)
    assert found.token_ids == expected.token_ids


def test_another_model_in_the_middle_of_an_answer_is_an_error(
    local: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restarting(served_member(), served_member(1)) as (url, restart):
        pack = pack_with(url, local)
        with at_step(monkeypatch, 9, restart):
            fails(pack, url, "another model than when it joined")
        fails(pack, url, "another model than when it joined")


@contextmanager
def restarting(first: HFMember, second: HFMember) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server, and what puts another one in its place."""
    with ExitStack() as later, ExitStack() as now:
        url = now.enter_context(member_server(first))

        def restart() -> None:
            now.close()
            port = int(url.rsplit(":", 1)[1])
            later.enter_context(member_server(second, port=port))

        yield url, restart


def test_weights_that_change_in_the_server_are_an_error(local: Pack) -> None:
    one = served_member()
    with member_server(one) as url:
        pack = pack_with(url, local)
        pack.generate("hello the", **ASKED)
        with torch.no_grad():
            one.model.lm_head.weight.mul_(2)
        fails(pack, url, "another model than when it joined")


@pytest.mark.parametrize("limits", [{"lease": 0.2}, {"max_cache": 1}], ids=str)
def test_sessions_that_ended_are_read_again(
    local: Pack, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the lease of a silent client, or because memory is short."""
    expected = local.generate(["hello the", "he long"], **ASKED)
    with member_server(served_member(), **limits) as url:
        pack = pack_with(url, local)
        if "lease" in limits:
            with at_step(monkeypatch, 9, lambda: until_sessions(url, 0)):
                found = pack.generate(["hello the", "he long"], **ASKED)
        else:
            found = pack.generate(["hello the", "he long"], **ASKED)
            assert card(url)["sessions"] <= 2
        assert [a.token_ids for a in found] == [a.token_ids for a in expected]


def rows(logps: Tensor, **more: Any) -> bytes:
    header = AnswerHeader(kind="rows", counts=[len(IDS)], **more)
    return Answer(header, {"logps": logps}).encode()


DONE = Answer(AnswerHeader(kind="done")).encode()
GOOD = torch.zeros(1, 320).log_softmax(-1)
NONSENSE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "noise": (b"\x05\0\0\0noise", "no message"),
    "a part": (DONE[:-1], "ends within a message"),
    "a huge message": (b"\xff\xff\xff\xff", "4294967295 bytes"),
    "no distribution": (DONE, "nothing after 30 tokens"),
    "another width": (rows(torch.zeros(1, 7)) + DONE, "log-probabilities"),
    "no probabilities": (rows(torch.zeros(1, 320)) + DONE, "do not sum to one"),
    "nan": (rows(torch.full((1, 320), torch.nan)) + DONE, "do not sum to one"),
    "integers": (rows(torch.zeros(1, 320, dtype=torch.int32)) + DONE, "no log-probabilities"),
    "no such row": (rows(GOOD, row=3) + DONE, "no row 3"),
    "gone for ever": (Answer(AnswerHeader(kind="gone", gone=[0])).encode(), "end at once"),
    "an error of its own": (
        Answer(AnswerHeader(kind="error", message="its disk is full")).encode(),
        "its disk is full",
    ),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_named(local: Pack, kind: str) -> None:
    body, match = NONSENSE[kind]
    with member_server(served_member()) as url:
        peer = peer_of(url, "short")
        assert peer.vocabulary.columns == GOOD.shape[1]
        whole = card(url)
    with answering(whole, body) as other:
        peer.client = peer._exchange.client = Client("short", other, None, 5.0)
        session = peer.open()
        with pytest.raises(ServerError, match=f"'short' at {other}: .*{match}"):
            peer.read([Read(session, IDS)])
    assert session.ids == []


@contextmanager
def answering(whole: dict[str, Any], body: bytes) -> Iterator[str]:
    """A server that answers every read with these bytes."""
    app = FastAPI()
    app.add_api_route("/packfuse/member", lambda: whole)
    app.add_api_route(READ, lambda: Response(body), methods=["POST"])
    with running(app) as url:
        yield url


BAD: dict[str, tuple[dict[str, Any], type[PackError], str]] = {
    "nothing listens": ({"url": "http://127.0.0.1:9"}, LoadError, "nothing listens"),
    "another kind": ({"api": "llama.cpp"}, LoadError, "no server of llama.cpp"),
    "another model": ({"model": "another-model"}, LoadError, "another-model"),
    "no candidates": ({"candidates": 0}, ConfigError, "candidates"),
    "all candidates": ({"candidates": 10**6}, ConfigError, "whole distributions"),
    "another type": ({"transfer_dtype": "int8"}, ConfigError, "transfer_dtype"),
    "no server": ({"url": None, "model": "x", "transfer_dtype": "float16"}, ConfigError, "url"),
    "no such key": ({"api_key_env": "PACKFUSE_NO_SUCH_KEY"}, ConfigError, "NO_SUCH_KEY"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with member_server(served_member(), api_key="secret") as found:
        yield found


@pytest.mark.parametrize("kind", BAD)
def test_unusable_settings_are_refused(
    url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    changes, error, match = BAD[kind]
    given = {"url": url, "api_key_env": "SERVER_KEY", "name": "served"} | changes
    with pytest.raises(error, match=match) as caught:
        Pack.from_pretrained([given], progress=False)
    message = caught.value.message
    assert message.count("'served'") <= 1
    assert message.count(f"at {given['url']}") == 0  # it is named as the place of the member


@pytest.mark.parametrize("key", ["", "wrong", "secre"])
def test_a_wrong_key_is_refused(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", key)
    given = {"api_key_env": "SERVER_KEY"} if key else {}
    with pytest.raises(LoadError, match="the key is wrong or missing"):
        Pack.from_pretrained([{"url": url, **given}], progress=False)


def test_another_version_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    monkeypatch.setattr(connecting, "VERSION", 2)
    with pytest.raises(LoadError, match=r"speaks version 1 .*\(packfuse 0\..* version 2"):
        Pack.from_pretrained([{"url": url, "api_key_env": "SERVER_KEY"}], progress=False)


def test_another_tokenizer_is_refused(local: Pack, tmp_path: Path) -> None:
    local.members[0].tokenizer.save_pretrained(tmp_path)
    with (
        member_server(served_member()) as url,
        pytest.raises(LoadError, match="its tokenizer differs from the one here"),
    ):
        Pack.from_pretrained([{"url": url, "tokenizer": str(tmp_path)}], progress=False)


def test_a_member_that_fails_there_is_named_here(local: Pack) -> None:
    one = served_member()
    with member_server(one) as url:
        pack = pack_with(url, local)
        layer = one.model.model.layers[0]
        layer.register_forward_hook(lambda *_: torch.zeros(3, 5))
        with pytest.raises(MemberError, match=f"'short' at {url}"):
            pack.generate("hello the", **ASKED)
