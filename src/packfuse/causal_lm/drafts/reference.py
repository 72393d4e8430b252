"""Drafts by the reference alone."""

from __future__ import annotations

from typing import ClassVar

from packfuse.causal_lm.drafts.base import Draft, DraftContext
from packfuse.causal_lm.drafts.draft_model import ModelDrafter


class Reference(Draft):
    """The reference drafts, and all members verify the draft in one pass.

    Attributes:
        quantize: Whether to draft with an int8 copy of the reference on processors. The copy is
            faster, and takes a quarter of the memory of the reference in addition.
    """

    name: ClassVar[str] = "reference"
    source: ClassVar[str] = "speculative decoding, arXiv 2211.17192"

    quantize: bool = True

    def drafter(self, context: DraftContext) -> ModelDrafter:
        """See `Draft`."""
        reference = [context.engine.reference_index]
        return ModelDrafter(context, reference, self.max_draft_tokens, self.quantize)
