"""What transformers hands to a model, as a pack reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from packfuse.causal_lm.cache import FusedCache
from packfuse.errors import PromptError, UnsupportedError


def checked_cache(given: Any) -> FusedCache:
    """A pack's cache: the given one, or a new one.

    Raises:
        UnsupportedError: for any other kind.
    """
    if given is None:
        return FusedCache()
    if not isinstance(given, FusedCache):
        raise UnsupportedError(
            f"a pack cannot use a {type(given).__name__}",
            hint="pass no cache, or one that the pack returned",
        )
    return given


def unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Rows without the padding on the left.

    Raises:
        PromptError: for no tokens, or a mask that has zeros elsewhere.
    """
    if ids.numel() == 0:
        raise PromptError("the prompt has no tokens", hint="give at least one token")
    rows: list[list[int]] = ids.tolist()
    if mask is None:
        return rows
    mask = mask[:, mask.shape[1] - ids.shape[1] :]
    kept = [int(count) for count in mask.sum(-1).tolist()]
    for index, count in enumerate(kept):
        if count == 0 or not bool(mask[index, len(mask[index]) - count :].all()):
            raise PromptError(
                f"row {index} of the attention mask has zeros on the right, inside or everywhere",
                hint="pad on the left",
            )
    return [row[len(row) - count :] for row, count in zip(rows, kept, strict=True)]
