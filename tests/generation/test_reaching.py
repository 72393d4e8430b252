"""No call reaches into another: queues, nested calls, and the reasons why answers end."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.errors import ConfigError, PackError
from packfuse.generation.output.result import NO_INFINITY, by_name
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack
from tests.support.steps import Steps, at_once, settle

NEW = 6
CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, prefix_cache=0)


# The queue.


class Raising:
    """Plain enough to be accepted, and raises when it is compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


def answers(pack: Pack, calls: list[dict[str, Any]]) -> list[Any]:
    """The ids of chats that all wait before the first of them begins."""
    requests = [pack.request(CHAT, {"max_new_tokens": NEW, **call}) for call in calls]
    found = at_once(pack, [partial(pack.answers, request) for request in requests])
    return [answer.token_ids for (answer,) in found]


@pytest.mark.parametrize("odd", [np.arange(3), Raising(), torch.ones(2), {"in": [Raising()]}])
def test_objects_of_a_call_are_never_compared(pack: Pack, odd: Any) -> None:
    usual = pack.generate(CHAT, max_new_tokens=NEW).token_ids
    calls = [{}, {"chat_template_kwargs": {"x": odd}}, {}, {"chat_template_kwargs": {"x": odd}}, {}]
    assert answers(pack, calls) == [usual] * 5
    assert pack.scheduler._waiting == []


def test_an_interrupted_call_leaves_the_queue(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    request = pack.request(CHAT, {"max_new_tokens": 400, "min_new_tokens": 400})
    steps = Steps(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Future, "result", interrupt)
        pack.answers(request)
    settle()
    assert pack.scheduler._waiting == []
    assert steps.count < 400
    assert pack.generate(CHAT, max_new_tokens=NEW).token_ids


# Calls inside a call.


NESTED: dict[str, Callable[[Pack], Any]] = {
    "generate": lambda pack: pack.generate("the lo", max_new_tokens=3),
    "other rule": lambda pack: pack.generate("Hel", max_new_tokens=2, fusion="mixture"),
    "batch": lambda pack: pack.generate(["a", "bc"], max_new_tokens=2, weights={"long": 1.0}),
    "score": lambda pack: pack.score("Hello", " the true"),
    "weigh": lambda pack: pack.weigh("Hello the true"),
    "model": lambda pack: pack.model.generate(torch.tensor([[65, 66]]), max_new_tokens=2),
    "queue": lambda pack: pack.answers(pack.request("Hello", {"max_new_tokens": 2})),
    "forget": lambda pack: pack.forget(),
}
OUTER: list[dict[str, Any]] = [
    {}, {"fusion": "mixture"}, {"fusion": "unite"}, {"gate": "safe"}, {"draft": "reference"},
    {"gate": "nudge"}, {"weights": {"long": 0.3, "short": 0.7}}, {"num_beams": 2},
    {"temperature": 1.5, "seed": 4},
]  # fmt: skip


@pytest.mark.parametrize("outer", OUTER, ids=lambda s: "-".join(map(str, s.items())) or "plain")
def test_a_call_inside_a_call_changes_nothing(outer: dict[str, Any]) -> None:
    """Every step asks the pack something else, from a logits processor and from a criterion."""
    pack = small_pack()
    asked: list[str] = []
    settings = {"max_new_tokens": len(NESTED), **outer}

    def ask() -> None:
        name = list(NESTED)[len(asked) % len(NESTED)]
        asked.append(name)
        NESTED[name](pack)

    def process(ids: Any, scores: Any) -> Any:
        ask()
        return scores

    def stop(ids: Any, scores: Any, **_: Any) -> bool:
        ask()
        return False

    usual = pack.generate("Hello", **settings)
    for own in ({"logits_processor": [process]}, {"stopping_criteria": [stop]}):
        asked.clear()
        found = pack.generate("Hello", **settings, **own)
        assert found.token_ids == usual.token_ids
        assert set(asked) == set(list(NESTED)[: len(asked)])
        assert found.record.fusion == usual.record.fusion
        assert found.record.gate == usual.record.gate
        assert found.record.weights == usual.record.weights


# Why an answer ended.


def after(tokens: int) -> Callable[..., bool]:
    """A criterion that ends all rows after so many tokens of the answer."""
    first: list[int] = []

    def done(ids: torch.Tensor, scores: Any, **_: Any) -> bool:
        first.append(ids.shape[1])
        return ids.shape[1] - first[0] + 1 >= tokens

    return done


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"draft": "reference"}], ids="-".join)
def test_time_and_criteria_have_reasons_of_their_own(pack: Pack, more: dict[str, Any]) -> None:
    usual = pack.generate("Hello", max_new_tokens=NEW, **more).record
    assert usual.finish_reason == "length"
    late = pack.generate("Hello", max_new_tokens=NEW, max_time=1e-6, **more)
    assert late.record.finish_reason == "time"
    assert 0 < len(late.token_ids) < NEW
    ended = pack.generate("Hello", max_new_tokens=NEW, stopping_criteria=[after(2)], **more)
    assert ended.record.finish_reason == "criteria"
    assert 0 < len(ended.token_ids) < NEW
    last = pack.generate("Hello", max_new_tokens=NEW, max_time=1e6, **more).record
    assert last.finish_reason == "length"


def test_one_row_that_a_criterion_ends_has_no_padding(pack: Pack) -> None:
    alone = pack.generate(["Hello", "the lo"], max_new_tokens=NEW)

    def first_only(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        count[0] += 1
        return torch.tensor([count[0] >= 2, False])

    count = [0]
    first, second = pack.generate(
        ["Hello", "the lo"], max_new_tokens=NEW, stopping_criteria=[first_only]
    )
    assert first.token_ids == alone[0].token_ids[:2]
    assert (first.record.finish_reason, second.record.finish_reason) == ("criteria", "length")
    assert second.token_ids == alone[1].token_ids


def test_the_time_for_reading_the_prompt_counts(pack: Pack) -> None:
    """A first token always comes; the second does not where the prompt took all the time."""
    late = pack.generate("Hello " * 60, max_new_tokens=NEW, max_time=1e-3)
    assert (late.record.finish_reason, len(late.token_ids)) == ("time", 1)


def test_front_ends_give_the_reasons_of_their_contracts(pack: Pack) -> None:
    chat = ChatPackFuse(pack=pack, max_tokens=NEW, timeout=1e-6).invoke("Hello")
    assert chat.response_metadata["finish_reason"] == "length"
    assert chat.response_metadata["fusion"]["finish_reason"] == "time"
    own: dict[str, Any] = {"stopping_criteria": [after(2)]}
    found = PackFuseLLM(pack=pack, max_tokens=NEW).generate(["Hello"], **own).generations[0][0]
    assert found.generation_info is not None
    assert found.generation_info["finish_reason"] == "stop"
    late = PackFuse(pack=pack, max_new_tokens=NEW).complete("Hello", max_time=1e-6)
    assert late.additional_kwargs["finish_reason"] == "length"


# The record.


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_parts_refuse_what_is_no_json(pack: Pack, value: float) -> None:
    for arguments in (
        {"weighting": {"name": "sim", "tau": value}},
        {"weighting": {"name": "exact", "shrinkage": value}},
        {"weights": {"long": value, "short": 1.0}},
        {"gate": {"name": "safe", "threshold": value}},
    ):
        with pytest.raises((ConfigError, PackError)):
            pack.generate("Hello", **arguments)


def test_an_infinite_loss_is_json() -> None:
    values = by_name(["a", "b", "c"], [1.5, float("inf"), float("nan")])
    assert values == {"a": 1.5, "b": NO_INFINITY}  # NaN stands for a member that read nothing
    assert json.loads(json.dumps(values, allow_nan=False)) == values
