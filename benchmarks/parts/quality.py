"""What gates cost in quality: figures by text and by written answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from packfuse.evaluation.intervals import Figure


class Scored(BaseModel):
    """What one way of fusing makes of the texts of one set.

    Attributes:
        label: The gate, or who is alone.
        member: The name of the member that is alone; empty for the pack.
        bits: Bits per byte of the texts.
        against: The same minus fusing at every token, paired by text.
        fused: Share of the texts' tokens at which members were fused; None for a member alone.
    """

    label: str
    member: str = ""
    bits: Figure
    against: Figure
    fused: float | None = None


class TextSet(BaseModel):
    """One set of texts.

    Attributes:
        title: What they are.
        texts: How many.
        length: Their mean length in bytes.
        skipped: Texts left out: too long for a member, or merged with what stands before them.
        references: How many were read in each member's tokens under `reference="auto"`.
        rows: By reference, "auto" or a member's name: the gates, then who is alone.
    """

    title: str
    texts: int
    length: float
    skipped: int
    references: dict[str, int]
    rows: dict[str, list[Scored]]


class Written(BaseModel):
    """Answers that were written in one way.

    Attributes:
        label: The gate and the draft, or who is alone.
        right: Share of right numbers.
        bits: By member, bits per byte that it gives the answers alone.
        repeated: Share of the answers' runs of four words that stood in the same answer before.
        tokens: Mean length.
        fused: Share of tokens at which members were fused.
        same: Answers equal to those of fusing at every token.
        empty: Answers that end before they begin.
        time: Wall time per token, over that of fusing at every token: median over the questions on
            which both wrote enough; None if there are none. Prompts were read before.
        work: The same for processor time.
    """

    label: str
    right: float
    bits: dict[str, float]
    repeated: float
    tokens: float
    fused: float | None
    same: int
    empty: int
    time: float | None
    work: float | None


class Writing(BaseModel):
    """Answers to one set of questions.

    Attributes:
        title: What is asked, and how long answers may be.
        questions: How many.
        rows: By way.
    """

    title: str
    questions: int
    rows: list[Written]


class Quality(BaseModel):
    """One run of the command.

    Attributes:
        machine: What it ran on.
        options: How it was called.
        texts: By name of the set.
        writing: What was written; None if nothing was.
    """

    machine: dict[str, str | int]
    options: dict[str, Any]
    texts: dict[str, TextSet] = Field(default_factory=dict)
    writing: Writing | None = None
