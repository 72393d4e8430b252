"""One member reading one row: which of its tokens to read, and what it says at each step."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from packfuse.alignment.base import Pairing
from packfuse.alignment.straddle import InnerBoundary
from packfuse.models.member import Member, Read, ReadCallback, Session
from packfuse.models.vocab_subset import VocabSubset
from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.prompt import MemberPrompt
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Boundary:
    """What a member says at one point of the text.

    Attributes:
        logps: Its next-token log-probabilities, `[member columns]`; None inside a character.
        inner: Its own boundaries inside the reference token that was just read.
        whole: Whether its tokens can end here.
    """

    logps: Tensor | None
    inner: tuple[InnerBoundary, ...] = ()
    whole: bool = True


ReadSteps = Generator[Read, Tensor, list[Boundary]]
"""Asks for reads, gets log-probabilities, returns the places."""


class MemberStream:
    """Keeps one member's session in step with the row's text.

    The member always stands in its own canonical tokenization of the text so far: where the text's
    end changes earlier tokens, the session is rolled back and the tail read again.
    """

    def __init__(
        self,
        member: Member,
        pairing: Pairing,
        prompt: MemberPrompt,
        reference: Vocabulary,
        columns: VocabSubset | None = None,
    ) -> None:
        """Start before the prompt; `columns` are the tokens that it is asked about."""
        self.member, self.pairing, self.reference = member, pairing, reference
        self.columns = columns
        if pairing.same_ids:
            prompt = prompt.as_ids(member.vocabulary)
        self.fixed = list(prompt.fixed)
        self.base = prompt.text
        self.ends_turns = prompt.ends_turns
        self.session: Session = member.open()
        self.path = IncrementalTokenizer(member.vocabulary, pairing.lookahead)
        self.straddle = pairing.straddle()
        self.place: Boundary | None = None

    def fork(self) -> MemberStream:
        """An independent copy."""
        twin = object.__new__(MemberStream)
        twin.__dict__.update(self.__dict__)
        twin.fixed = list(self.fixed)
        twin.session = self.member.fork(self.session)
        twin.path = self.path.copy()
        twin.straddle = self.straddle.copy() if self.straddle else None
        return twin

    def ids(self, stream: Sequence[int], text: bytes) -> list[int]:
        """The member's ids of the whole row."""
        if self.pairing.same_ids:
            return self.fixed + self.pairing.map_ids(stream)
        self.path.update(self.base + text)
        return self.fixed + self.path.ids

    def close(self, stream: Sequence[int], text: bytes, control: int, opening: bool) -> None:
        """Fix what was read, and the reference's control token after it.

        Args:
            stream: The row's reference ids since the last control token.
            text: What they spell.
            control: The control token.
            opening: Whether nothing came before it.
        """
        ids = self._by_role(control, opening)
        if ids is None:
            return
        before = self.ids(stream, text)
        if not self.pairing.same_ids:
            # Half a character at the end will never be whole.
            before += self.member.vocabulary.encode_bytes((self.base + text)[len(self.path.text) :])
        self.fixed, self.base = [*before, *ids], b""
        self.path.update(b"")
        self.straddle = self.pairing.straddle()

    def _by_role(self, control: int, opening: bool) -> list[int] | None:
        """The member's ids for a control token of the reference; None: it has its own already."""
        if self.pairing.same_ids:
            return self.pairing.map_control(control)
        own, reference = self.member.vocabulary, self.reference
        if opening and control in (*reference.prefix_ids, *reference.end_ids):
            return None
        twin = own.controls.get(reference.spell(control), own.columns)
        if twin < own.columns:
            return [twin]
        if control in reference.end_ids and own.end_ids:
            return [own.end_ids[0]]
        return own.encode_bytes(reference.spell(control).encode())

    def scan(
        self,
        stream: Sequence[int],
        ends: Sequence[int],
        text: bytes,
        first: int,
        callback: ReadCallback | None,
    ) -> ReadSteps:
        """Read up to the end of `text`; the places after `first`, ..., `len(stream)` tokens.

        Args:
            stream: The row's reference ids after its fixed part.
            ends: Where each of them ends in `text`, bytes.
            text: What they spell.
            first: Number of stream tokens before the first place wanted.
            callback: Sees every distribution from where the session stands.
        """
        if self.pairing.same_ids:
            return (
                yield from self._scan_ids(self.ids(stream, text), len(stream) - first, callback)
            )
        return (yield from self._scan_text(ends, text, first, callback))

    def _scan_ids(self, ids: list[int], back: int, callback: ReadCallback | None) -> ReadSteps:
        places = yield from self._read(self.session, ids, max(1, len(ids) - back), callback)
        missing = back + 1 - len(places)
        return [Boundary(None)] * missing + [Boundary(places[m]) for m in sorted(places)]

    def _read(
        self, session: Session, ids: list[int], first: int, callback: ReadCallback | None = None
    ) -> Generator[Read, Tensor, dict[int, Tensor]]:
        """Bring `session` to `ids`; log-probabilities by token count, from `first` tokens on."""
        if first > len(ids):
            return {}
        self.member.rollback(session, min(_common(session.ids, ids), first - 1))
        fresh = ids[session.length :]
        keep = len(ids) - first + 1
        logps = yield Read(session, fresh, keep, callback, self.columns)
        return {first + offset: logps[offset] for offset in range(keep)}

    def _scan_text(
        self, ends: Sequence[int], text: bytes, first: int, callback: ReadCallback | None
    ) -> ReadSteps:
        start, whole_text = len(self.base), self.base + text
        marks = [start + (ends[t - 1] if t else 0) for t in range(max(0, first - 1), len(ends) + 1)]
        if first == 0:
            marks.insert(0, -1)
        steps = [self._step(whole_text, low, high) for low, high in itertools.pairwise(marks)]
        final = steps[-1].ids
        served = [final[: len(step.ids)] == step.ids for step in steps]
        wanted = [step.first for step, same in zip(steps, served, strict=True) if same]
        main = yield from self._read(self.session, final, max(1, min(wanted)), callback)
        places: list[Boundary] = []
        for step, same in zip(steps, served, strict=True):
            logps = main
            if not same:
                side = self.member.fork(self.session)
                logps = yield from self._read(side, step.ids, max(1, step.first))
            places.append(step.place(logps))
        return places

    def _step(self, text: bytes, low: int, high: int) -> _TextPrefix:
        """The path of `text[:high]`, and which of its boundaries lie after `low`."""
        self.path.update(text[:high])
        ids, ends, fixed = self.fixed + self.path.ids, self.path.ends, len(self.fixed)
        first = len(ids) if low < 0 else fixed + bisect_right(ends, low) + 1
        if self.path.whole:
            # Where a reference token spells nothing, the place is that before it.
            first = min(first, len(ids))
        inner = [
            (m, text[ends[m - fixed - 1] : high], ids[m])
            for m in range(first, len(ids))
            if m > fixed
        ]
        return _TextPrefix(ids, first, inner, self.path.whole)


@dataclass(frozen=True, slots=True)
class _TextPrefix:
    """A path and the boundaries on it that matter, as counts of the member's tokens.

    Attributes:
        ids: The path.
        first: The first boundary whose distribution is wanted; beyond the path for none.
        inner: (boundary, bytes from it to the end of the reference token, next id on the path).
        whole: Whether the text ends on a character boundary.
    """

    ids: list[int]
    first: int
    inner: list[tuple[int, bytes, int]]
    whole: bool

    def place(self, logps: dict[int, Tensor]) -> Boundary:
        if not self.whole:
            return Boundary(None, whole=False)
        inner = tuple(InnerBoundary(rest, logps[m], token) for m, rest, token in self.inner)
        return Boundary(logps.get(len(self.ids)), inner)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
