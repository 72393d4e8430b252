"""A test of a member when it is loaded: what it reads in steps and in batches must not matter.

A pack reads a few tokens at a time, several rows together, and goes on from a KV cache. Some
architectures give other probabilities then, without an error. The test costs three or four forward
passes of at most six tokens (dev/log.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from packfuse.errors import LoadError, MemberError
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member, Read

_TEXT = " The capital of France is Paris, and 17 more."
_TOKENS = 6
_LIKELY = math.log(1e-3)
"""Log-probability of the tokens that are compared; rounding changes those of unlikely tokens."""

TOLERANCE = 5e-3
"""Largest difference of log-probabilities in float32 (nats)."""

ROUGH_TOLERANCE = 0.5
"""The same for weights of fewer bits, where one of two positions may differ: rounding may choose
other experts there."""


def self_test(member: Member) -> None:
    """Compare reading in two steps, alone and beside another row, with reading at once.

    Raises:
        LoadError: if the probabilities differ, or if the model fails; the message names the member.
    """
    try:
        problem = _difference(member)
    except Exception as error:  # models raise all kinds of errors
        reason = error.message if isinstance(error, MemberError) else f"{error!r}"
        hint = error.hint if isinstance(error, MemberError) else ""
        raise LoadError(
            f"member {member.name!r} ({_kind(member)}) fails at its first tokens: {reason}",
            hint=hint or "model and tokenizer may not belong together",
        ) from error
    if problem:
        raise LoadError(
            f"member {member.name!r} ({_kind(member)}) gives other probabilities when it reads "
            f"{problem}",
            hint="a pack needs the same whatever the steps; this architecture cannot join one",
        )


def _kind(member: Member) -> str:
    return type(member if member.model is None else member.model).__name__


def _is_exact(member: Member) -> bool:
    """Whether it computes in float32, and keeps its keys and values so."""
    model = member.model
    return model is not None and all(p.dtype == torch.float32 for p in model.parameters())


def _allows_padding(member: Member) -> bool:
    return not isinstance(member, HFMember) or member._allows_padding


def _difference(member: Member) -> str | None:
    """How the member reads when its probabilities are not those of reading at once; or None."""
    ids = _tokens(member)
    half = len(ids) // 2
    if not half:
        return None
    exact = _is_exact(member)
    if half > 1 and _allows_padding(member):
        # The second row lags by one token, so one reading at once tells what both should give.
        cuts = [(half, 2 * half), (half - 1, 2 * half - 1)]
        whole = member.read([Read(member.open(), ids, keep=2)])[0]
        rows, expected = [ids, ids], [whole[1:], whole[:1]]
    else:
        cuts, rows = [(half, 2 * half)] * 2, [ids, ids[::-1]]
        expected = [member.read([Read(member.open(), row)])[0] for row in rows]
    together = _in_steps(member, rows, cuts)
    if _close(together, expected, exact):
        return None
    alone = _in_steps(member, rows[:1], cuts[:1])
    if not _close(alone, expected[:1], exact):
        return f"{half} + {half} tokens instead of {2 * half}: by {_gap(alone, expected):.2g} nats"
    return f"two rows together instead of one alone: by {_gap(together, expected):.2g} nats"


def _tokens(member: Member) -> list[int]:
    """At most six token ids, among them the last one of the vocabulary that is text."""
    vocabulary = member.vocabulary
    ids = vocabulary.encode(_TEXT)
    last = max(index for same in vocabulary.ids_of.values() for index in same)
    count = min(_TOKENS, member.context_window) // 2 * 2
    return [last, *ids, *ids[: max(0, count - len(ids))]][:count]


def _in_steps(member: Member, rows: list[list[int]], cuts: list[tuple[int, int]]) -> list[Tensor]:
    """Log-probabilities `[1, columns]` at the end of each row, read in two steps.

    Args:
        member: The member.
        rows: Token ids, all rows together in each step.
        cuts: For each row, where the first and the second step end.
    """
    sessions = [member.open() for _ in rows]
    found: list[Tensor] = []
    for step in (0, 1):
        parts = [row[cut[0] * step : cut[step]] for row, cut in zip(rows, cuts, strict=True)]
        found = member.read([Read(s, part) for s, part in zip(sessions, parts, strict=True)])
    return found


def _close(found: list[Tensor], expected: list[Tensor], exact: bool) -> bool:
    gaps = torch.cat(_gaps(found, expected))
    return bool(gaps.max() <= TOLERANCE if exact else gaps.median() <= ROUGH_TOLERANCE)


def _gap(found: list[Tensor], expected: list[Tensor]) -> float:
    return float(torch.cat(_gaps(found, expected)).max())


def _gaps(found: list[Tensor], expected: list[Tensor]) -> list[Tensor]:
    """By row and position, the largest difference of log-probabilities of likely tokens."""
    return [
        _largest((one - other).abs(), (one > _LIKELY) | (other > _LIKELY))
        for one, other in zip(found, expected, strict=False)
    ]


def _largest(difference: Tensor, where: Tensor) -> Tensor:
    return difference.where(where, torch.zeros((), device=difference.device)).amax(-1)
