"""One member along one sequence: the tokens that it reads, and its distributions."""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from packfuse.alignment.base import Pairing
from packfuse.alignment.straddle import InnerBoundary
from packfuse.fusion.host_rows import HostRow
from packfuse.fusion.spelled_marks import Mark, MarkedTokenizer, SpelledMarks, spelled_ids
from packfuse.models.member import Member, Read, ReadCallback, Session
from packfuse.models.vocab_subset import VocabSubset
from packfuse.text.prompt import MemberPrompt
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Boundary:
    """The state of a member after a reference token.

    Attributes:
        logps: Its next-token log-probabilities, `[member columns]`, nats; None inside a character.
        inner: Its own token boundaries inside the reference token that was just read.
        whole: Whether a token of the member can end here.
        at: Its place in the member's text since the fixed ids, in bytes; -1 if nobody asks for it.
        row: The log-probabilities on their way to the host; None if they were not copied ahead.
    """

    logps: Tensor | None
    inner: tuple[InnerBoundary, ...] = ()
    whole: bool = True
    at: int = -1
    row: HostRow | None = None

    def copied(self) -> Boundary:
        """The same, with its log-probabilities on their way to the host."""
        return self if self.logps is None else replace(self, row=HostRow(self.logps))

    def places(self) -> Iterator[tuple[int, Tensor | None]]:
        """Where tokens of the member end in the reference token, and its distributions there."""
        for place in self.inner:
            if isinstance(place.logps, Tensor):
                yield self.at - len(place.pending), place.logps
        yield self.at, self.logps


ReadSteps = Generator[Read, Tensor, list[Boundary]]
"""Yields reads, is sent their log-probabilities, and returns the boundaries."""


class MemberStream:
    """Keeps one member's session in step with the text of a sequence.

    The session always holds the member's own tokenization of the text so far. Where new text
    changes earlier tokens, the session is rolled back and the tail is read again.
    """

    def __init__(
        self,
        member: Member,
        pairing: Pairing,
        prompt: MemberPrompt,
        reference: Vocabulary,
        subset: VocabSubset | None = None,
    ) -> None:
        """Start before the prompt; `subset` are the tokens of which logits are needed."""
        self.member, self.pairing, self.reference = member, pairing, reference
        self.subset = subset
        if pairing.same_ids:
            prompt = prompt.as_ids(member.vocabulary)
        self.fixed = list(prompt.fixed)
        self.base = prompt.text
        self.ends_turns = prompt.ends_turns
        self.session: Session = member.open()
        self._state = member.state
        self.path = MarkedTokenizer(member.vocabulary, pairing.lookahead)
        self.spelled = SpelledMarks(pairing.marks)
        self.straddle = pairing.straddle()
        self.boundary: Boundary | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the member's model is another now than when it read the session."""
        return self.member.state != self._state

    def restart(self) -> None:
        """Forget what was read; the next read begins at the beginning."""
        self.session, self._state, self.boundary = self.member.open(), self.member.state, None

    def hand_over(self, member: Member) -> None:
        """Let another member read on from the session: a copy with the same KV cache."""
        self.member, self._state = member, member.state

    def fork(self) -> MemberStream:
        """An independent copy."""
        twin = copy.copy(self)
        twin.fixed = list(self.fixed)
        twin.session = self.member.fork(self.session)
        twin.path, twin.spelled = self.path.copy(), self.spelled.copy()
        twin.straddle = self.straddle.copy() if self.straddle else None
        return twin

    def outline(self) -> MemberStream:
        """A copy that tokenizes on its own and shares the session, for `PackSequence.outline`."""
        twin = copy.copy(self)
        twin.path, twin.spelled = self.path.copy(), self.spelled.copy()
        return twin

    def crop(self, text: bytes) -> None:
        """Forget what lies behind `text`."""
        self.boundary = None
        self.spelled.crop(len(self._before(text)) + len(text))

    def ids(self, text_ids: Sequence[int], text: bytes) -> list[int]:
        """The member's ids of the whole sequence."""
        whole_text = self._before(text) + text
        marks = self.spelled.within(len(whole_text))
        if self.pairing.same_ids:
            ids = self.pairing.map_ids(text_ids)
            return self.fixed + (self._with_marks(ids, text_ids, text, marks) if marks else ids)
        self.path.update(whole_text, marks)
        return self.fixed + self.path.ids

    def _before(self, text: bytes) -> bytes:
        """The member's own text before `text`; often no dummy space goes before a space."""
        own = self.member.vocabulary
        return own.prefix_of(text) if self.base and self.base == own.text_prefix else self.base

    def _with_marks(
        self, ids: Sequence[int], text_ids: Sequence[int], text: bytes, marks: Sequence[Mark]
    ) -> list[int]:
        """`ids`, one for each of `text_ids`, with marks as the member's control tokens."""
        lengths = self.reference.lengths[list(text_ids)]
        # From the end: the first token may lack the dummy space.
        ends = (len(text) - lengths[::-1].cumsum()[::-1] + lengths).tolist()
        return spelled_ids(ids, ends, text, marks, self.member.vocabulary)

    def close(self, text_ids: Sequence[int], text: bytes, control: int, opening: bool) -> None:
        """Fix the ids so far and the reference's control token after them.

        Args:
            text_ids: The reference ids since the last control token.
            text: Their bytes.
            control: The control token.
            opening: Whether the sequence begins with it.
        """
        ids = self._by_role(control, opening)
        if ids is None:
            return
        self.boundary = None
        self.straddle = self.pairing.straddle()
        spelling = self.reference.marks.get(control)
        if spelling is not None and not self.pairing.same_ids and self._spells(control):
            # It is text for this member, so what follows may become one token with its end.
            self.base = self._before(text) + text + spelling
            return
        before = self.ids(text_ids, text)
        if not self.pairing.same_ids:
            # An incomplete character at the end stays incomplete.
            whole = self._before(text) + text
            before += self.member.vocabulary.encode_bytes(whole[len(self.path.text) :])
        self.fixed, self.base = [*before, *ids], b""
        self.path.update(b"")
        self.spelled = SpelledMarks(self.pairing.marks)

    def _spells(self, control: int) -> bool:
        """Whether the member has no control token for one of the reference."""
        own = self.member.vocabulary
        twin = own.controls.get(self.reference.spell(control), own.columns)
        return twin >= own.columns and control not in self.reference.end_ids

    def _by_role(self, control: int, opening: bool) -> list[int] | None:
        """The member's ids for a control token of the reference; None if it has its own already."""
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

    def read_steps(
        self,
        text_ids: Sequence[int],
        ends: Sequence[int],
        text: bytes,
        first: int,
        callback: ReadCallback | None,
        answer: int | None = None,
    ) -> ReadSteps:
        """Read up to the end of `text`; the boundaries after `first`, ..., `len(text_ids)` tokens.

        Args:
            text_ids: The reference ids after the fixed part.
            ends: Byte offset in `text` at which each of them ends.
            text: Their bytes.
            first: Number of text ids before the first boundary wanted.
            callback: Called with every distribution after the session's present end.
            answer: Byte offset in `text` from which the pack has chosen it; None for none of it.
        """
        same = self.pairing.same_ids
        if same and (answer is None or self.spelled.table is None):
            ids = self.ids(text_ids, text)
            found = yield from self._read_ids(ids, len(text_ids) - first, callback)
            return [*found[:-1], replace(found[-1], at=len(text))]
        before = self._before(text)
        start, whole_text = len(before), before + text
        chosen = len(whole_text) + 1 if answer is None else start + answer
        if self.boundary:
            self._note(whole_text, [self.boundary], chosen)
        self.spelled.search(whole_text, chosen)
        while True:
            if same:
                steps = self._id_steps(text_ids, ends, text, first)
            else:
                steps = self._text_steps(ends, whole_text, first, start)
            boundaries = yield from self._read_prefixes(steps, callback)
            self._note(whole_text, boundaries, chosen)
            if not self.spelled.search(whole_text, chosen):
                return boundaries

    def _note(self, text: bytes, boundaries: Sequence[Boundary], chosen: int) -> None:
        places = (place for boundary in boundaries for place in boundary.places())
        self.spelled.note(text, [place for place in places if place[0] >= chosen])

    def _read_ids(self, ids: list[int], back: int, callback: ReadCallback | None) -> ReadSteps:
        logps = yield from self._read(self.session, ids, max(1, len(ids) - back), callback)
        missing = back + 1 - len(logps)
        return [Boundary(None)] * missing + [Boundary(logps[m]) for m in sorted(logps)]

    def _read(
        self, session: Session, ids: list[int], first: int, callback: ReadCallback | None = None
    ) -> Generator[Read, Tensor, dict[int, Tensor]]:
        """Bring `session` to `ids`; log-probabilities by token count, from `first` tokens on."""
        if first > len(ids):
            return {}
        self.member.rollback(session, min(_common_length(session.ids, ids), first - 1))
        fresh = ids[session.length :]
        keep = len(ids) - first + 1
        # The engine checks the stream's own session, and knows no other.
        defers = session is self.session
        logps = yield Read(session, fresh, keep, callback, self.subset, defers_check=defers)
        return {first + offset: logps[offset] for offset in range(keep)}

    def _text_steps(
        self, ends: Sequence[int], text: bytes, first: int, start: int
    ) -> list[_TextPrefix]:
        """The beginnings of `text` up to each boundary wanted, in the member's own tokens."""
        offsets = [
            start + (ends[t - 1] if t else 0) for t in range(max(0, first - 1), len(ends) + 1)
        ]
        if first == 0:
            offsets.insert(0, -1)
        return [self._step(text, low, high) for low, high in itertools.pairwise(offsets)]

    def _id_steps(
        self, text_ids: Sequence[int], ends: Sequence[int], text: bytes, first: int
    ) -> list[_TextPrefix]:
        """The same for a member that is fed the reference's ids."""
        steps: list[_TextPrefix] = []
        for count in range(first, len(text_ids) + 1):
            end = ends[count - 1] if count else 0
            ids = self.ids(text_ids[:count], text[:end])
            steps.append(_TextPrefix(ids, len(ids), [], True, end))
        return steps

    def _read_prefixes(
        self, steps: Sequence[_TextPrefix], callback: ReadCallback | None
    ) -> ReadSteps:
        final = steps[-1].ids
        served = [final[: len(step.ids)] == step.ids for step in steps]
        wanted = [step.first for step, same in zip(steps, served, strict=True) if same]
        main = yield from self._read(self.session, final, max(1, min(wanted)), callback)
        boundaries: list[Boundary] = []
        for step, same in zip(steps, served, strict=True):
            logps = main
            if not same and len(step.ids) > self.member.context_window:
                # A shorter text may take more tokens. What has no room counts as no boundary.
                boundaries.append(Boundary(None, whole=False))
                continue
            if not same:
                side = self.member.fork(self.session)
                logps = yield from self._read(side, step.ids, max(1, step.first))
            boundaries.append(step.boundary(logps))
        return boundaries

    def _step(self, text: bytes, low: int, high: int) -> _TextPrefix:
        """The tokenization of `text[:high]`, and which of its boundaries lie after `low`."""
        self.path.update(text[:high], self.spelled.within(high))
        ids, ends, fixed = self.fixed + self.path.ids, self.path.ends, len(self.fixed)
        first = len(ids) if low < 0 else fixed + bisect_right(ends, low) + 1
        if self.path.whole:
            # A reference token without bytes leaves the boundary where it was.
            first = min(first, len(ids))
        inner = [
            (m, text[ends[m - fixed - 1] : high], ids[m])
            for m in range(first, len(ids))
            if m > fixed
        ]
        return _TextPrefix(ids, first, inner, self.path.whole, high)


@dataclass(frozen=True, slots=True)
class _TextPrefix:
    """A beginning of the text in the member's tokens; a boundary is a number of tokens.

    Attributes:
        ids: The tokens.
        first: The first boundary whose distribution is wanted; more than there are tokens for none.
        inner: (boundary, bytes from it to the end of the reference token, next token).
        whole: Whether the text ends on a character boundary.
        at: Where the text ends.
    """

    ids: list[int]
    first: int
    inner: list[tuple[int, bytes, int]]
    whole: bool
    at: int

    def boundary(self, logps: dict[int, Tensor]) -> Boundary:
        if not self.whole:
            return Boundary(None, whole=False, at=self.at)
        inner = tuple(InnerBoundary(rest, logps[m], token) for m, rest, token in self.inner)
        return Boundary(logps.get(len(self.ids)), inner, at=self.at)


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
