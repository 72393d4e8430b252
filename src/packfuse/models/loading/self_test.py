"""A test of a member when it is loaded: what it reads in steps and in batches must not matter.

A pack reads a few tokens at a time, several rows together, and goes on from a KV cache. Some
architectures give other probabilities then, without an error. The test costs five forward passes of
at most six tokens (dev/log.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from packfuse.errors import LoadError, MemberError
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read, Session

_TEXT = " The capital of France is Paris, and 17 more."
_TOKENS = 6
_LIKELY = math.log(1e-3)
"""Log-probability of the tokens that are compared; rounding changes those of unlikely tokens."""

TOLERANCE = 5e-3
"""Largest difference of log-probabilities in float32 (nats)."""

ROUGH_TOLERANCE = 0.5
"""The same for the median of all positions with weights of fewer bits. Rounding may choose other
experts at single positions."""


def self_test(member: HFMember) -> None:
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


def _kind(member: HFMember) -> str:
    return type(member.model).__name__


def _difference(member: HFMember) -> str | None:
    """How the member reads when its probabilities are not those of reading at once; or None."""
    first, second = _rows(member)
    half = len(first) // 2
    if not half:
        return None
    rows = [first, second]
    whole = [member.read([Read(member.open(), row, keep=half)])[0] for row in rows]
    exact = all(weight.dtype == torch.float32 for weight in member.model.parameters())
    alone = _in_steps(member, [first], half)
    if not _close(alone, whole[:1], exact):
        return f"{half} + {half} tokens instead of {2 * half}: by {_gap(alone, whole):.2g} nats"
    both = _in_steps(member, rows, half)
    if not _close(both, whole, exact):
        return f"two rows together instead of each alone: by {_gap(both, whole):.2g} nats"
    return None


def _rows(member: HFMember) -> tuple[list[int], list[int]]:
    """Two rows of token ids, one with the last token of the vocabulary that is text."""
    vocabulary = member.vocabulary
    ids = vocabulary.encode(_TEXT)
    last = max(ids for same in vocabulary.ids_of.values() for ids in same)
    count = min(_TOKENS, member.context_window) // 2 * 2
    row = ids[:count] + ids[: max(0, count - len(ids))]
    return row, [last, *reversed(row)][:count]


def _in_steps(member: HFMember, rows: list[list[int]], half: int) -> list[Tensor]:
    """Log-probabilities after the tokens of the second half, in two steps of all rows together.

    Where rows can be padded, the first steps of two rows differ in length by one token.
    """
    sessions: list[Session] = [member.open() for _ in rows]
    ragged = half > 1 and member._allows_padding
    cuts = [half + k * ragged for k in range(len(rows))]
    starts = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    begun = member.read([Read(s, start) for s, start in zip(sessions, starts, strict=True)])
    ends = [row[cut:] for row, cut in zip(rows, cuts, strict=True)]
    rest = member.read([Read(s, end, keep=len(end)) for s, end in zip(sessions, ends, strict=True)])
    return [torch.cat([one, other])[-half:] for one, other in zip(begun, rest, strict=True)]


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
