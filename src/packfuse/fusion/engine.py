"""The engine: sequences of reference ids in, fused next-token distributions out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cached_property, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.base import Alignment, Pairing, ReferenceView
from packfuse.fusion.carrying import Carrier
from packfuse.fusion.host_rows import HostRows
from packfuse.fusion.member_stream import MemberStream
from packfuse.fusion.pending_checks import PendingChecks
from packfuse.fusion.pooling import Fusion, pool
from packfuse.fusion.read_plan import ReadPlan, execute, first_boundary
from packfuse.fusion.room import check_room, overflow
from packfuse.fusion.sequence import PackSequence
from packfuse.models.compiled import PRECOMPILED_WIDTHS, Compiled
from packfuse.models.member import Member, Pause, ReadCallback
from packfuse.models.step_times import StepTimes, step_times
from packfuse.models.vocab_subset import MAX_SHARE, VocabSubset
from packfuse.process import PackLock
from packfuse.progress import ProgressCallback
from packfuse.settings import HeadsName
from packfuse.text.prompt import PackPrompt
from packfuse.text.vocabulary import Vocabulary

_BLOCK = 32
"""Most positions whose members' distributions are held at once."""

Method = TypeVar("Method", bound=Callable[..., Any])


def _one_at_a_time(method: Method) -> Method:
    """A method that holds the lock of its engine: members compute for one thread at a time."""

    @wraps(method)
    def locked(self: Engine, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]


class Engine:
    """Members, each paired with the reference.

    It knows token ids and bytes, and nothing of text, chat templates, sampling or weights. How
    distributions are fused is given with each call, so one engine serves all calls.

    Attributes:
        members: In the pack's order.
        reference_index: Index of the reference.
        reference: The reference's vocabulary.
        alignment: How the members were paired.
        pairings: By member, with the reference.
        view: The pairings as weights are fitted through them.
        lock: Held while members compute.
    """

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        alignment: Alignment,
        progress: ProgressCallback | None = None,
        *,
        heads: HeadsName = "full",
        parallel: bool = False,
        lock: PackLock | None = None,
    ) -> None:
        """Pair the members with the reference.

        Args:
            members: In the pack's order.
            reference: Index of the reference.
            alignment: How to pair them.
            progress: Called while vocabularies are aligned.
            heads: With "pruned", the LM heads of the other members give logits only of the tokens
                that the alignment reads.
            parallel: Whether members on different devices run at the same time.
            lock: The lock of the pack; None for one of its own.
        """
        self.lock = lock or PackLock()
        self.members, self.alignment, self._parallel = list(members), alignment, parallel
        self.reference_index = reference
        self.reference = members[reference].vocabulary
        self.pairings: list[Pairing] = [
            (alignment.pair_naming_few if own.names_few and k != reference else alignment.pair)(
                own.vocabulary, self.reference, progress
            )
            for k, own in enumerate(members)
        ]
        self.view = ReferenceView(reference, self.pairings, repr(alignment))
        lexicon = alignment.lexicon([member.vocabulary for member in members])
        self.carrier = Carrier(self.members, reference, self.pairings, lexicon)
        self._subsets: list[VocabSubset | None] = [
            read_subset(pairing, member.vocabulary)
            if heads == "pruned" and member is not members[reference]
            else None
            for member, pairing in zip(members, self.pairings, strict=True)
        ]

    def compile_ahead(self, fusion: Fusion, report: ProgressCallback | None = None) -> None:
        """Compile the steps of single sequences, for the members whose steps are compiled."""
        todo = [
            (member, subset, width)
            for member, subset in zip(self.members, self._subsets_for(fusion), strict=True)
            for width in PRECOMPILED_WIDTHS
            if isinstance(member, Compiled)
        ]
        for done, (member, subset, width) in enumerate(todo):
            if report:
                report(done, len(todo))
            if member.refused is None:
                member.compile_ahead(subset, width)

    @cached_property
    def step_times(self) -> tuple[StepTimes, ...]:
        """By member, how long its steps take, measured once; empty if some are on processors.

        What processors take is known (`causal_lm.drafts.length`).
        """
        if any(member.device.type == "cpu" for member in self.members):
            return ()
        with self.lock:
            return tuple(step_times(member) for member in self.members)

    def with_members(self, members: Sequence[Member]) -> Engine:
        """The same engine with other members of the same vocabularies (quantized copies)."""
        twin = copy.copy(self)
        twin.members = list(members)
        return twin

    @_one_at_a_time
    def refresh(self, without: Container[int] = ()) -> None:
        """Find out what the members' models are now; see `Member.refresh`.

        Args:
            without: Indices of members that are left out of the call.

        Raises:
            MemberError: if a member's tokens are others than when it joined the pack.
        """
        for k, member in enumerate(self.members):
            if k not in without:
                member.refresh()

    def open(
        self,
        prompt: PackPrompt,
        fusion: Fusion,
        weights: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> PackSequence:
        """A sequence in which nothing has been read; `refresh` comes first, once a call.

        Args:
            prompt: The prompt.
            fusion: How its positions will be fused.
            weights: `[K]`, if they are known already: members with weight 0 have no stream and read
                nothing, but for the reference. None for a stream for every member.

        """
        parts = zip(
            self.members, self.pairings, prompt.members, self._subsets_for(fusion), strict=True
        )
        streams = [
            MemberStream(member, pairing, own, self.reference, subset)
            if weights is None or weights[k] or k == self.reference_index
            else None
            for k, (member, pairing, own, subset) in enumerate(parts)
        ]
        return PackSequence(prompt, streams, self.reference)

    def _subsets_for(self, fusion: Fusion) -> list[VocabSubset | None]:
        """By member, the tokens of which logits are needed; None for all."""
        # Rules that compare words need the members' best tokens of all.
        if fusion.uses_lexicon(self.carrier.lexicon):
            return [None] * len(self.members)
        return self._subsets

    @_one_at_a_time
    @torch.no_grad()
    def read_prompt(
        self,
        sequence: PackSequence,
        callbacks: Sequence[ReadCallback | None],
        pause: Pause | None = None,
    ) -> None:
        """Read a fed sequence with every member; `fuse_prompt` follows when it has its weights.

        Args:
            sequence: Its prompt has been fed.
            callbacks: By member, called with the member's distributions.
            pause: Interrupts the members' reads; None to read without a pause.

        Raises:
            PromptError: if the prompt is too long for a member.
        """
        check_room(sequence)
        first = first_boundary(sequence, 1)
        plan = ReadPlan(sequence, self.reference_index, first, 1)
        execute(self.members, [plan], callbacks, pause=pause)
        PendingChecks([sequence]).settle(sequence)
        sequence.prefilled = plan.boundaries

    @_one_at_a_time
    @torch.no_grad()
    def fuse_prompt(self, sequences: Sequence[PackSequence], fusion: Fusion) -> None:
        """Fuse the position after each prompt, once the sequences have their weights."""
        plans = []
        for sequence in sequences:
            first = first_boundary(sequence, 1)
            read = zip(sequence.prefilled, sequence.streams, strict=True)
            boundaries = [found if stream else None for found, stream in read]
            plans.append(ReadPlan(sequence, self.reference_index, first, 1, boundaries=boundaries))
            sequence.prefilled = []
        self._fuse(plans, [fusion] * len(plans))
        for sequence in sequences:
            sequence.begin_answer()

    def read_again(self, sequences: Sequence[PackSequence], fusion: Fusion) -> None:
        """Read and fuse prompts anew that were read by models as they are no more."""
        for sequence in sequences:
            sequence.restart()
            self.read_prompt(sequence, [None] * len(self.members))
        self.fuse_prompt(sequences, fusion)

    def advance(
        self,
        sequences: Sequence[PackSequence],
        ids: Sequence[Sequence[int]],
        fusion: Fusion | Sequence[Fusion],
        keep: int = 1,
        *,
        endings: Container[int] = (),
        ends_when_full: bool = False,
        save_states: bool = False,
        defers_check: bool = False,
    ) -> Tensor:
        """Read reference ids and give the fused distribution after each of the last `keep` of them.

        Args:
            sequences: N sequences with their weights set.
            ids: New ids by sequence, at least `keep` each.
            fusion: How the members are fused: for all sequences, or one for each.
            keep: Positions wanted, counted from the end.
            endings: Ids that end an answer. A sequence whose only new id is one of them is not
                read: its last distribution is repeated, since no token follows.
            ends_when_full: The same for a sequence whose new ids have no room in a member's context
                window. Without it, that is an error.
            save_states: Save the streams' states at each position, so that cropping to it costs
                nothing.
            defers_check: Whether the caller calls `PackSequence.settle` before it uses the result,
                where the host has to wait for the device anyway.

        Returns:
            Log-probabilities `[N, keep, reference columns]`, nats.

        Raises:
            MemberError: if a model fails or gives NaN.
            PromptError: if a sequence outgrows a member's context window.
        """
        fusions = fusion if isinstance(fusion, Sequence) else [fusion] * len(sequences)
        found = self.advance_each(
            sequences,
            ids,
            fusions,
            [keep] * len(sequences),
            endings=endings,
            ends_when_full=ends_when_full,
            save_states=save_states,
            defers_check=defers_check,
        )
        return torch.stack(found)

    @_one_at_a_time
    @torch.no_grad()
    def advance_each(
        self,
        sequences: Sequence[PackSequence],
        ids: Sequence[Sequence[int]],
        fusions: Sequence[Fusion],
        keeps: Sequence[int],
        *,
        endings: Container[int] = (),
        ends_when_full: bool = False,
        save_states: bool = False,
        defers_check: bool = False,
    ) -> list[Tensor]:
        """The same with another number of wanted positions for each sequence; see `advance`.

        Returns:
            By sequence, log-probabilities `[its keep, reference columns]`, nats.
        """
        for sequence in sequences:
            if sequence.is_stale:
                sequence.restart()
        out: list[list[Tensor]] = [[] for _ in sequences]
        segments: list[list[tuple[list[int], int]]] = []
        for sequence, new, keep, found in zip(sequences, ids, keeps, out, strict=True):
            ended = len(new) == 1 and new[0] in endings
            last = sequence.fused_logps
            if last is not None and (ended or (ends_when_full and overflow(sequence, new))):
                sequence.unread.extend(new)
                found.extend([last] * keep)
                segments.append([])
            else:
                segments.append(list(self._segments([*sequence.unread, *new], keep)))
                sequence.unread = []
        for turn in range(max(map(len, segments), default=0)):
            plans: dict[int, ReadPlan] = {}
            for index, (sequence, parts) in enumerate(zip(sequences, segments, strict=True)):
                plan = self._extend(sequence, *parts[turn]) if turn < len(parts) else None
                if plan:
                    plans[index] = plan
            execute(self.members, list(plans.values()), parallel=self._parallel)
            self._fuse(
                list(plans.values()), [fusions[index] for index in plans], save_states=save_states
            )
            for index, plan in plans.items():
                out[index].extend(plan.out)
        self._end(sequences, defers_check=defers_check)
        return [torch.stack(positions) for positions in out]

    def _end(self, sequences: Sequence[PackSequence], *, defers_check: bool) -> None:
        """Check what has been read, now or later; from here on the pack chooses the tokens."""
        checks = PendingChecks(sequences)
        for sequence in sequences:
            if not defers_check:
                checks.settle(sequence)
            sequence.begin_answer()

    def _segments(self, ids: Sequence[int], keep: int) -> Iterator[tuple[list[int], int]]:
        """Runs of text and single control tokens, each with its number of wanted positions."""
        control, run = self.reference.control_ids, list[int]()
        unwanted = len(ids) - keep
        kept = 0
        for position, index in enumerate(ids):
            if index in control:
                if run:
                    yield run, kept
                yield [index], int(position >= unwanted)
                run, kept = [], 0
                continue
            run.append(index)
            kept += position >= unwanted
            if kept == _BLOCK:
                yield run, kept
                run, kept = [], 0
        if run:
            yield run, kept

    def _extend(self, sequence: PackSequence, ids: list[int], kept: int) -> ReadPlan | None:
        """Append ids to a sequence; the plan for the positions wanted, None without any."""
        if ids[0] in self.reference.control_ids:
            sequence.close(ids[0])
            return ReadPlan(sequence, self.reference_index, 0, 1) if kept else None
        ready, before = sequence.filters_ready, len(sequence.text_ids)
        sequence.saved_states.clear()
        sequence.append(ids)
        sequence.filters_ready = False
        if sequence.answer_from is not None and kept < len(ids):
            # The pack has no distribution before these tokens, so it has not chosen them.
            sequence.answer_from = sequence.ends[before + len(ids) - max(kept, 1)]
        if not kept:
            return None
        if ready and len(ids) <= kept + sequence.window:
            return ReadPlan(sequence, self.reference_index, before + 1, kept, filters_ready=True)
        first = first_boundary(sequence, kept)
        return ReadPlan(sequence, self.reference_index, first, kept)

    def _fuse(
        self, plans: Sequence[ReadPlan], fusions: Sequence[Fusion], *, save_states: bool = False
    ) -> None:
        needs = [plan.filter_rows() for plan in plans]
        rows = HostRows(
            itertools.chain.from_iterable(ahead for ahead, _ in needs),
            itertools.chain.from_iterable(wanted for _, wanted in needs),
        )
        for plan, fusion in zip(plans, fusions, strict=True):
            for step in range(plan.lead + 1):
                plan.advance_filters(step, rows, literal=fusion.literal)
        for turn in range(max((plan.keep for plan in plans), default=0)):
            chosen = [pair for pair in zip(plans, fusions, strict=True) if turn < pair[0].keep]
            group = [plan for plan, _ in chosen]
            steps = [plan.lead + turn for plan in group]
            if turn:
                for (plan, fusion), step in zip(chosen, steps, strict=True):
                    plan.advance_filters(step, rows, literal=fusion.literal)
            pool(self.carrier, group, steps, [own for _, own in chosen])
            if save_states:
                for plan, step in zip(group, steps, strict=True):
                    plan.save_state(step)
        for plan in plans:
            plan.finish()


def read_subset(pairing: Pairing, vocabulary: Vocabulary) -> VocabSubset | None:
    """The member's tokens that an alignment reads; None where that is nearly all of them."""
    ids = pairing.used_ids()
    if ids is None:
        return None
    # Whether a turn ends is read from the member, too.
    ids = torch.cat([ids, torch.tensor(vocabulary.end_ids, dtype=torch.long)]).unique()
    if len(ids) > MAX_SHARE * vocabulary.size:
        return None
    return VocabSubset(ids, vocabulary.columns, exact=pairing.exact)
