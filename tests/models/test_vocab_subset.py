"""Pruned heads: the same distributions where that is exact, renormalized ones elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.errors import ConfigError
from packfuse.fusion.engine import Engine, read_subset
from packfuse.fusion.pooling import FusionSettings
from packfuse.fusion.rules import rules
from packfuse.models import vocab_subset
from packfuse.models.compute.lm_head import LMHead
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read, ReadCallback
from packfuse.models.vocab_subset import VocabSubset
from packfuse.settings import PackConfig
from tests.support import fusing, pico
from tests.support.heads import COLUMNS, FAMILIES, family
from tests.support.packs import tiny_members, tiny_pack

PROMPT = "The capital of France is Paris, and the capital of"
IDS = torch.randint(0, COLUMNS, (2, 5), generator=torch.Generator().manual_seed(0))
SOME = VocabSubset(torch.tensor([0, 3, 7, 8, 150, 299]), COLUMNS)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_picked_columns_have_the_models_logits(name: str) -> None:
    model = family(name)
    lm_head, positions = LMHead(model), torch.tensor([0, 4, 9])
    assert lm_head.can_prune(SOME)
    found = lm_head.select(positions, SOME)(IDS).logits
    assert torch.allclose(
        found[0], model(IDS).logits.flatten(0, 1)[positions][:, SOME.ids], atol=1e-5
    )


def test_a_pruned_head_lives_as_long_as_its_columns() -> None:
    lm_head = LMHead(family("llama"))
    some = VocabSubset(SOME.ids, COLUMNS)
    assert lm_head.can_prune(some)
    assert len(lm_head._pruned) == 1
    del some
    assert len(lm_head._pruned) == 0


def test_a_model_that_treats_its_columns_unlike_is_not_pruned() -> None:
    """As Chameleon does, which never writes an image."""
    model = family("llama")

    class Biased(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits[..., 4] = 50.0
            return output

    model.__class__ = Biased
    assert not LMHead(model).can_prune(SOME)


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _m, _i, output: output * 2)


def quantized(model: Any) -> None:
    class Packed(nn.Linear):
        pass

    model.lm_head.__class__ = Packed


@pytest.mark.parametrize("change", [None, hooked, quantized])
def test_a_member_normalizes_over_the_columns_asked_about(change: Any) -> None:
    """Whether or not its head can be pruned."""
    model = pico.tiny_model(pico.real_tokenizer("mistral"))
    if change:
        change(model)
    one = HFMember("m", model, fusing.vocabulary("mistral"))
    ids = [1, *range(300, 310)]
    some = VocabSubset(torch.arange(5, 30_000, 7), one.vocabulary.columns)
    assert one._lm_head.can_prune(some) == (change is None)
    whole = one.read([Read(one.open(), ids, 4)])[0]
    session = one.open()
    part = one.read([Read(session, ids, 4, subset=some)])[0]
    assert fusing.gap(part, some.restrict(whole)) < 1e-4
    assert part.exp().sum(-1).allclose(torch.ones(4))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -4:]
    made = logits[:, : one.vocabulary.size] if change else logits[:, some.ids]
    assert session.log_normalizers is not None
    assert session.log_normalizers.allclose(made.logsumexp(-1), atol=1e-4)


def engine(alignment: Any, heads: Any) -> Engine:
    """Mistral's 32,000 tokens as reference; DeepSeek's 128,000 are pruned to what it reads."""
    members = [fusing.member("mistral"), fusing.member("deepseek", seed=1)]
    return Engine(members, 0, alignments().make(alignment), heads=heads)


def fused_logps(one: Engine, steps: int = 6, rule: str = "packllm") -> Tensor:
    """Fused distributions along a text, `[steps, V]`."""
    from packfuse.text.prompt import from_ids

    ids = one.reference.encode(PROMPT + " Germany is Berlin.")
    vocabularies = [member.vocabulary for member in one.members]
    fusion = FusionSettings(rule=rules().make(rule))
    row = one.open(from_ids([*one.reference.prefix_ids, *ids[:9]], vocabularies, 0), fusion)
    row.feed(row.prompt.stream)
    one.read_prompt(row, [None] * len(one.members))
    one.fuse_prompt([row], fusion)
    assert row.fused_logps is not None
    later = [one.advance([row], [[index]], fusion)[0, 0] for index in ids[9 : 8 + steps]]
    return torch.stack([row.fused_logps, *later])


@pytest.mark.parametrize(
    "alignment", ["prefix", "mined", {"name": "mined", "inputs": "text"}], ids=str
)
def test_tables_lose_nothing(alignment: Any) -> None:
    pruned = engine(alignment, "pruned")
    some = pruned._subsets[1]
    assert some is not None
    assert len(some.ids) < 0.3 * some.count
    assert fusing.gap(fused_logps(pruned), fused_logps(engine(alignment, "full"))) < 1e-4


def test_bytes_read_the_twins_and_what_the_member_writes_for_the_others() -> None:
    member, reference = fusing.vocabulary("deepseek"), fusing.vocabulary("mistral")
    pairing = alignments().make("bytes").pair(member, reference)
    some = read_subset(pairing, member)
    assert some is not None
    assert not some.exact
    kept = set(some.ids.tolist())
    assert kept.issuperset(member.end_ids)
    for token in list(reference.ids_of)[::97]:
        assert kept.issuperset(member.ids_of.get(token, ())), token
        assert kept.issuperset(member.encode(token.decode(errors="replace"))), token


def test_nothing_is_pruned_where_little_would_be_saved() -> None:
    small, large = fusing.vocabulary("mistral"), fusing.vocabulary("deepseek")
    for name in ("bytes", "prefix"):
        assert read_subset(alignments().make(name).pair(small, large), small) is None
        assert read_subset(alignments().make(name).pair(small, small), small) is None


def test_rules_that_compare_words_hear_all_of_them() -> None:
    one = engine("prefix", "pruned")
    assert fused_logps(one, rule="unite").equal(fused_logps(engine("prefix", "full"), rule="unite"))


def test_weights_and_losses_are_those_of_full_heads() -> None:
    full, pruned = (
        tiny_pack(tiny_members(["mistral", "deepseek"]), reference="mistral", heads=heads)
        for heads in ("full", "pruned")
    )
    answers = [pack.generate(PROMPT, max_new_tokens=4) for pack in (full, pruned)]
    assert answers[0].record.weights == answers[1].record.weights
    assert answers[0].record.prompt_loss == answers[1].record.prompt_loss


@pytest.mark.parametrize(("most", "kept"), [(0.0, False), (1.0, True)])
def test_a_prompt_beyond_the_columns_leaves_the_head_full(
    monkeypatch: pytest.MonkeyPatch, most: float, kept: bool
) -> None:
    """Random models spread their mass, so that most of it lies outside."""
    monkeypatch.setattr("packfuse.models.member.MAX_PRUNED_MASS", most)
    one = fusing.member("deepseek")
    some = VocabSubset(torch.arange(0, 20_000), one.vocabulary.columns)
    session, seen = one.open(), list[Tensor]()
    ids = one.vocabulary.encode(PROMPT)
    request = Read(session, ids, 2, ReadCallback(lambda _, logps: seen.append(logps)), some)
    last = one.read([request])[0]
    whole = torch.cat(seen)
    outside = 1 - whole[:, :20_000].exp().sum(-1)
    assert session.pruned_mass == pytest.approx(float(outside.mean()), abs=1e-5)
    assert fusing.gap(last, some.restrict(whole[-2:]) if kept else whole[-2:]) < 1e-4
    for session_ in (one.fork(session), session):
        then = one.read([Read(session_, [5], subset=some)])[0]
        assert bool(torch.isneginf(then[0, 20_000:]).all()) == kept


def test_an_exact_table_never_leaves_its_columns() -> None:
    one = fusing.member("deepseek")
    some = VocabSubset(torch.arange(0, 100), one.vocabulary.columns, exact=True)
    session = one.open()
    ids = one.vocabulary.encode(PROMPT)
    assert len(one.read([Read(session, ids, 1, ReadCallback(lambda *_: None), some)])) == 1
    assert torch.isneginf(one.read([Read(session, [5], subset=some)])[0][:, 100:]).all()


def test_packs_remember_the_setting(tmp_path: Any) -> None:
    folders = [str(pico.save_tiny(tmp_path / name, name)) for name in ("mistral", "deepseek")]
    pack = Pack.from_pretrained(folders, heads="pruned", progress=False)
    assert pack.settings.heads == "pruned"
    pack.save_config(tmp_path / "pack.yaml")
    assert PackConfig.read(tmp_path / "pack.yaml").heads == "pruned"
    again = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    assert again.settings.heads == "pruned"
    pruned = [some for some in again.model.engine._subsets if some is not None]
    assert pruned or again.model.engine.reference.columns > 100_000


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"heads: Input should be 'full' or 'pruned'"):
        tiny_pack(tiny_members(["mistral"]), heads="half")
    assert vocab_subset.MAX_PRUNED_MASS < vocab_subset.MAX_SHARE
