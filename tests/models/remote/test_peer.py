"""A pack with a member of another packfuse answers as the pack in one process, bit for bit."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from langchain_packfuse import ChatPackFuse
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.models.inspection import inspect_model
from packfuse.models.member import Pause, Read, ReadCallback
from packfuse.models.remote import PeerMember
from packfuse.models.remote.client import Client
from packfuse.models.remote.peer import exchange, wire
from packfuse.settings import MemberSettings
from tests.support.member_server import card, member_server, peer_of, until_sessions
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

PROMPT = "hello the true long"
PROMPTS = [f"hello {index} the true" for index in range(8)]
CHAT = [{"role": "user", "content": "hello the"}]
IDS = [*range(60, 90)]

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")


@pytest.fixture(scope="module")
def local() -> Pack:
    """Two members in this process."""
    return small_pack(template=TEMPLATE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the second one."""
    with member_server(small_pack(template=TEMPLATE).members[1]) as found:
        yield found


def pack_with(url: str, local: Pack, **given: Any) -> Pack:
    """The same pack with the second member served."""
    how = {name: given.pop(name) for name in ("candidates", "transfer_dtype") if name in given}
    peer = peer_of(url, local.names[1], **how)
    return Pack([local.members[0], peer], progress=False, **{"reference": "long", **given})


@pytest.fixture(scope="module")
def mixed(url: str, local: Pack) -> Pack:
    return pack_with(url, local)


CALLS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"seed": 3, "temperature": 0.9, "top_p": 0.9},
    "equal weights": {"weighting": "uniform"},
    "fixed weights": {"weights": {"long": 0.3, "short": 0.7}},
    "similar": {"weighting": "sim"},
    "unite": {"fusion": "unite"},
    "drafts by lookup": {"draft": "lookup"},
    "drafts by the reference": {"draft": "reference"},
    "drafts by the members": {"draft": "members"},
    "beams": {"num_beams": 3},
    "several": {"num_return_sequences": 3, "temperature": 1.0, "seed": 1},
    "penalty": {"repetition_penalty": 1.3},
    "constraint": {"constraint": {"regex": "[a-z ]{4,12}"}},
    "trace": {"trace": True, "top_logprobs": 3},
}


@pytest.mark.parametrize("kind", CALLS)
def test_calls_are_answered_as_in_one_process(mixed: Pack, local: Pack, kind: str) -> None:
    for prompt in (PROMPT, CHAT):
        found = [pack.generate(prompt, max_new_tokens=12, **CALLS[kind]) for pack in (mixed, local)]
        one, two = ([own] if not isinstance(own, list) else own for own in found)
        assert [answer.token_ids for answer in one] == [answer.token_ids for answer in two]
        # What is read at once depends on what is kept; so the last digits may differ.
        for own, other in zip(one, two, strict=True):
            assert own.record.weights == pytest.approx(other.record.weights, rel=1e-4)
        assert [a.record.trace for a in one] == [a.record.trace for a in two]


def test_batches_streams_scores_and_weights_are_those_of_one_process(
    mixed: Pack, local: Pack
) -> None:
    one, two = (pack.generate(PROMPTS, max_new_tokens=10) for pack in (mixed, local))
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in two]
    streamed = "".join(chunk.text for chunk in mixed.stream(PROMPTS[0], max_new_tokens=10))
    assert streamed == two[0].text
    assert mixed.score("hello the", " long") == local.score("hello the", " long")
    assert mixed.weigh(PROMPT).weights == local.weigh(PROMPT).weights


def test_a_pruned_head_sends_the_tokens_that_the_alignment_reads(
    url: str, local: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packfuse.fusion.engine.MAX_SHARE", 1.0)
    own = Pack(local.members, progress=False, reference="long", heads="pruned")
    found = pack_with(url, local, heads="pruned")
    assert any(found.model.engine._subsets)
    for prompt in (PROMPT, CHAT):
        one, two = (pack.generate(prompt, max_new_tokens=12) for pack in (found, own))
        assert one.token_ids == two.token_ids


def test_a_prefix_is_read_once(url: str, local: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps what the prefix cache here keeps: the second prompt sends only its end."""
    found = pack_with(url, local, prefix_cache=10**7)
    own = Pack(local.members, progress=False, reference="long", prefix_cache=10**7)
    start = PROMPT * 4
    sent = sent_tokens(monkeypatch)
    for rest in (" he", " lo true"):
        sent.clear()
        one, two = (pack.generate(start + rest, max_new_tokens=6) for pack in (found, own))
        assert one.token_ids == two.token_ids
        assert one.record.usage.cached_tokens == two.record.usage.cached_tokens
    assert two.record.usage.cached_tokens
    assert max(sent) < len(own.members[1].vocabulary.encode(start)) / 2


def sent_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every read from now on."""
    sent: list[int] = []
    request = wire.Request

    def noted(header: Any, *rest: Any) -> Any:
        sent.extend([row.tokens for row in header.rows])
        return request(header, *rest)

    monkeypatch.setattr(exchange, "Request", noted)
    return sent


def test_one_request_a_token(mixed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollbacks, forks and ends of sessions travel with reads, and all rows together."""
    sent: list[str] = []
    open_ = Client.open

    def counted(client: Client, path: str, *rest: Any) -> Any:
        sent.append(path)
        return open_(client, path, *rest)

    monkeypatch.setattr(Client, "open", counted)
    counts = []
    for length in (4, 44):
        sent.clear()
        answers = mixed.generate(
            PROMPTS, max_new_tokens=length, min_new_tokens=length, weighting="uniform"
        )
        assert {len(answer.token_ids) for answer in answers} == {length}
        counts.append(len(sent))
    assert (counts[1] - counts[0]) / 40 <= 1.5  # places within reference tokens need a second one


def test_both_integrations_answer_as_in_one_process(mixed: Pack, local: Pack) -> None:
    one, two = (ChatPackFuse(pack=pack, max_tokens=8) for pack in (mixed, local))
    assert one.invoke("hello the").content == two.invoke("hello the").content
    assert [c.content for c in one.batch([*PROMPTS])] == [c.content for c in two.batch([*PROMPTS])]
    message = [ChatMessage(role="user", content="hello the")]
    here, there = (PackFuse(pack=pack, max_tokens=8) for pack in (mixed, local))
    assert here.chat(message).message.content == there.chat(message).message.content
    last = [list(llm.stream_complete(PROMPT))[-1].text for llm in (here, there)]
    assert last[0] == last[1]


def test_a_served_member_is_the_reference_or_the_only_one(url: str, local: Pack) -> None:
    for names in (["short"], ["short", "long"]):
        given: dict[str, Any] = {"progress": False, "reference": "short"}
        peer, members = peer_of(url, "short"), {m.name: m for m in local.members}
        one = Pack([peer if n == "short" else members[n] for n in names], **given)
        two = Pack([members[n] for n in names], **given)
        assert (
            one.generate(PROMPT, max_new_tokens=12).token_ids
            == two.generate(PROMPT, max_new_tokens=12).token_ids
        )
        assert url in str(one.identity)


@pytest.mark.parametrize(
    ("given", "most"), [({"transfer_dtype": "float16"}, 0.02), ({"candidates": 120}, 1.0)]
)
def test_less_may_be_sent(url: str, local: Pack, given: dict[str, Any], most: float) -> None:
    peer, own = peer_of(url, **given), local.members[1]
    seen: list[torch.Tensor] = []
    callback = ReadCallback(lambda _counts, logps: seen.append(logps.clone()))
    (found,) = peer.read([Read(peer.open(), IDS, 4, callback)])
    (expected,) = own.read([Read(own.open(), IDS, len(IDS))])
    best = expected.topk(100)
    assert (torch.cat(seen).gather(1, best.indices) - best.values).abs().max() < 0.02
    assert torch.equal(found, torch.cat(seen)[-4:])
    likely = expected[-4:] > -20
    assert (found - expected[-4:])[likely].abs().max() < most or "candidates" in given
    assert (found.logsumexp(-1).abs() < 1e-3).all()
    answer = pack_with(url, local, **given).generate(PROMPT, max_new_tokens=4)
    if "candidates" in given:
        assert answer.record.candidates is not None
        assert answer.record.candidates["short"].named == 120
    else:
        assert answer.record.candidates is None


def test_two_packs_and_many_threads_share_a_server(url: str, local: Pack, mixed: Pack) -> None:
    packs = [mixed, pack_with(url, local)]
    expected = [local.generate(prompt, max_new_tokens=10).token_ids for prompt in PROMPTS]

    def call(index: int) -> Any:
        return packs[index % 2].generate(PROMPTS[index // 2], max_new_tokens=10).token_ids

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(call, range(16)))
    assert found == [ids for ids in expected for _ in range(2)]


def test_a_long_read_pauses_for_others(url: str, local: Pack) -> None:
    """In the pauses, the same member reads other sessions, here and for other clients."""
    peer, other, own = peer_of(url), peer_of(url), local.members[1]
    found: list[torch.Tensor] = []

    def between() -> None:
        for one in (peer, other):
            found.append(one.read([Read(one.open(), IDS[:5])])[0])

    long = IDS * 8
    (logps,) = peer.read([Read(peer.open(), long, pause=Pause(64, between))])
    assert len(found) >= 6
    (expected,) = own.read([Read(own.open(), IDS[:5])])
    assert all(torch.equal(one, expected) for one in found)
    assert torch.equal(logps, own.read([Read(own.open(), long, pause=Pause(64, int))])[0])


def test_a_cancelled_read_leaves_nothing(local: Pack) -> None:
    own = local.members[1]

    def cancel() -> None:
        raise CancelledError

    with member_server(small_pack().members[1]) as url:
        peer = peer_of(url)
        session = peer.open()
        peer.read([Read(session, IDS)])
        threads = threading.active_count()
        with pytest.raises(CancelledError):
            peer.read([Read(session, IDS * 8, pause=Pause(32, cancel))])
        assert session.ids == IDS
        assert threading.active_count() == threads
        (again,) = peer.read([Read(session, IDS[:3])])
        assert torch.equal(again, own.read([Read(own.open(), [*IDS, *IDS[:3]])])[0])
        until_sessions(url, 1)
        del session
        until_sessions(url, 0)


def test_the_end_of_a_member_ends_its_sessions_and_its_thread() -> None:
    def threads() -> int:
        return sum(thread.name == "packfuse-ends-mortal" for thread in threading.enumerate())

    with member_server(small_pack().members[1]) as url:
        peer = peer_of(url, "mortal")
        sessions = [peer.open() for _ in range(3)]
        peer.read([Read(session, IDS[:4]) for session in sessions])
        assert (card(url)["sessions"], threads()) == (3, 1)
        del sessions, peer
        gc.collect()
        until_sessions(url, 0)
        for _ in range(200):
            if not threads():
                break
            threading.Event().wait(0.02)
        assert not threads()


def test_the_end_of_a_pack_ends_its_sessions(local: Pack) -> None:
    with member_server(small_pack(template=TEMPLATE).members[1]) as url:
        pack = pack_with(url, local, prefix_cache=10**6)
        pack.generate(PROMPTS, max_new_tokens=6)
        assert card(url)["sessions"] > 0
        del pack
        gc.collect()
        until_sessions(url, 0)


def test_the_tokenizer_may_come_from_the_server(url: str, local: Pack, mixed: Pack) -> None:
    peer, own = mixed.members[1].vocabulary, local.members[1].vocabulary
    assert peer.fingerprint == own.fingerprint
    assert peer.tokenizer.chat_template == TEMPLATE
    files = httpx.get(f"{url}/packfuse/member/tokenizer").json()
    assert {name.rpartition(".")[2] for name in files} <= {"json", "jinja"}


def test_settings_travel_in_a_file(url: str, mixed: Pack, tmp_path: Path) -> None:
    member = {"url": url, "api": "packfuse", "name": "short", "transfer_dtype": "float16"}
    pack = Pack.from_pretrained([member], progress=False)
    pack.save_config(tmp_path / "pack.yaml")
    again = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    (found,) = again.members
    assert isinstance(found, PeerMember)
    assert found.transfer.dtype == "float16"
    assert again.generate(PROMPT, max_new_tokens=4).text == (
        pack.generate(PROMPT, max_new_tokens=4).text
    )


def test_check_asks_the_server(url: str) -> None:
    found = inspect_model(MemberSettings(url=url))
    assert found.report.problems == []
    assert found.report.model == url
    assert found.report.candidates is None
    assert found.report.context_window == 512
    assert "packfuse" in (found.report.architecture or "")
    few = inspect_model(MemberSettings(url=url, candidates=120))
    assert few.report.candidates == 120
