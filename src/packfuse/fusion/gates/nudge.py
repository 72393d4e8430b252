"""The gate of nudging: one member writes, and another one writes a word where it is unsure."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from packfuse.errors import ConfigError
from packfuse.fusion.gates.base import Gate, LastToken, Positions, Roles
from packfuse.models.logps import best_tokens
from packfuse.registry import suggest


class Nudge(Gate):
    """A leader writes; where it is unsure, a nudger writes one whole word in its place.

    The leader is usually a large base model, the nudger a small instruct model, which may have
    another vocabulary. The leader is the reference. It is unsure where its highest probability is
    below the threshold, and where its most probable token would end the answer: the nudger alone
    decides that. There the gate opens, and the distribution is the nudger's, carried to the
    leader's tokens. It stays open to the end of the word: until the nudger's most probable token
    begins with white space. In scripts without spaces, such as Chinese, a word is a character or a
    token that ends with one. Elsewhere the distribution is the leader's, without its end tokens.

    No other member reads, and neither fusion rule nor weights have an effect.
    """

    name: ClassVar[str] = "nudge"
    source: ClassVar[str] = "Nudging, arXiv 2410.09300, section 3"
    looks_back: ClassVar[bool] = True
    literal: ClassVar[bool] = True

    threshold: float = Field(default=0.3, gt=0, lt=1)
    """The leader is unsure below this highest probability (γ in the paper, which uses 0.3 to 0.4).
    """
    leader: str | None = None
    """Name of the member that writes; None for the pack's first."""
    nudger: str | None = None
    """Name of the member that nudges; None for the first one that does not lead."""

    def roles(self, names: Sequence[str]) -> Roles:
        """See `Gate.roles`.

        Raises:
            ConfigError: for a name that is no member's, one member with both roles, or a pack of
                one member.
        """
        for role, name in (("leader", self.leader), ("nudger", self.nudger)):
            if name is not None and name not in names:
                raise ConfigError(
                    f"gate 'nudge': {role}={name!r} is not a member", hint=suggest(name, names)
                )
        if self.leader is not None and self.leader == self.nudger:
            raise ConfigError(
                f"gate 'nudge': {self.leader!r} cannot nudge itself",
                hint="name two members, the base model as leader",
            )
        if len(names) < 2:
            raise ConfigError(
                f"gate 'nudge' needs two members, and the pack has {len(names)}",
                hint="Pack.nudged(base, instruct)",
            )
        leader = next(name for name in [self.leader, *names] if name and name != self.nudger)
        nudger = next(name for name in [self.nudger, *names] if name and name != leader)
        return Roles(names.index(leader), names.index(nudger))

    def opens(
        self, logps: Tensor, weights: Tensor, reference_logps: Tensor, at_boundary: Tensor
    ) -> Tensor:
        """Where the leader's highest probability is below the threshold; see `Gate.opens`."""
        return reference_logps.amax(-1) < math.log(self.threshold)

    def decide(self, at: Positions, fused: Callable[[], Tensor]) -> tuple[Tensor, list[bool]]:
        """See `Gate.decide`: the nudger's distributions, or the leader's without its end tokens.

        A position without a nudger, whose server failed, has the leader's own distribution.
        """
        others = at.weights.clone()
        others[:, at.reference] = 0
        there = others.sum(1) > 0
        rows = torch.arange(len(others), device=at.logps.device)
        nudger = at.logps[others.argmax(1), rows]
        ends = torch.tensor(at.vocabulary.end_ids, dtype=torch.long, device=rows.device)
        unsure = self.opens(at.logps, at.weights, at.reference_logps, at.at_boundary)
        unsure |= torch.isin(best_tokens(at.reference_logps), ends)
        spelled = at.vocabulary.token_bytes
        goes_on = torch.tensor(
            [
                word_goes_on(last, spelled[best])
                for last, best in zip(at.last, best_tokens(nudger).tolist(), strict=True)
            ],
            device=rows.device,
        )
        is_open = there & (unsure | goes_on)
        leader = torch.where(there[:, None], _without(at.reference_logps, ends), at.reference_logps)
        opened: list[bool] = is_open.tolist()
        return torch.where(is_open[:, None], nudger, leader), opened


def word_goes_on(last: LastToken, best: bytes | None) -> bool:
    """Whether the nudger is in the middle of a word.

    Args:
        last: The token before the position.
        best: Bytes of the nudger's most probable token; none for a control token, which is the
            nudger's to write.

    Example:
        >>> word_goes_on(LastToken(was_open=True, token=b" Cer", text=b" Cer"), b"tainly")
        True
        >>> word_goes_on(LastToken(was_open=True, token=b" Sure", text=b" Sure"), b" I")
        False
    """
    if not last.was_open or not last.token:
        return False
    if last.token.isspace():
        return True  # the word is still to come
    if last.token[-1:].isspace() or _is_wide(last.text):
        return False
    return not (best or b"")[:1].isspace()


def _is_wide(text: bytes) -> bool:
    """Whether a text ends with a whole character of a script without spaces."""
    character = text.decode(errors="replace")[-1:]
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def _without(logps: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities `[N, V]` without some tokens; the others keep their proportions."""
    rest = logps.index_fill(1, ids, -torch.inf)
    return rest - rest.logsumexp(-1, keepdim=True)
