"""The level of the members' logits, for processors that depend on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from packfuse.fusion.sequence import PackSequence


def log_normalizers(sequences: Sequence[PackSequence], keep: int, device: torch.device) -> Tensor:
    """The weighted mean of the members' log normalizers, `[B, keep, 1]`, nats."""
    found = torch.zeros(len(sequences), keep, 1, device=device)
    for index, sequence in enumerate(sequences):
        count = len(sequence.streams)
        own = sequence.weights
        weights = [1 / count] * count if own is None else own.tolist()
        for stream, weight in zip(sequence.streams, weights, strict=True):
            known = stream.session.log_normalizers if stream else None
            if known is not None and weight:
                last = weight * known[-keep:].to(found).nan_to_num(0.0, 0.0, 0.0)
                # A member with fewer tokens there: its first value stands for the others.
                found[index, :, 0] += nn.functional.pad(
                    last[None, None], (keep - len(last), 0), mode="replicate"
                )[0, 0]
    return found
