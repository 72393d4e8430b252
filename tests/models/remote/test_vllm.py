"""A member behind vLLM, against what vLLM 0.32 answered with SmolLM2-135M-Instruct in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packfuse.errors import ConfigError, LoadError
from packfuse.models.member import Read
from packfuse.models.remote.remote_member import RemoteMember
from tests.models.remote.conftest import whole_distributions
from tests.support.served_calls import NEXT, PROMPT, load

EXCHANGES = Path(__file__).with_name("vllm_0_32.json")

pytestmark = [
    pytest.mark.starter,
    pytest.mark.filterwarnings("ignore:member 'smol' names 20 tokens:RuntimeWarning"),
]


def test_it_says_what_it_is(url: str, folder: Path) -> None:
    member = load(url, folder)
    assert isinstance(member, RemoteMember)
    assert member.protocol.api == "vllm"
    assert member.protocol.facts.model == "smol"
    assert member.protocol.facts.max_candidates == 256
    assert (member.context_window, member.candidates) == (511, 20)
    member.refresh()


@pytest.mark.parametrize("places", [1, 5])
def test_its_distributions_are_those_of_the_model(url: str, folder: Path, places: int) -> None:
    """A single place, and several in one request."""
    whole = whole_distributions(folder, PROMPT)
    member = load(url, folder)
    ids = member.vocabulary.encode(PROMPT)
    assert len(ids) == 5
    found = member.read([Read(member.open(), ids, places)])[0]
    top = whole[-places:].topk(20)
    torch.testing.assert_close(found.gather(1, top.indices), top.values, atol=1e-3, rtol=0)


def test_a_session_goes_on(url: str, folder: Path) -> None:
    member = load(url, folder)
    session = member.open()
    member.read([Read(session, member.vocabulary.encode(PROMPT))])
    found = member.read([Read(session, [NEXT])])[0]
    assert session.length == 6
    named = member.named(session)
    assert named is not None
    assert named.named == 20
    assert 0 < named.outside < 1
    assert float(found.logsumexp(-1)) == pytest.approx(0, abs=1e-4)


def test_what_it_cannot_do_is_refused(url: str, folder: Path) -> None:
    with pytest.raises(LoadError, match="it has the model 'smol', not 'other'"):
        load(url, folder, model="other")
    with pytest.raises(ConfigError, match=r"names at most 256 .*--max-logprobs"):
        load(url, folder, candidates=500)
