"""Drafts by quantized copies of all members."""

from __future__ import annotations

from typing import ClassVar

from packfuse.causal_lm.drafts.base import Draft, DraftContext
from packfuse.causal_lm.drafts.draft_model import ModelDrafter


class Members(Draft):
    """Fuse int8 copies of all members to draft, and verify with the members.

    Almost all drafted tokens are accepted. The copies take a quarter of the members' memory in
    addition. Copies are made on processors only: on other devices they would not be faster.
    """

    name: ClassVar[str] = "members"
    source: ClassVar[str] = "packfuse; speculative decoding (arXiv 2211.17192) by quantized copies"

    def drafter(self, context: DraftContext) -> ModelDrafter:
        """See `Draft`."""
        members = range(len(context.engine.members))
        return ModelDrafter(context, members, self.max_draft_tokens, quantize=True)
