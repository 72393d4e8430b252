"""A member behind SGLang, against answers composed from its source (dev/exchanges.py).

SGLang needs a GPU, so nothing here was recorded. What is tested is that the fields which its source
reads and writes carry the distributions of the model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packfuse.errors import LoadError, ServerError
from packfuse.models.member import Member, Read
from packfuse.models.remote.protocols.sglang import Sglang
from packfuse.models.remote.remote_member import RemoteMember
from tests.models.remote.conftest import whole_distributions
from tests.support import replay
from tests.support.served_calls import NEXT, PROMPT, load

EXCHANGES = Path(__file__).with_name("sglang_0_5.json")

pytestmark = [
    pytest.mark.starter,
    pytest.mark.filterwarnings("ignore:member 'smol' names 20 tokens:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def member(url: str, folder: Path) -> Member:
    return load(url, folder)


def test_it_says_what_it_is(member: Member) -> None:
    """By itself, and without a limit of candidates."""
    assert isinstance(member, RemoteMember)
    assert isinstance(member.protocol, Sglang)
    assert member.protocol.facts.model == "smol"
    assert member.protocol.facts.max_candidates is None
    assert (member.context_window, member.candidates) == (511, 20)
    assert member.max_scored_places is None
    member.refresh()


@pytest.mark.parametrize("places", [1, 5])
def test_its_distributions_are_those_of_the_model(
    member: Member, folder: Path, places: int
) -> None:
    """A single place, and several in one request."""
    whole = whole_distributions(folder, PROMPT)
    ids = member.vocabulary.encode(PROMPT)
    found = member.read([Read(member.open(), ids, places)])[0]
    top = whole[-places:].topk(20)
    torch.testing.assert_close(found.gather(1, top.indices), top.values, atol=1e-3, rtol=0)


def test_a_session_goes_on(member: Member) -> None:
    session = member.open()
    member.read([Read(session, member.vocabulary.encode(PROMPT))])
    found = member.read([Read(session, [NEXT])])[0]
    named = member.named(session)
    assert named is not None
    assert named.named == 20
    assert 0 < named.outside < 1
    assert float(found.logsumexp(-1)) == pytest.approx(0, abs=1e-4)


def test_another_model_is_refused(url: str, folder: Path) -> None:
    with pytest.raises(LoadError, match="it has the model 'smol', not 'other'"):
        load(url, folder, model="other")
    with pytest.raises(LoadError, match="no server of vllm answers there"):
        load(url, folder, api="vllm")


def answers(place: object) -> replay.Answer:
    """An answer of `/generate` with this place."""
    return 200, {"meta_info": {"output_top_logprobs": [place], "cached_tokens": 0}}


CARD = {"id": "smol", "owned_by": "sglang", "parent": None, "max_model_len": 512}
IMPOSSIBLE = answers([[0.0, 5, None], [None, 7, None]])
WRONG = {
    "too long": ((400, {"error": {"message": "longer than the context"}}), "status 400"),
    "a wrong key": ((401, {"error": "Unauthorized"}), "key is wrong or missing"),
    "no probabilities": ((200, {"text": " Rome", "meta_info": {}}), "none of sglang's"),
    "no place": ((200, {"meta_info": {"output_top_logprobs": []}}), "none of sglang's"),
    "null": (answers(None), "none of sglang's"),
    "an unknown token": (answers([[0.0, 10**6, None]]), "a token id outside"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_answer_is_an_error_with_the_address(member: Member, kind: str) -> None:
    found, match = WRONG[kind]
    assert isinstance(member, RemoteMember)

    def answer(method: str, path: str, body: object) -> replay.Answer:
        return found if path == "/generate" else (200, {"data": [CARD]})

    with replay.answering(answer) as url, pytest.raises(ServerError, match=match) as caught:
        twin = at(url, member)
        twin.refresh()
        twin.read([Read(twin.open(), [NEXT])])
    assert caught.value.member == "smol"
    assert url in str(caught.value)


def test_a_token_without_probability_is_impossible(member: Member) -> None:
    """JSON has no infinity: SGLang writes null."""
    assert isinstance(member, RemoteMember)
    with replay.answering(lambda *_: IMPOSSIBLE) as url:
        twin = at(url, member)
        found = twin.read([Read(twin.open(), [NEXT])])[0][0]
    assert float(found[5]) == pytest.approx(0, abs=1e-6)
    assert found[7] == -torch.inf


def at(url: str, member: RemoteMember) -> RemoteMember:
    """The member at another address."""
    protocol = Sglang(type(member.protocol.client)("smol", url, None, 5), None)
    protocol.facts = member.protocol.facts
    return RemoteMember("smol", protocol, member.vocabulary, 2)
