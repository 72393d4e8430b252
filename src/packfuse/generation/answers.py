"""Makes answers with their records from generated ids."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from packfuse.alignment import alignments
from packfuse.causal_lm.drafts import drafts
from packfuse.causal_lm.drafts.base import DraftStats
from packfuse.causal_lm.room import Full
from packfuse.causal_lm.stopping import RowEnds
from packfuse.fusion.gates import gates
from packfuse.fusion.rules import rules
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.output.result import (
    Answer,
    Candidates,
    Drafts,
    FinishReason,
    FusionRecord,
    PromptStep,
    Timings,
    Usage,
    by_name,
)
from packfuse.generation.output.trace import TraceRecorder
from packfuse.generation.prepared import PreparedPrompt
from packfuse.generation.request import Request
from packfuse.generation.runtime import Runtime
from packfuse.text.detokenizer import count_until_stop, detokenize
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.prefill import Fit

_TOO_SHORT = "the prompt is too short to be scored"
_NOT_SCORED = "the prompt was not scored: no weights depend on it, and it would take many requests"


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What all answers of a batch share.

    Attributes:
        runtime: The pack.
        request: The request.
        recorder: The records of every step; None if they are not recorded.
        drafts: Counts of drafted tokens; None without drafts.
        ends: Which rows were ended by criteria.
        notes: Notes for the records.
        seconds: Time of generation.
    """

    runtime: Runtime
    request: Request
    recorder: TraceRecorder | None
    drafts: DraftStats | None
    ends: RowEnds
    notes: list[str]
    seconds: float

    def length(self, row: int) -> int | None:
        """Length of a row that criteria ended, prompt included; None for any other."""
        # Rows of beams change places between steps.
        return None if self.request.beams > 1 else self.ends.lengths.get(row)

    def reason(self, row: int, generated: int) -> FinishReason:
        """Why a row ended that has neither an end token nor a stop string."""
        limit = self.request.arguments.get("max_new_tokens")
        if self.request.beams > 1:
            found = None if generated == limit else self.ends.fired
        else:
            found = self.ends.reasons.get(row)
        return "time" if found == "time" else "criteria" if found else "length"

    def end_ids(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Ids that end an answer: the call's, or those of the reference."""
        own = self.request.arguments.get("eos_token_id")
        if own is None:
            return frozenset(vocabulary.end_ids)
        return frozenset([own] if isinstance(own, int) else own)


def make_answer(
    batch: BatchInfo,
    item: PreparedPrompt,
    fit: Fit,
    ids: list[int],
    row: int,
    sequence: PackSequence,
    *,
    cancelled: bool,
    full: Full | None = None,
) -> Answer:
    """The answer of one row.

    Args:
        batch: What all answers of the batch share.
        item: The prompt.
        fit: Its weights.
        ids: The generated ids of the row, with padding after the end.
        row: Index of the row in the batch.
        sequence: The prompt and the answer, as the members read them.
        cancelled: Whether the prompt was cancelled.
        full: Where the row ended for want of room in a member's context window; None if not.
    """
    if full is not None:
        ids = ids[: full.length]
    vocabulary = batch.runtime.members[item.reference].vocabulary
    ends = batch.end_ids(vocabulary)
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    ids = ids if end is None else ids[: end + 1]
    text, stopped = detokenize(ids, vocabulary, item.stop)
    if stopped is not None:
        # Padding follows the stop string.
        ids = ids[: count_until_stop(ids, vocabulary, item.stop)]
    reason: FinishReason = "stop"
    if stopped is None and end is None:
        reason = "cancelled" if cancelled else batch.reason(row, len(ids))
    more = [str(full)] if full is not None and reason == "length" else []
    constraint = batch.request.constraint
    if constraint is not None and reason == "stop" and (problem := constraint.problem(text)):
        more.append(f"the answer does not satisfy its constraint: {problem}")
    record = _record(batch, item, fit, ids, row, sequence, reason=reason, stop=stopped, more=more)
    return Answer(text, record, tuple(ids))


def _record(
    batch: BatchInfo,
    item: PreparedPrompt,
    fit: Fit,
    ids: list[int],
    row: int,
    sequence: PackSequence,
    *,
    reason: FinishReason,
    stop: str | None,
    more: list[str],
) -> FusionRecord:
    request, recorder, names = batch.request, batch.recorder, batch.runtime.names
    generated, call = len(ids), batch.request.call
    steps = recorder.row(row) if recorder else None
    return FusionRecord(
        members=names,
        reference=names[item.reference],
        fusion=rules().dump(call.rule),
        weighting=weightings().dump(call.weighting),
        alignment=alignments().dump(batch.runtime.parts.alignment),
        weights=by_name(names, fit.weights) or {},
        skill=by_name(names, item.skill.weights if item.skill else None),
        prompt_share=_prompt_share(batch, item, fit),
        sharpness=call.weighting.power(fit.weights),
        prompt_loss=by_name(names, fit.losses),
        bits_per_byte=by_name(names, fit.bits_per_byte),
        scored_tokens=fit.tokens,
        usage=_usage(names, item, fit, generated),
        finish_reason=reason,
        stop=stop,
        agreed=steps.share(steps.agreed, generated) if steps else None,
        overruled=steps.share(steps.overruled, generated) if steps else None,
        gate=gates().dump(call.gate),
        fused=steps.share(steps.is_fused, generated) if steps else None,
        drafts=_drafts(batch),
        candidates=_candidates(batch.runtime, sequence) or None,
        scored_places=_scored_places(batch.runtime, fit) or None,
        left_out=dict(sequence.left_out),
        eager_members=batch.runtime.eager_members,
        timings=Timings(
            prefill_seconds=fit.prefill_seconds,
            weights_seconds=fit.weights_seconds,
            decode_seconds=batch.seconds,
            tokens_per_second=generated / batch.seconds if batch.seconds > 0 else 0.0,
        ),
        seed=request.seed,
        constraint=request.constraint.kind if request.constraint else None,
        notes=_notes(batch, item, fit) + more,
        trace=recorder.finish(steps, ids) if request.trace and recorder and steps else None,
        prompt_trace=_prompt_trace(names, item) if request.trace else None,
    )


def _prompt_trace(names: list[str], item: PreparedPrompt) -> list[PromptStep] | None:
    """The scored pieces of a prompt; None if it was not scored."""
    scores = item.reading.scores
    if scores is None:
        return None
    return [
        PromptStep(
            text=piece.text.decode(errors="replace"),
            utf8=list(piece.text),
            start=piece.start,
            tokens=piece.tokens,
            loss=by_name(names, piece.losses) or {},
        )
        for piece in scores.scored_pieces()
    ]


def _candidates(runtime: Runtime, sequence: PackSequence) -> dict[str, Candidates]:
    """What members in servers named, by member."""
    found: dict[str, Candidates] = {}
    for member, stream in zip(runtime.members, sequence.streams, strict=True):
        if stream and (facts := member.named(stream.session)):
            found[member.name] = Candidates(named=facts.named, outside=facts.outside)
    return found


def _scored_places(runtime: Runtime, fit: Fit) -> dict[str, int]:
    """The places of the prompt at which members were scored that are scored at few, by member."""
    return {
        member.name: places
        for member, places in zip(runtime.members, fit.places, strict=True)
        if member.max_scored_places is not None and places
    }


def _prompt_share(batch: BatchInfo, item: PreparedPrompt, fit: Fit) -> float | None:
    weighting = batch.request.call.weighting
    if weighting.for_members(batch.runtime.names) is not None:
        return None
    return weighting.prompt_share(fit.tokens, chat=item.skill is not None)


def _usage(names: list[str], item: PreparedPrompt, fit: Fit, generated: int) -> Usage:
    return Usage(
        prompt_tokens=len(item.ids),
        completion_tokens=generated,
        total_tokens=len(item.ids) + generated,
        prompt_tokens_by_member=dict(zip(names, fit.prompt_tokens, strict=True)),
        cached_tokens=fit.cached_tokens[item.reference],
        cached_tokens_by_member=dict(zip(names, fit.cached_tokens, strict=True)),
    )


def _notes(batch: BatchInfo, item: PreparedPrompt, fit: Fit) -> list[str]:
    constraint = batch.request.constraint
    notes = [*item.prompt.notes, *batch.notes, *(constraint.notes if constraint else ())]
    if fit.losses is None:
        fixed = batch.request.call.weighting.for_members(batch.runtime.names)
        notes.append(_TOO_SHORT if batch.runtime.scores_prompt(fixed) else _NOT_SCORED)
    if batch.request.trace and batch.recorder is None:
        notes.append("no trace: beams and several return sequences are not traced")
    return notes


def _drafts(batch: BatchInfo) -> Drafts | None:
    draft = batch.request.call.draft
    if draft is None or batch.drafts is None:
        return None
    return Drafts(method=drafts().dump(draft), **asdict(batch.drafts))
