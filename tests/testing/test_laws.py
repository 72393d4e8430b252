"""The public laws hold for every part of the package, and a part that breaks one is caught."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment, Pairing
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Session
from packfuse.testing import AlignmentLaws, MemberLaws, RuleLaws, WeightingLaws
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Evidence, Weighting, Weights
from tests.support import fusing


def laws(kind: type[Any]) -> list[str]:
    """The names of a mixin's laws."""
    return [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if name[:5] == "test_"]


def without_parameters(parts: dict[str, Any]) -> list[Any]:
    return [
        p() for p in parts.values() if not any(f.is_required() for f in p.model_fields.values())
    ]


@pytest.mark.parametrize("law", laws(RuleLaws))
@pytest.mark.parametrize("rule", without_parameters(rules().parts), ids=lambda r: r.name)
def test_rules_satisfy_their_laws(rule: Rule, law: str) -> None:
    class Laws(RuleLaws):
        part = rule

    getattr(Laws(), law)()


@pytest.mark.parametrize("law", laws(WeightingLaws))
@pytest.mark.parametrize("weighting", without_parameters(weightings().parts), ids=lambda w: w.name)
def test_weightings_satisfy_their_laws(weighting: Weighting, law: str) -> None:
    class Laws(WeightingLaws):
        part = weighting

    getattr(Laws(), law)()


@pytest.mark.parametrize("law", laws(AlignmentLaws))
@pytest.mark.parametrize("alignment", without_parameters(alignments().parts), ids=lambda a: a.name)
def test_alignments_satisfy_their_laws(alignment: Alignment, law: str) -> None:
    class Laws(AlignmentLaws):
        part = alignment

        def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
            return fusing.vocabulary("tekken"), fusing.vocabulary("mistral")

    getattr(Laws(), law)()


class OfTinyModels(MemberLaws):
    """The laws on a tiny model over a real tokenizer."""

    ids = fusing.vocabulary("mistral").encode("The capital of France is Paris, isn't it?")
    arch: ClassVar[str] = "llama"

    def member(self) -> HFMember:
        return fusing.member("mistral", self.arch)


@pytest.mark.parametrize("law", laws(MemberLaws))
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_members_satisfy_their_laws(arch: str, law: str) -> None:
    class Laws(OfTinyModels):
        pass

    Laws.arch = arch
    getattr(Laws(), law)()


def broken_rules() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """By law, a rule that breaks it."""

    def mean(logps: Tensor, weights: Tensor) -> Tensor:
        return rules().make("mixture").fuse(logps, weights)

    def writes(logps: Tensor, weights: Tensor) -> Tensor:
        return logps.mul_(2).mean(0).log_softmax(-1)

    def smooths(logps: Tensor, weights: Tensor) -> Tensor:
        return (mean(logps, weights).exp() + 1e-3).log().log_softmax(-1)

    return {
        "test_the_result_is_a_distribution": lambda p, w: mean(p, w) - 1,
        "test_copies_of_one_member_keep_its_first_choice": lambda p, w: (-mean(p, w)).log_softmax(
            -1
        ),
        "test_a_member_with_weight_zero_changes_nothing": lambda p, w: p[-1],
        "test_positions_are_independent": lambda p, w: mean(p, w).roll(1, 0),
        "test_an_impossible_token_stays_impossible": smooths,
        "test_arguments_are_not_changed": writes,
    }


@pytest.mark.parametrize("law", broken_rules())
def test_a_rule_that_breaks_a_law_is_caught(law: str) -> None:
    class Broken(type(rules().make("mixture"))):  # type: ignore[misc]
        def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
            return broken_rules()[law](logps, weights)

    class Laws(RuleLaws):
        part = Broken()

    with pytest.raises(AssertionError):
        getattr(Laws(), law)()


@pytest.mark.parametrize(
    ("law", "fit"),
    [
        ("test_weights_are_weights", lambda e: np.full(e.members, 1.0)),
        ("test_one_member_has_all_the_weight", lambda e: np.full(e.members, 1 / 3)),
        ("test_the_same_evidence_gives_the_same_weights", lambda e: np.random.rand(e.members)),
        ("test_evidence_is_not_changed", lambda e: e.losses.__imul__(2)),
        ("test_a_prompt_without_scored_tokens_gives_weights", lambda e: e.losses / e.tokens),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_weighting_that_breaks_a_law_is_caught(law: str, fit: Callable[[Any], Any]) -> None:
    class Broken(type(weightings().make("top1"))):  # type: ignore[misc]
        def fit(self, evidence: Evidence, pool: str) -> Weights:
            found: Weights = fit(evidence)
            return found

    class Laws(WeightingLaws):
        part = Broken()

    with pytest.raises(AssertionError):
        getattr(Laws(), law)()


def test_an_alignment_that_loses_mass_is_caught() -> None:
    class Halves(Pairing):
        def carry(self, member: Any, reference: Tensor, straddles: Any) -> Tensor:
            return reference + 0.7

    class Broken(type(alignments().make("prefix"))):  # type: ignore[misc]
        def pair(self, *_: Any) -> Pairing:
            return Halves()

    class Laws(AlignmentLaws):
        part = Broken()

        def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
            return fusing.vocabulary("tekken"), fusing.vocabulary("mistral")

    for law in laws(AlignmentLaws)[:-1]:
        if law in ("test_arguments_are_not_changed", "test_it_can_be_written_down"):
            continue
        if law == "test_columns_beyond_the_vocabulary_get_no_mass":
            continue
        with pytest.raises(AssertionError):
            getattr(Laws(), law)()


@pytest.mark.parametrize(
    ("method", "law"),
    [
        ("rollback", "test_a_rolled_back_session_goes_on_as_if_nothing_had_followed"),
        ("fork", "test_a_fork_is_independent"),
        ("keep", "test_a_kept_beginning_goes_on_by_itself"),
    ],
)
def test_a_member_that_breaks_a_law_is_caught(method: str, law: str) -> None:
    class Broken(HFMember):
        def rollback(self, session: Session, length: int) -> None:
            if method != "rollback":
                super().rollback(session, length)

        def fork(self, session: Session) -> Session:
            return session if method == "fork" else super().fork(session)

        def keep(self, session: Session, length: int) -> Session:
            return super().keep(session, length + 1 if method == "keep" else length)

    class Laws(OfTinyModels):
        def member(self) -> HFMember:
            own = fusing.member("mistral")
            return Broken(own.name, own.model, own.vocabulary)

    with pytest.raises((AssertionError, IndexError, ValueError)):
        getattr(Laws(), law)()


def test_random_numbers_are_repeatable() -> None:
    class Laws(RuleLaws):
        part = rules().make("mixture")

    assert all(map(torch.equal, Laws().distributions(), Laws().distributions()))
