"""Models with a recurrent state, which llama.cpp cannot roll back: they are read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packfuse import Pack
from packfuse.models.llama_cpp import LlamaCppMember
from packfuse.models.llama_cpp.context import STATEFUL_SEQUENCES
from packfuse.models.member import Read
from tests.models.llama_cpp.conftest import LlamaCppLaws, opened
from tests.models.llama_cpp.test_llama_cpp_member import IDS, assert_same, whole
from tests.support.starter_files import write_mamba


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mamba."""
    path = tmp_path_factory.mktemp("recurrent") / "mamba.gguf"
    write_mamba(path, 3, context=512)
    return path


@pytest.fixture(scope="module")
def member(mamba: Path) -> LlamaCppMember:
    """The Mamba under llama.cpp."""
    return opened(mamba)


class TestLaws(LlamaCppLaws):
    """The laws of members."""


@pytest.mark.parametrize("cut", [0, 1, 20, 59])
def test_a_rolled_back_text_is_read_again(member: LlamaCppMember, cut: int) -> None:
    session = member.open()
    member.read([Read(session, IDS)])
    twin = member.fork(session)
    member.rollback(session, cut)
    assert session.ids == IDS[:cut]
    found = member.read([Read(session, IDS[cut:], 1)])[0]
    assert_same(found[0], whole(member, IDS)[-1])
    more = member.read([Read(twin, [9, 8])])[0]
    assert_same(more[0], whole(member, [*IDS, 9, 8])[-1])


def test_more_sessions_than_states(member: LlamaCppMember) -> None:
    texts = [
        [3 + (7 * number + i) % 250 for i in range(9)] for number in range(STATEFUL_SEQUENCES + 5)
    ]
    sessions = [member.open() for _ in texts]
    member.read([Read(one, text) for one, text in zip(sessions, texts, strict=True)])
    for session, text in zip(sessions, texts, strict=True):
        found = member.read([Read(session, [9])])[0]
        assert_same(found[0], whole(member, [*text, 9])[-1])


def test_a_pack_with_an_attention_model(mamba: Path, other: Path) -> None:
    pack = Pack.from_pretrained([str(other), str(mamba)], progress=False, reference="other")
    one = pack.generate("number 3 of the llamas", max_new_tokens=10)
    two = pack.generate(["number 3 of the llamas", "hello"], max_new_tokens=10)[0]
    assert one.token_ids == two.token_ids
    assert torch.tensor(list(one.record.weights.values())).sum() == pytest.approx(1, abs=1e-6)
