"""A member whose weight is fixed to 0 takes no part in a call, and is in its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from packfuse import Pack
from packfuse.errors import PromptError
from packfuse.fusion.rules import rules
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read
from tests.support import pico, small
from tests.support.scripted import TEMPLATE

PROMPT = "the hello of a hello that the long hello tells, and "
LONG = PROMPT * 12
WINDOW = 32
CHAT = [{"role": "user", "content": LONG}]
BROKEN = "{{ raise_exception('no chats') }}"


class Silent(HFMember):
    """Fails when it is asked to read."""

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        raise AssertionError(f"{self.name} reads {requests[0].ids}")


def members(*, broken: bool = False) -> list[HFMember]:
    """Two members that may read; the first one reads nothing and has a small window."""
    made: list[HFMember] = []
    for name, kind, context in (
        ("absent", Silent, WINDOW),
        ("a", HFMember, 2048),
        ("b", HFMember, 2048),
    ):
        template = BROKEN if broken and name == "absent" else TEMPLATE
        words = "short" if name == "b" else "long"
        own = small.vocabulary(words, template=template)
        model = pico.tiny_model(own.tokenizer, seed=len(made), context=context)  # type: ignore[arg-type]
        made.append(kind(name, model, own))
    return made


def pack(own: Sequence[HFMember], **settings: Any) -> Pack:
    return Pack(own, progress=False, **{"prefix_cache": 2**24, **settings})


def one(own: Pack, **settings: Any) -> Any:
    return own.generate(LONG, max_new_tokens=6, **settings)


def twice(own: Pack, **settings: Any) -> Any:
    own.generate(LONG, max_new_tokens=1, **settings)
    again = own.generate(LONG, max_new_tokens=6, **settings)
    assert again.record.usage.cached_tokens == again.record.usage.prompt_tokens - 1
    return again


def chat(own: Pack, **settings: Any) -> Any:
    return own.generate(CHAT, max_new_tokens=6, **settings)


def batch(own: Pack, **settings: Any) -> Any:
    return own.generate([LONG, PROMPT, LONG], max_new_tokens=6, **settings)[0]


def beams(own: Pack, **settings: Any) -> Any:
    return own.generate(LONG, max_new_tokens=6, num_beams=2, **settings)


def streamed(own: Pack, **settings: Any) -> Any:
    *_, last = own.stream(LONG, max_new_tokens=6, **settings)
    return last


def drafted(own: Pack, **settings: Any) -> Any:
    return own.generate(LONG, max_new_tokens=6, draft="members", **settings)


WAYS: list[Callable[..., Any]] = [one, twice, chat, batch, beams, streamed, drafted]
WEIGHTS: list[dict[str, float]] = [{"a": 1.0}, {"b": 1.0}, {"a": 0.25, "b": 0.75}]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_member_with_weight_0_takes_no_part(
    way: Callable[..., Any], weights: dict[str, float]
) -> None:
    own = members(broken=way is chat)
    found = way(pack(own), weights=weights)
    record = found.record
    assert record.weights == {"absent": 0.0, "a": 0.0, "b": 0.0} | weights
    assert record.reference in weights
    assert set(record.prompt_loss) == set(weights)
    assert record.usage.prompt_tokens_by_member["absent"] == 0
    present = [member for member in own if member.name in weights]
    assert found.text == way(pack(present), weights=weights).text or way is streamed


@pytest.mark.parametrize("rule", sorted(rules().parts))
def test_every_rule_goes_without_it(rule: str) -> None:
    own, weights = members(), {"a": 0.25, "b": 0.75}
    found = one(pack(own, fusion=rule), weights=weights).text
    assert found == one(pack(own[1:], fusion=rule), weights=weights).text


def test_the_settings_of_a_pack_and_its_model_go_without_it_too() -> None:
    own, weights = members(), {"a": 0.25, "b": 0.75}
    whole, present = pack(own, weighting=weights), pack(own[1:], weighting=weights)
    assert whole.names[whole.default_reference] == "a"
    assert (
        whole.generate(LONG, max_new_tokens=6).text == present.generate(LONG, max_new_tokens=6).text
    )
    assert whole.score(LONG, "hello") == pytest.approx(present.score(LONG, "hello"), abs=1e-4)
    ids = torch.tensor([whole.tokenizer(LONG).input_ids])
    assert whole.model.generate(ids, max_new_tokens=6).equal(
        present.model.generate(ids, max_new_tokens=6)
    )


def test_a_reference_that_is_named_reads_even_with_weight_0() -> None:
    own = members()
    named = pack(own, reference="b")
    assert one(named, weights={"a": 1.0}).record.reference == "b"
    with pytest.raises(PromptError, match="for member 'absent', which can read 32"):
        one(pack(own, reference="absent"), weights={"a": 1.0})


def test_a_prompt_that_was_read_without_a_member_is_read_by_it_later() -> None:
    own = members()[1:]
    shared = pack(own)
    for weights in ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1.0}):
        found = one(shared, weights=weights)
        assert found.text == one(pack(own, prefix_cache=0), weights=weights).text
    assert found.record.usage.cached_tokens == found.record.usage.prompt_tokens - 1
    assert one(shared).record.weights == pytest.approx(
        one(pack(own, prefix_cache=0)).record.weights, abs=1e-4
    )
