"""A member behind llama.cpp's real server gives what the same model gives in this process."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError, MemberError, PackError, PromptError, ServerError
from packfuse.models.inspection import inspect_model
from packfuse.models.member import Member, Read
from packfuse.models.remote import remote_member
from packfuse.models.remote.protocols.llama_cpp import LlamaCpp
from packfuse.models.remote.remote_member import RemoteMember
from packfuse.settings import MemberSettings
from packfuse.testing import MemberLaws
from tests.support.llama_server import LlamaServer, llama_server
from tests.support.starter_files import write_gguf
from tests.support.steps import at_step

PROMPTS = [f"number {index} of the llamas" for index in range(8)]
ALL = 263
"""The tokens of the tiny model."""


def served(server: LlamaServer, gguf: Path, **more: Any) -> dict[str, Any]:
    """The settings of a member behind a server."""
    return {"url": server.url, "tokenizer": str(gguf), "name": "served", **more}


def pack_of(*members: Any, **settings: Any) -> Pack:
    return Pack.from_pretrained(list(members), progress=False, prefix_cache=0, **settings)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, in this process."""
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    write_gguf(path, 7, eot=2, context=256, more=[("llamas", 1)])
    return path


@pytest.fixture(scope="module")
def local(gguf: Path, other: Path) -> Pack:
    """Both members in this process."""
    return pack_of(str(other), {"model": str(gguf), "name": "served"}, reference="other")


@pytest.fixture(scope="module")
def mixed(server: LlamaServer, gguf: Path, other: Path) -> Pack:
    """One member in this process, the other behind the server, which names all of its tokens."""
    return pack_of(str(other), served(server, gguf, candidates=ALL), reference="other")


class TestLaws(MemberLaws):
    """The laws of members, for a server that names all tokens."""

    ids = tuple(range(60, 72))

    @pytest.fixture(autouse=True)
    def _member(self, mixed: Pack) -> None:
        self._served = mixed.members[1]

    def member(self) -> Member:
        """The member behind the server."""
        return self._served


def test_distributions_are_those_of_the_model(mixed: Pack, local: Pack) -> None:
    """Also after tokens that end within a character, which the server holds back."""
    ids = list(range(3, 250, 3))[:80]
    there, here = (
        pack.members[1].read([Read(pack.members[1].open(), ids, len(ids))])[0]
        for pack in (mixed, local)
    )
    likely = here > -15
    torch.testing.assert_close(there[likely], here[likely], atol=2e-3, rtol=0)


def test_a_pack_answers_like_the_pack_in_one_process(mixed: Pack, local: Pack) -> None:
    for prompt in PROMPTS[:3]:
        one, two = (pack.generate(prompt, max_new_tokens=12) for pack in (mixed, local))
        assert one.token_ids == two.token_ids
        assert one.record.weights == pytest.approx(two.record.weights, abs=1e-3)
    chat = [{"role": "user", "content": "Hello"}]
    assert (
        mixed.generate(chat, max_new_tokens=8).text == local.generate(chat, max_new_tokens=8).text
    )
    assert mixed.score("the true", " lo") == pytest.approx(local.score("the true", " lo"), abs=1e-3)
    together, alone = (
        mixed.generate(PROMPTS, max_new_tokens=8),
        local.generate(PROMPTS, max_new_tokens=8),
    )
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    streamed = "".join(chunk.text for chunk in mixed.stream(PROMPTS[0], max_new_tokens=8))
    assert streamed == together[0].text


def test_a_served_member_alone_and_as_the_reference(
    server: LlamaServer, gguf: Path, other: Path
) -> None:
    found = served(server, gguf, candidates=ALL)
    for members, twins in (
        ([found], [str(gguf)]),
        ([found, str(other)], [{"model": str(gguf), "name": "served"}, str(other)]),
    ):
        name = "tiny" if twins == [str(gguf)] else "served"
        away, here = pack_of(*members, reference="served"), pack_of(*twins, reference=name)
        one, two = (pack.generate(PROMPTS[0], max_new_tokens=12) for pack in (away, here))
        assert one.token_ids == two.token_ids
        assert server.url in str(away.identity)
        assert server.url in repr(away) or "15" in repr(away)


def test_tokens_that_are_not_named_share_what_is_left(
    server: LlamaServer, gguf: Path, mixed: Pack
) -> None:
    with pytest.warns(RuntimeWarning, match="names 20 tokens"):
        few = pack_of(served(server, gguf, candidates=20)).members[0]
    ids = list(range(60, 80))
    whole = mixed.members[1].read([Read(mixed.members[1].open(), ids, 3)])[0]
    found = few.read([Read(few.open(), ids, 3)])[0]
    top = whole.topk(20)
    torch.testing.assert_close(found.gather(1, top.indices), top.values, atol=1e-3, rtol=0)
    rest = torch.ones_like(whole, dtype=torch.bool).scatter(1, top.indices, value=False)
    for row, mask in zip(found, rest, strict=True):
        assert len(set(row[mask].tolist())) == 1
    assert (found.logsumexp(-1).abs() < 1e-3).all()


def test_the_record_says_what_was_not_named(
    server: LlamaServer, gguf: Path, other: Path, mixed: Pack
) -> None:
    few = pack_of(str(other), served(server, gguf, candidates=100), reference="other")
    answer = few.generate(PROMPTS[0], max_new_tokens=6, weighting="uniform")
    assert answer.record.candidates is not None
    (found,) = answer.record.candidates.values()
    assert found.named == 100
    ids = few.members[1].vocabulary.encode(PROMPTS[0] + answer.text)
    whole = mixed.members[1].read([Read(mixed.members[1].open(), ids, len(ids))])[0]
    outside = 1 - whole.exp().topk(100).values.sum(-1)
    assert outside.min() <= found.outside <= outside.max()
    assert mixed.generate(PROMPTS[0], max_new_tokens=2).record.candidates is None


def test_a_server_that_forgets_is_warned_about_once(
    server: LlamaServer, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (member,) = pack_of(served(server, gguf, candidates=ALL)).members
    monkeypatch.setattr(remote_member, "_LONG", 40)
    session, ids = member.open(), list(range(60, 110))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the real server has all but the last token
        member.read([Read(session, ids)])
        for _ in range(5):
            member.read([Read(session, [60])])
    read = LlamaCpp.read
    monkeypatch.setattr(
        LlamaCpp, "read", lambda self, ids, k: replace(read(self, ids, k), cached=0)
    )
    with pytest.warns(RuntimeWarning, match=r"had 0 of 5\d tokens in its KV cache") as caught:
        for _ in range(6):
            member.read([Read(session, [60])])
    assert len(caught) == 1


BAD: dict[str, tuple[dict[str, Any], type[PackError], str]] = {
    "nothing listens": ({"url": "http://127.0.0.1:9"}, LoadError, "nothing listens"),
    "no address": ({"url": "nonsense"}, LoadError, "nonsense"),
    "another kind": ({"api": "vllm 9"}, ConfigError, "no kind of server"),
    "no tokenizer": ({"tokenizer": None}, ConfigError, "set tokenizer"),
    "no such tokenizer": ({"tokenizer": "/nowhere"}, PackError, "nowhere"),
    "no such key": ({"api_key_env": "PACKFUSE_NO_SUCH_KEY"}, ConfigError, "NO_SUCH_KEY"),
    "no candidates": ({"candidates": 0}, ConfigError, "candidates"),
    "weights here": ({"dtype": "float32"}, ConfigError, "dtype: of no effect"),
    "no server": ({"url": None, "model": "x"}, ConfigError, "with a url only"),
    "neither": ({"url": None, "candidates": None}, ConfigError, "a model, or the url"),
    "another model": ({"model": "another-model"}, LoadError, "another-model"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_settings_are_refused(server: LlamaServer, gguf: Path, kind: str) -> None:
    changes, error, match = BAD[kind]
    with pytest.raises(error, match=match):
        pack_of(served(server, gguf, candidates=ALL) | changes)


def test_one_server_is_one_member(server: LlamaServer, gguf: Path) -> None:
    twice = [served(server, gguf), served(server, gguf, name="again")]
    with pytest.raises(ConfigError, match="two members are at"):
        pack_of(*twice)


def test_servers_are_asked_before_weights_are_loaded(server: LlamaServer, gguf: Path) -> None:
    """Also for one model of a server that two members name differently."""
    for nowhere in ({"url": "http://127.0.0.1:9"}, {"api_key_env": "PACKFUSE_NO_SUCH_KEY"}):
        with pytest.raises(PackError, match=r"nothing listens|NO_SUCH_KEY"):
            pack_of("/nowhere/model", served(server, gguf) | nowhere)
    name = server_model(server)
    twice = [served(server, gguf), served(server, gguf, name="again", model=name)]
    with pytest.raises(ConfigError, match="two members are at"):
        pack_of("/nowhere/model", *twice)


def server_model(server: LlamaServer) -> str:
    """What the server calls its model."""
    found: str = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    return found


def test_a_file_names_only_variables_that_are_for_packfuse(
    server: LlamaServer, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of somebody else could send any other secret to its own server."""
    monkeypatch.setenv("HF_TOKEN", "a secret")
    pack_of(served(server, gguf, api_key_env="HF_TOKEN")).save_config(tmp_path / "pack.yaml")
    with pytest.raises(ConfigError, match="HF_TOKEN: a file can name only those that begin with"):
        Pack.from_config(tmp_path / "pack.yaml")


def test_another_tokenizer_is_refused_with_the_difference(
    server: LlamaServer, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.gguf"
    write_gguf(wrong, 0, eot=2, context=256, pre="llama-bpe")
    with pytest.raises(LoadError, match=r"its tokens are not those .* there and .* here"):
        pack_of(served(server, wrong))


def test_a_key(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with llama_server(gguf, key="secret") as guarded:
        settings = served(guarded, gguf, api_key_env="SERVER_KEY")
        monkeypatch.setenv("SERVER_KEY", "guessed")
        for wrong in (settings, served(guarded, gguf)):
            with pytest.raises(LoadError, match="key is wrong or missing"):
                pack_of(wrong)
        monkeypatch.setenv("SERVER_KEY", "secret")
        assert pack_of(settings).generate("the", max_new_tokens=2).text is not None


def test_a_prompt_that_is_too_long_names_the_member(mixed: Pack) -> None:
    with pytest.raises(PromptError, match="served"):
        mixed.members[1].read([Read(mixed.members[1].open(), [60] * 256)])
    assert mixed.context_window == 255


@pytest.fixture
def mortal(gguf: Path, other: Path) -> Any:
    """A pack whose server may be killed."""
    with llama_server(gguf) as server:
        yield (
            server,
            pack_of(
                str(other), served(server, gguf, candidates=ALL, timeout=1.0), reference="other"
            ),
        )


@pytest.mark.parametrize("stage", ["before", "first", "step"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_stalls_is_named(
    mortal: tuple[LlamaServer, Pack],
    how: signal.Signals,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, pack = mortal
    threads = threading.active_count()
    if stage == "before":
        os.kill(server.process.pid, how)
        with pytest.raises(MemberError, match=f"'served' at {server.url}"):
            pack.generate("the", max_new_tokens=20)
    else:
        when = 2 if stage == "first" else 9
        with (
            at_step(monkeypatch, when, lambda: os.kill(server.process.pid, how)),
            pytest.raises(MemberError, match=f"'served' at {server.url}"),
        ):
            pack.generate("the", max_new_tokens=20, min_new_tokens=20)
    assert pack.scheduler.running == 0
    assert threading.active_count() <= threads + 34


@pytest.mark.parametrize("stage", ["before", "step"])
def test_a_pack_goes_on_without_a_member_that_fails(
    gguf: Path, other: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the token on at which the server died; the next call tries it again."""
    alone = pack_of(str(other))
    asked: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20}
    with llama_server(gguf) as server:
        port = int(server.url.rsplit(":", 1)[1])
        pack = pack_of(
            str(other),
            served(server, gguf, candidates=ALL, timeout=5.0),
            reference="other",
            on_member_failure="drop",
            weighting="uniform",
        )
        whole = pack.generate("the", **asked)
        assert whole.record.left_out == {}
        if stage == "before":
            server.process.kill()
            server.process.wait()
            found = pack.generate("the", **asked)
        else:
            with at_step(monkeypatch, 9, server.process.kill):
                found = pack.generate("the", **asked)
    (token,) = found.record.left_out.values()
    if stage == "before":
        assert token == 0
        assert found.token_ids == alone.generate("the", **asked).token_ids
        assert found.record.weights == {"other": 1.0, "served": 0.0}
    else:
        assert token == 8
        assert found.token_ids[:8] == whole.token_ids[:8]
        ids = [*alone.members[0].vocabulary.encode("the"), *found.token_ids[:8]]
        rest = alone.model.generate(torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12)
        assert found.token_ids[8:] == tuple(rest[0, len(ids) :].tolist())
    with llama_server(gguf, port=port):
        assert pack.generate("the", **asked).token_ids == whole.token_ids


def test_errors_have_the_name_that_a_member_has_in_its_pack(gguf: Path) -> None:
    with llama_server(gguf) as server:
        twin = pack_of(served(server, gguf, candidates=ALL)).members[0].renamed("twin")
    with pytest.raises(ServerError, match="'twin' at") as caught:
        twin.refresh()
    assert caught.value.member == "twin"


def test_the_reference_cannot_be_left_out(gguf: Path, other: Path) -> None:
    with llama_server(gguf) as server:
        member = served(server, gguf, candidates=ALL)
        pack = pack_of(str(other), member, reference="served", on_member_failure="drop")
    with pytest.raises(MemberError, match="nothing listens"):
        pack.generate("the", max_new_tokens=2)


def test_a_server_with_another_model_is_noticed(gguf: Path, other: Path) -> None:
    with llama_server(gguf) as first:
        port = int(first.url.rsplit(":", 1)[1])
        pack = pack_of(str(other), served(first, gguf, candidates=ALL), reference="other")
        pack.generate("the", max_new_tokens=2)
    with (
        llama_server(other, port=port),
        pytest.raises(MemberError, match="another model than when it joined"),
    ):
        pack.generate("the", max_new_tokens=2)


def test_settings_travel_in_a_file(server: LlamaServer, gguf: Path, tmp_path: Path) -> None:
    pack = pack_of(served(server, gguf, candidates=100))
    pack.save_config(tmp_path / "pack.yaml")
    again = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    (member,) = again.members
    assert isinstance(member, RemoteMember)
    assert member.candidates == 100
    assert (
        again.generate("the", max_new_tokens=4).text == pack.generate("the", max_new_tokens=4).text
    )


def test_check_asks_the_server(server: LlamaServer, gguf: Path) -> None:
    found = inspect_model(MemberSettings(**served(server, gguf, candidates=100)))
    assert found.report.problems == []
    assert found.report.model == server.url
    assert (found.report.parameters, found.report.context_window) == (15_680, 255)
    assert (found.report.candidates, found.report.scored_places) == (100, 128)
    nobody = inspect_model(MemberSettings(url="http://127.0.0.1:9", tokenizer=str(gguf)))
    assert "nothing listens" in nobody.report.problems[0]
