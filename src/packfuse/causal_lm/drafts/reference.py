"""Drafts by the reference alone."""

from __future__ import annotations

from typing import ClassVar

from packfuse.causal_lm.drafts.base import Draft, DraftContext
from packfuse.causal_lm.drafts.draft_model import ModelDrafter


class Reference(Draft):
    """The reference writes ahead, and all members check it in one pass each.

    Attributes:
        quantize: Draft with a copy of it in 8-bit integers where that is faster (processors): a
            quarter of the time, and a quarter of its memory on top.
    """

    name: ClassVar[str] = "reference"
    source: ClassVar[str] = "speculative decoding, arXiv 2211.17192"

    quantize: bool = True

    def drafter(self, context: DraftContext) -> ModelDrafter:
        """See `Draft`."""
        return ModelDrafter(context, [context.engine.reference_index], self.most, self.quantize)
