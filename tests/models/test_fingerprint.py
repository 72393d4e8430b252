"""What a model is now: told apart after every kind of change, equal where nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from packfuse import Pack
from packfuse.causal_lm.cache import FusedCache
from packfuse.errors import MemberError
from packfuse.fusion import engine
from packfuse.models.fingerprint import ModelState, content_digest
from packfuse.models.hf_member import HFMember
from packfuse.models.int8 import int8_copy
from packfuse.models.member import Read
from tests.support import pico, small

PROMPT = "the hello of a hello that the long hello tells, and "
VOCABULARY = small.vocabulary("long")


class Adapted(nn.Module):
    """A linear layer with an adapter of rank one, which is switched as PEFT's layers are."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters, self.scaling = False, {"default": 1.0}
        self.merged_adapters: list[str] = []
        generator = torch.Generator().manual_seed(1)
        self.up = nn.Parameter(torch.randn(base_layer.out_features, 1, generator=generator))
        self.down = nn.Parameter(torch.randn(1, base_layer.in_features, generator=generator))

    @property
    def delta(self) -> Tensor:
        return self.scaling["default"] * self.up @ self.down

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.base_layer(hidden)
        if self._disable_adapters or self.merged_adapters:
            return out
        return out + hidden @ self.delta.T

    def merge(self) -> None:
        self.base_layer.weight.data += self.delta.data
        self.merged_adapters.append("default")


def model(seed: int = 0) -> Any:
    """A tiny Llama with an adapter on one layer."""
    made: Any = pico.tiny_model(VOCABULARY.tokenizer, seed=seed)  # type: ignore[arg-type]
    made = copy.deepcopy(made)
    made.model.layers[0].mlp.up_proj = Adapted(made.model.layers[0].mlp.up_proj)
    return made


def adapter(made: Any) -> Adapted:
    found = made.model.layers[0].mlp.up_proj
    assert isinstance(found, Adapted)
    return found


def disable_adapter(made: Any) -> None:
    adapter(made)._disable_adapters = True


def set_scale(made: Any) -> None:
    adapter(made).scaling["default"] = 3.0


def merge_and_scale(made: Any) -> None:
    adapter(made).scaling["default"] = 2.0
    adapter(made).merge()


def edit_in_place(made: Any) -> None:
    with torch.no_grad():
        made.lm_head.weight[ord("a") : ord("z")] *= 3.0


def edit_one_weight(made: Any) -> None:
    with torch.no_grad():
        made.model.norm.weight[3] += 4.0


def edit_data(made: Any) -> None:
    made.model.layers[1].self_attn.v_proj.weight.data.mul_(-2.0)


def edit_row_of_data(made: Any) -> None:
    made.model.embed_tokens.weight.data[ord(" ")] = 1.0


def assign_data(made: Any) -> None:
    made.lm_head.weight.data = made.lm_head.weight.data.flip(0)


def assign_parameter(made: Any) -> None:
    made.model.norm.weight = nn.Parameter(-made.model.norm.weight.detach())


def load_state_dict(made: Any) -> None:
    made.load_state_dict(model(seed=5).state_dict())


def replace_module(made: Any) -> None:
    made.model.layers[1].mlp = copy.deepcopy(model(seed=5).model.layers[1].mlp)


def replace_head(made: Any) -> None:
    made.lm_head = copy.deepcopy(model(seed=5).lm_head)


def drop_layer(made: Any) -> None:
    made.model.layers = made.model.layers[:1]
    made.config.num_hidden_layers = 1


def steer(made: Any) -> None:
    made.model.layers[0].register_forward_hook(lambda _, __, out: out * -1.0)


def to_bfloat16(made: Any) -> None:
    made.to(torch.bfloat16)


CHANGES: list[Callable[[Any], None]] = [
    disable_adapter, set_scale, merge_and_scale, edit_in_place, edit_one_weight, edit_data,
    edit_row_of_data, assign_data, assign_parameter, load_state_dict, replace_module, replace_head,
    drop_layer, steer, to_bfloat16,
]  # fmt: skip
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def pack_of(own: PreTrainedModel, reference: str = "long", **settings: Any) -> Pack:
    """The model as the member "long", beside one that is never changed."""
    short = small.vocabulary("short")
    other = pico.tiny_model(short.tokenizer, seed=9)  # type: ignore[arg-type]
    members = [HFMember("long", own, VOCABULARY), HFMember("short", other, short)]
    return Pack(members, progress=False, reference=reference, **{"weighting": "sim", **settings})


def generated(pack: Pack) -> Any:
    return pack.generate(PROMPT, max_new_tokens=6).text


def weights(pack: Pack) -> Any:
    return pack.weigh(PROMPT, ["exact"]).weights["exact"]["long"]


def score(pack: Pack) -> Any:
    return pack.score(PROMPT, "the hello")


def fused_logps(pack: Pack) -> Any:
    ids = torch.tensor([pack.tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        return pack.model(ids).logits[0, -1].tolist()


def by_transformers(pack: Pack) -> Any:
    ids = torch.tensor([pack.tokenizer(PROMPT).input_ids])
    return pack.model.generate(ids, max_new_tokens=6)[0].tolist()


USES: list[Callable[[Pack], Any]] = [
    generated, weights, score, fused_logps, by_transformers
]  # fmt: skip


@every_change
def test_after_a_change_a_pack_answers_like_a_new_one(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_SHARE", 1.0)  # the head is pruned, little though it saves
    own = model()
    pack, new = (pack_of(own, "short", heads="pruned", prefix_cache=2**24) for _ in range(2))
    before = [use(pack) for use in USES]
    pruned: Any = pack.members[0]
    assert pruned._lm_head._pruned
    change(own)
    after = [use(pack) for use in USES]
    for use, found in zip(USES, after, strict=True):
        assert found == pytest.approx(use(new), abs=1e-3), use.__name__
    assert after[-2] != pytest.approx(before[-2], abs=1e-2), "the change changes nothing"


@every_change
def test_what_a_user_holds_is_read_again_after_a_change(change: Callable[[Any], None]) -> None:
    own = model()
    pack = pack_of(own, weighting="uniform")
    chat = pack_of(own, weighting="uniform").model
    ids = torch.tensor([pack.tokenizer(PROMPT).input_ids])
    call = pack.model.call
    held = FusedCache(call, pack.model._read_prompts(ids.tolist(), call))
    begun = FusedCache(pack.model.call)
    pack.model.generate(ids, cache=begun, max_new_tokens=1)
    change(own)
    expected = chat.generate(ids, max_new_tokens=6)
    assert pack.model.generate(ids, cache=held, max_new_tokens=6).tolist() == expected.tolist()
    longer = expected[:, : ids.shape[1] + 2]
    found = pack.model.generate(longer, cache=begun, max_new_tokens=4)
    assert found.tolist() == expected.tolist()


@every_change
def test_quantized_copies_are_made_anew_after_a_change(change: Callable[[Any], None]) -> None:
    own = HFMember("long", model(), VOCABULARY)
    copied = int8_copy(own)
    assert int8_copy(own) is copied
    change(own.model)
    own.refresh()
    assert int8_copy(own) is not copied
    assert int8_copy(own) is int8_copy(own)


@every_change
def test_states_and_digests_tell_every_change(change: Callable[[Any], None]) -> None:
    own, twin = model(), model()
    state, digest = ModelState.of(own, VOCABULARY.tokenizer), content_digest(own)
    assert content_digest(twin) == digest
    change(own)
    assert ModelState.of(own, VOCABULARY.tokenizer) != state
    assert content_digest(own) != digest


def test_forgetting_reads_weights_again_whose_change_nothing_shows() -> None:
    pack = small.small_pack()
    before = pack.identity
    weight = pack.members[0].model.lm_head.weight.data
    weight[5, 7] += 1.0
    pack.forget()
    assert pack.identity != before
    assert small.small_pack().identity == before


def test_reading_changes_no_state() -> None:
    pack = small.small_pack()
    states = [member.state for member in pack.members]
    identity = pack.identity
    for use in USES:
        use(pack)
    assert all(member.state is state for member, state in zip(pack.members, states, strict=True))
    assert pack.identity == identity


def test_reading_beyond_the_first_length_of_rotary_embeddings_changes_no_state() -> None:
    """Then they take other frequencies, which models compute in their first pass."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    }  # fmt: skip
    config = Phi3Config(
        vocab_size=VOCABULARY.columns, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, rope_parameters=rope,
        original_max_position_embeddings=32,
    )  # fmt: skip
    one = HFMember("one", Phi3ForCausalLM(config), VOCABULARY)
    before = ModelState.of(one.model, VOCABULARY.tokenizer)
    for length in (8, 40):
        one.read([Read(one.open(), [5] * length)])
        assert ModelState.of(one.model, VOCABULARY.tokenizer) == before


def test_an_adapter_that_comes_back_finds_its_prompts() -> None:
    own = model()
    pack = pack_of(own, prefix_cache=2**24)
    pack.generate(PROMPT, max_new_tokens=1)
    disable_adapter(own)
    assert pack.generate(PROMPT, max_new_tokens=1).record.usage.cached_tokens == 0
    adapter(own)._disable_adapters = False
    again = pack.generate(PROMPT, max_new_tokens=1).record.usage
    assert again.cached_tokens == again.prompt_tokens - 1


def grow_tokenizer(own: HFMember) -> None:
    own.tokenizer.add_tokens(["<another>"])


def grow_embeddings(own: HFMember) -> None:
    own.model.resize_token_embeddings(1000)


@pytest.mark.parametrize("grow", [grow_tokenizer, grow_embeddings])
def test_a_member_whose_tokens_have_changed_says_so(grow: Callable[[Any], None]) -> None:
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    pack = Pack.from_pretrained([(model(), tokenizer)], progress=False)
    grow(pack.members[0])
    with pytest.raises(MemberError, match=r"embeddings and .* tokens; when it joined"):
        pack.generate(PROMPT, max_new_tokens=1)


def save(folder: Path, made: Any) -> Path:
    made.save_pretrained(folder)
    VOCABULARY.tokenizer.save_pretrained(folder)
    return folder


def tiny(seed: int) -> Any:
    return pico.tiny_model(VOCABULARY.tokenizer, seed=seed)  # type: ignore[arg-type]


def test_identities_are_equal_for_equal_content_and_for_nothing_else(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", tiny(0))

    def load(**settings: Any) -> Pack:
        return Pack.from_pretrained([folder], progress=False, **settings)

    first = load().identity
    pair = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    object_ = Pack.from_pretrained([pair], progress=False)
    assert load().identity == first
    assert object_.identity["members"][0]["weights"] == first["members"][0]["weights"]
    seen = [first, object_.identity]
    for change in (edit_one_weight, assign_data, to_bfloat16):
        change(object_.members[0].model)
        seen.append(object_.identity)
    object_.tokenizer.chat_template = "{{ messages }}"
    seen.append(object_.identity)
    object_.model.generation_config.eos_token_id = [3]
    seen.append(object_.identity)
    seen.append(load(dtype="bfloat16").identity)
    save(folder, tiny(1))
    seen.append(load().identity)
    assert all(seen[i] != seen[k] for i in range(len(seen)) for k in range(i))
