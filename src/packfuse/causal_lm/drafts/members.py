"""Drafts by quantized copies of all members."""

from __future__ import annotations

from typing import ClassVar

from packfuse.causal_lm.drafts.base import Draft, DraftContext
from packfuse.causal_lm.drafts.draft_model import ModelDrafter


class Members(Draft):
    """Copies of all members in 8-bit integers are fused to write ahead; the members check them.

    They are nearly always right, and cost a quarter of the members' memory on top. Only for
    processors: elsewhere the copies would be no faster than the members.
    """

    name: ClassVar[str] = "members"
    source: ClassVar[str] = "packfuse; speculative decoding (arXiv 2211.17192) by quantized twins"

    def drafter(self, context: DraftContext) -> ModelDrafter:
        """See `Draft`."""
        return ModelDrafter(context, range(len(context.engine.members)), self.most, quantize=True)
