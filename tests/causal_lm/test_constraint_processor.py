"""The masks of a constraint, and constrained decoding outside the support of a fusion rule."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from torch import Tensor

from packfuse.causal_lm.constraint_processor import ConstraintProcessor
from packfuse.constraint import Constraint, Grammar, JsonSchema, Regex
from packfuse.errors import ConstraintError
from packfuse.fusion.pooling import FusionSettings
from packfuse.fusion.rules.pools import LAST_RESORT, arithmetic, with_full_support
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing
from tests.support.fusing import PROMPT
from tests.support.small import small_pack, vocabulary

VOCABULARY = vocabulary("long", pad=True)
END = VOCABULARY.end_ids[0]
CONSTRAINTS: list[Constraint] = [
    Regex("(he|hello|the ){1,4}x?"),
    Grammar('start: "a" start "b" | "true" | "é日"'),
    JsonSchema({"type": "object", "properties": {"the ": {"type": "string"}, "n": {"const": 1}}}),
    JsonSchema({"type": "array", "items": {"type": "integer"}}),
]
BOOL = {"type": "boolean"}
SEED = strategies.integers(0, 2**16)


def allowed(constrained: ConstraintProcessor, rows: list[list[int]]) -> Tensor:
    """The tokens that are allowed next in each row, `[B, V]`."""
    scores = torch.zeros(len(rows), VOCABULARY.columns)
    return torch.isfinite(constrained(torch.tensor(rows), scores))


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether the constraint allows a text in the tokenizer's own tokens, and its end."""
    constrained = ConstraintProcessor(VOCABULARY, constraint, 1)
    written = [0]
    for token in [*VOCABULARY.encode(text), END]:
        if not allowed(constrained, [written])[0, token]:
            return False
        written.append(token)
    return True


def walk(constraint: Constraint, choices: list[int]) -> list[int]:
    """A text that the constraint allows, one token for each choice, until it ends."""
    written: list[int] = []
    constrained = ConstraintProcessor(VOCABULARY, constraint, 0)
    for choice in choices:
        mask = allowed(constrained, [written])[0]
        options = mask.nonzero().flatten().tolist()
        written.append(options[choice % len(options)])
        if written[-1] == END:
            break
    return written


@given(strategies.data())
def test_any_order_of_rows_gives_the_masks_of_a_fresh_start(data: strategies.DataObject) -> None:
    """Beams are reordered, drafts rejected, batches shrink, finished rows are padded."""
    constraint = data.draw(strategies.sampled_from(CONSTRAINTS))
    walks = strategies.lists(SEED, min_size=1, max_size=8)
    texts = [
        walk(constraint, data.draw(walks)) for _ in range(data.draw(strategies.integers(1, 4)))
    ]
    left = data.draw(strategies.integers(0, 3))
    constrained = ConstraintProcessor(VOCABULARY, constraint, left)
    for _ in range(data.draw(strategies.integers(1, 6))):
        length = data.draw(strategies.integers(0, 9))
        pads = data.draw(strategies.sampled_from([END, VOCABULARY.tokenizer.pad_token_id]))
        picked = data.draw(strategies.lists(strategies.sampled_from(texts), min_size=1, max_size=4))
        ended = [text if END in text else [*text, END] for text in picked]
        rows = [(text + [pads] * 9)[:length] for text in ended]
        masks = allowed(constrained, [[7] * left + row for row in rows])
        for row, mask in zip(rows, masks, strict=True):
            fresh = ConstraintProcessor(VOCABULARY, constraint, 0)
            assert mask.equal(allowed(fresh, [row])[0])
            assert mask.any()


@given(strategies.lists(SEED, max_size=30))
def test_every_walk_ends_in_a_text_of_the_constraint(choices: list[int]) -> None:
    for constraint in CONSTRAINTS:
        written = walk(constraint, choices)
        if written and written[-1] == END:
            assert accepts(constraint, VOCABULARY.decode(written).decode())


def test_tokens_that_the_constraint_allows_keep_their_scores() -> None:
    scores = torch.randn(2, VOCABULARY.columns, generator=torch.Generator().manual_seed(0))
    constrained = ConstraintProcessor(VOCABULARY, Regex("[a-f]+"), 0)
    masked = constrained(torch.tensor([[ord("a")], [ord("b")]]), scores)
    letters = [*range(ord("a"), ord("f") + 1), END]
    assert masked[:, letters].equal(scores[:, letters])
    others = [index for index in range(VOCABULARY.columns) if index not in letters]
    assert torch.isneginf(masked[:, others]).all()


def test_if_no_allowed_token_has_a_score_all_allowed_tokens_are_equal() -> None:
    scores = torch.full((1, VOCABULARY.columns), -torch.inf)
    masked = ConstraintProcessor(VOCABULARY, Regex("[ab]"), 0)(
        torch.zeros(1, 0, dtype=torch.long), scores
    )
    assert torch.isfinite(masked[0]).nonzero().flatten().tolist() == [ord("a"), ord("b")]


def test_control_tokens_and_padding_are_never_text() -> None:
    mask = allowed(ConstraintProcessor(VOCABULARY, Regex("(.|\n)*"), 0), [[]])[0]
    special = [i for i, token in enumerate(VOCABULARY.token_bytes) if token is None]
    assert [index for index in special if mask[index]] == [END]


def test_tags_of_calls_may_be_control_tokens() -> None:
    own = fusing.bpe("ok", controls=("<end>", "<tool_call>"))
    constrained = ConstraintProcessor(own, Grammar('start: "<tool_call>" "ok"'), 0)
    tag, word = own.controls["<tool_call>"], own.encode("ok")[0]
    assert allowed(constrained, [[]])[0].nonzero().flatten().tolist() == [tag]
    assert allowed(constrained, [[tag]])[0].nonzero().flatten().tolist() == [word]
    assert allowed(constrained, [[tag, word]])[0].nonzero().flatten().tolist() == list(own.end_ids)


def test_a_text_that_does_not_fit_the_constraint_is_an_error() -> None:
    with pytest.raises(ConstraintError, match=r"does not fit the constraint .*processors"):
        allowed(ConstraintProcessor(VOCABULARY, Regex("ab"), 0), [[ord("x")]])


def test_a_vocabulary_without_an_end_token_is_an_error() -> None:
    endless = fusing.bpe(name="endless")
    endless.end_ids = ()
    with pytest.raises(ConstraintError, match=r"endless.* no end token"):
        ConstraintProcessor(endless, Regex("a"), 0)


def test_a_vocabulary_is_freed_after_its_constraints() -> None:
    own = Vocabulary(fusing.bpe("hello").tokenizer)
    assert ConstraintProcessor(own, Regex("a"), 0) is not None
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None


# JSON schemas: the texts that they allow.

OBJECT = {"type": "object", "properties": {"a": BOOL}, "required": ["a"]}
CLOSED: list[tuple[dict[str, Any], Any, Any]] = [
    (OBJECT, {"a": True}, {"a": True, "b": 1}),
    ({"properties": {"a": BOOL}}, {}, {"b": 1}),
    ({"type": "array", "items": OBJECT}, [{"a": True}], [{"a": True, "b": 1}]),
    (
        {"$defs": {"P": OBJECT}, "properties": {"p": {"$ref": "#/$defs/P"}}},
        {"p": {"a": False}},
        {"p": {"a": False, "b": 1}},
    ),
    ({"anyOf": [OBJECT, {"type": "null"}]}, {"a": True}, {"a": True, "b": 1}),
    ({"properties": {"properties": OBJECT}}, {"properties": {"a": True}}, {"properties": {}}),
    ({"properties": {"const": OBJECT}}, {"const": {"a": True}}, {"const": {"a": True, "b": 1}}),
]


@pytest.mark.parametrize(("schema", "fits", "more"), CLOSED, ids=str)
def test_objects_have_the_listed_properties_only(
    schema: dict[str, Any], fits: Any, more: Any
) -> None:
    before = json.dumps(schema)
    assert accepts(JsonSchema(schema), json.dumps(fits))
    assert not accepts(JsonSchema(schema), json.dumps(more))
    assert json.dumps(schema) == before


def test_open_objects_have_further_properties() -> None:
    more = json.dumps({"a": True, "b": 1})
    assert accepts(JsonSchema(OBJECT, closed=False), more)
    assert accepts(JsonSchema({**OBJECT, "additionalProperties": {"type": "integer"}}), more)
    assert accepts(JsonSchema({"type": "object"}), more)


@pytest.mark.parametrize("key", ["const", "enum"])
def test_values_that_look_like_schemas_are_not_changed(key: str) -> None:
    value = {"properties": {"b": 1}}
    schema = {key: value if key == "const" else [value]}
    assert accepts(JsonSchema(schema), json.dumps(value))


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers(-999, 999)
    | strategies.text(strategies.characters(exclude_categories=["Cs", "Cc"]), max_size=6),
    lambda inner: strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.sampled_from(["a", "b", "the "]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(JSON)
def test_every_value_may_be_written_as_json_writes_it(value: Any) -> None:
    assert accepts(JsonSchema({}), json.dumps(value, ensure_ascii=False))
    if isinstance(value, dict | list) and len(value) > 1:
        assert not accepts(JsonSchema({}), json.dumps(value, ensure_ascii=False, indent=1))
        assert not accepts(
            JsonSchema({}), json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        )


# Tokens outside the support of a rule rank last instead of being impossible.

MEMBERS = strategies.integers(1, 3)


@given(MEMBERS, SEED, strategies.integers(0, 8))
def test_full_support_keeps_the_rules_distribution_and_ranks_the_rest_by_the_mean(
    count: int, seed: int, dropped: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logps = (3 * torch.randn(count, 2, 12, generator=generator)).log_softmax(-1)
    weights = torch.rand(2, count, generator=generator) + 0.1
    weights /= weights.sum(-1, keepdim=True)
    fused = torch.randn(2, 12, generator=generator).log_softmax(-1)
    fused[:, :dropped] = -torch.inf
    found = with_full_support(fused, logps, weights)
    assert found[:, dropped:].equal(fused[:, dropped:])
    mean = torch.einsum("nk,knv->nv", weights, logps.exp()).log()
    assert torch.allclose(found[:, :dropped] - LAST_RESORT, mean[:, :dropped], atol=2e-3)
    assert (found[:, :dropped].amax() if dropped else -torch.inf) < found[:, dropped:].amin()
    assert not dropped or arithmetic(logps, weights).isfinite().all()


WORDS = ["Zebra", "Quark", "日の出", "Zero", "Quart"]


def test_outside_the_rules_support_the_members_mean_decides() -> None:
    """UniTE with k = 1 proposes a token or two; none of them begins one of the words."""
    pack = small_pack(fusion={"name": "unite", "k": 1}, weighting="uniform")
    model, own = pack.model, pack.members[0].vocabulary
    answer = pack.generate(PROMPT, constraint=Regex("|".join(WORDS)), max_new_tokens=12)
    assert answer.text in WORDS
    recorded: list[tuple[Tensor, Tensor]] = []
    ids, written, rescued = own.encode(PROMPT), b"", 0
    for token in answer.token_ids:
        watched = fusing.cache(
            model, observer=lambda _, position: recorded.append((position.logps, position.fused))
        )
        model(torch.tensor([ids]), past_key_values=watched, logits_to_keep=1)
        logps, fused = recorded[-1]
        options = [
            index
            for index, spelled in enumerate(own.token_bytes)
            if spelled and any(word.encode().startswith(written + spelled) for word in WORDS)
        ] or [own.end_ids[0]]
        proposed = [index for index in options if torch.isfinite(fused[index])]
        mean = logps.exp().mean(0)
        best = max(proposed or options, key=lambda i: float(fused[i] if proposed else mean[i]))
        rescued += not proposed and len(options) > 1
        assert token == best
        written += own.token_bytes[token] or b""
        ids.append(token)
    assert rescued > 0


def test_full_support_is_used_in_constrained_calls_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(fusion="unite")
    seen: list[bool] = []
    fuse = FusionSettings.fuse

    def watched(self: FusionSettings, *arguments: Any) -> Any:
        seen.append(self.full_support)
        return fuse(self, *arguments)

    monkeypatch.setattr(FusionSettings, "fuse", watched)
    pack.generate(PROMPT, constraint=Regex("[xyz]"))
    assert set(seen) == {True}
    with pytest.raises(ConstraintError):
        pack.generate(PROMPT, constraint=Regex("x[a&&b]"))
    seen.clear()
    pack.model(torch.tensor([pack.members[0].vocabulary.encode(PROMPT)]))
    pack.generate(PROMPT, max_new_tokens=2)
    assert set(seen) == {False}
