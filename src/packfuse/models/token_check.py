"""Whether two tokenizers are the same, by the tokens of one text."""

from __future__ import annotations

from collections.abc import Sequence

TEXT = "The town's 3 bridges (1824, 12 m) aren't far: naïve façades, 東京,\n\n\tx += 1  # π"
"""Text on which tokenizers that are not the same differ."""


def difference(ours: Sequence[int], theirs: Sequence[int], there: str) -> str:
    """The first difference of the tokens of `TEXT`, in words.

    Args:
        ours: The tokens by the tokenizer here.
        theirs: The tokens by the other one, which differ.
        there: Where the other one is.
    """
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((n for n, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    return (
        f"of {TEXT!r} number {at + 1} is {list(theirs[at : at + 1])} {there} and "
        f"{list(ours[at : at + 1])} here"
    )
