"""From generated ids to an answer with its record."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from packfuse.alignment import alignments
from packfuse.causal_lm.drafts import drafts
from packfuse.causal_lm.drafts.base import DraftStats
from packfuse.fusion.gates import gates
from packfuse.fusion.rules import rules
from packfuse.generation.prepared import PreparedPrompt
from packfuse.generation.request import Request
from packfuse.generation.result import (
    Answer,
    Drafts,
    FinishReason,
    FusionRecord,
    Timings,
    Usage,
    by_name,
)
from packfuse.generation.runtime import Runtime
from packfuse.generation.trace import TraceRecorder
from packfuse.text.detokenizer import detokenize
from packfuse.weighting.methods import weightings
from packfuse.weighting.prefill import Fit


@dataclass(frozen=True, slots=True)
class Written:
    """What the answers of one batch have in common.

    Attributes:
        runtime: The pack.
        request: What was asked for.
        recorder: Recorded every position; None with beams or several return sequences.
        drafts: Counts of the drafts, if there were any.
        notes: For the record.
        seconds: Time of generating.
    """

    runtime: Runtime
    request: Request
    recorder: TraceRecorder | None
    drafts: DraftStats | None
    notes: list[str]
    seconds: float


def written_answer(
    written: Written, item: PreparedPrompt, fit: Fit, ids: list[int], row: int, *, cancelled: bool
) -> Answer:
    """The answer of row `row` of a batch, whose generated ids may have padding behind them."""
    vocabulary = written.runtime.members[item.reference].vocabulary
    ends = set(vocabulary.end_ids)
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    ids = ids if end is None else ids[: end + 1]
    text, stopped = detokenize(ids, vocabulary, item.stop)
    if stopped is not None:
        # In a batch, padding follows.
        while not vocabulary.token_bytes[ids[-1]]:
            ids.pop()
    reason: FinishReason = "stop" if stopped is not None or end is not None else "length"
    if reason == "length" and cancelled:
        reason = "cancelled"
    record = _record(written, item, fit, ids, row, reason, stopped)
    return Answer(text, record, tuple(ids))


def _record(
    written: Written,
    item: PreparedPrompt,
    fit: Fit,
    ids: list[int],
    row: int,
    reason: FinishReason,
    stopped: str | None,
) -> FusionRecord:
    request, recorder, names = written.request, written.recorder, written.runtime.names
    generated, call = len(ids), written.request.call
    seen = recorder.row(row) if recorder else None
    return FusionRecord(
        members=names,
        reference=names[item.reference],
        fusion=rules().dump(call.rule),
        weighting=weightings().dump(call.weighting),
        alignment=alignments().dump(written.runtime.parts.alignment),
        weights=by_name(names, fit.weights) or {},
        prompt_loss=by_name(names, fit.losses),
        bits_per_byte=by_name(names, fit.bits_per_byte),
        scored_tokens=fit.tokens,
        usage=_usage(names, item, fit, generated),
        finish_reason=reason,
        stop=stopped,
        agreed=seen.share(seen.agreed, generated) if seen else None,
        overruled=seen.share(seen.overruled, generated) if seen else None,
        gate=gates().dump(call.gate),
        fused=seen.share(seen.is_fused, generated) if seen else None,
        drafts=_drafts(written),
        timings=Timings(
            prefill_seconds=fit.prefill_seconds,
            weights_seconds=fit.weights_seconds,
            decode_seconds=written.seconds,
            tokens_per_second=generated / written.seconds if written.seconds > 0 else 0.0,
        ),
        seed=request.seed,
        constraint=request.constraint.kind if request.constraint else None,
        notes=_notes(written, item, fit),
        trace=recorder.finish(seen, ids) if request.trace and recorder and seen else None,
    )


def _usage(names: list[str], item: PreparedPrompt, fit: Fit, generated: int) -> Usage:
    return Usage(
        prompt_tokens=len(item.ids),
        completion_tokens=generated,
        total_tokens=len(item.ids) + generated,
        prompt_tokens_by_member=dict(zip(names, fit.prompt_tokens, strict=True)),
        cached_tokens=fit.cached_tokens[item.reference],
        cached_tokens_by_member=dict(zip(names, fit.cached_tokens, strict=True)),
    )


def _notes(written: Written, item: PreparedPrompt, fit: Fit) -> list[str]:
    notes = [*item.prompt.notes, *written.notes]
    if fit.losses is None:
        notes.append("the prompt is too short to be scored")
    if written.request.trace and written.recorder is None:
        notes.append("no trace: beams and several return sequences are not traced")
    return notes


def _drafts(written: Written) -> Drafts | None:
    draft = written.request.call.draft
    if draft is None or written.drafts is None:
        return None
    return Drafts(method=drafts().dump(draft), **asdict(written.drafts))
