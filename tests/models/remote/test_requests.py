"""How many requests a pack sends to the servers of its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.alignment.straddle import WINDOW
from packfuse.models.member import Member
from packfuse.models.remote.remote_member import MAX_SCORED_PLACES
from packfuse.text.vocabulary import Vocabulary
from tests.support import served_calls
from tests.support.llama_server import LlamaServer
from tests.support.replay import replayed
from tests.support.served_calls import FITTED, PROMPT
from tests.support.starter_files import write_gguf

MOST_A_TOKEN = 1.1
FIXED = {"other": 0.5, "served": 0.5}
LONG = "the true llamas lo " * 10


@pytest.fixture(scope="module")
def members(
    server: LlamaServer, gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Member]:
    """A member in this process, the reference, and one behind llama.cpp's server."""
    other = tmp_path_factory.mktemp("other") / "other.gguf"
    write_gguf(other, 7, eot=2, context=256, more=[("llamas", 1)])
    served = {"url": server.url, "tokenizer": str(gguf), "name": "served"}
    return Pack.from_pretrained([str(other), served], progress=False).members


@pytest.fixture
def pack(members: list[Member]) -> Pack:
    """Without a prefix cache."""
    return Pack(members, progress=False, prefix_cache=0, reference="other")


def test_one_request_a_token(pack: Pack, posts: list[Any]) -> None:
    counts = []
    for length in (4, 44):
        posts.clear()
        exactly = {"max_new_tokens": length, "min_new_tokens": length}
        answer = pack.generate("number 1 of the llamas", weighting="uniform", **exactly)
        assert len(answer.token_ids) == length
        counts.append(len(posts))
    assert (counts[1] - counts[0]) / 40 <= MOST_A_TOKEN


@pytest.mark.starter
@pytest.mark.filterwarnings("ignore:member 'smol' names 20 tokens:RuntimeWarning")
@pytest.mark.parametrize("recorded", ["vllm_0_32", "sglang_0_5"])
def test_one_request_a_token_and_one_for_the_weights(
    recorded: str, default_folders: dict[str, Path], posts: list[Any]
) -> None:
    """From servers that score a prompt in one request."""
    with replayed(Path(__file__).with_name(f"{recorded}.json")) as url:
        member = served_calls.load(url, default_folders["SmolLM2-135M-Instruct"])
        posts.clear()
        answer = served_calls.pack_of(member).generate(PROMPT, **FITTED)
    assert answer.record.scored_places is None
    assert len(posts) - 1 <= MOST_A_TOKEN * len(answer.token_ids)


def places(posts: list[Any]) -> set[int]:
    """Lengths of what was read; a place may take two requests, at a token within a character."""
    return {len(body["prompt"]) for body in posts}


def test_scored_places_are_bounded_and_in_the_record(
    pack: Pack, members: list[Member], posts: list[Any]
) -> None:
    """llama.cpp's server scores one place a request; the answer begins with a few more."""
    served: Vocabulary = members[1].vocabulary
    assert len(served.encode(LONG)) > MAX_SCORED_PLACES
    pack.generate(LONG, max_new_tokens=1, weights=FIXED)
    beginning = places(posts)
    assert len(beginning) <= 2 * WINDOW
    posts.clear()
    record = pack.generate(LONG, max_new_tokens=1).record
    assert len(places(posts) - beginning) <= MAX_SCORED_PLACES
    assert record.scored_places == {"served": pytest.approx(MAX_SCORED_PLACES, rel=0.1)}
    assert record.scored_places["served"] <= MAX_SCORED_PLACES


def test_weights_that_are_fixed_or_remembered_are_not_asked_for(
    pack: Pack, members: list[Member], posts: list[Any]
) -> None:
    record = pack.generate(LONG, max_new_tokens=1, weights=FIXED).record
    assert len(posts) <= 2 * WINDOW
    assert (record.weights, record.scored_places, record.prompt_loss) == (FIXED, None, None)
    assert "the prompt was not scored" in " ".join(record.notes)
    remembering = Pack(members, progress=False, prefix_cache=2**24, reference="other")
    first = remembering.generate(LONG, max_new_tokens=1)
    posts.clear()
    again = remembering.generate(LONG, max_new_tokens=1)
    assert len(posts) <= 2 * WINDOW
    assert again.record.weights == pytest.approx(first.record.weights)
