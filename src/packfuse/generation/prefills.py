"""Prompts that have been read and weighed, waiting for `generate` to start from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packfuse.fusion.sequence import PackSequence
from packfuse.weighting.prefill import Fit

Key = tuple[int, ...]
"""A prompt: the reference's ids, without padding."""


class Prefills:
    """Rows that stand at the end of their prompts.

    Attributes:
        width: How many columns the running `generate` was given, left padding included: what
            stands behind them was generated. None while none is running.
    """

    def __init__(self) -> None:
        """None yet."""
        self._rows: dict[Key, tuple[PackSequence, Fit]] = {}
        self.width: int | None = None

    def __contains__(self, ids: Key) -> bool:
        """Whether exactly this prompt is here."""
        return ids in self._rows

    def __len__(self) -> int:
        """How many prompts are here."""
        return len(self._rows)

    def add(self, ids: Sequence[int], row: PackSequence, fit: Fit) -> None:
        """Keep a row that stands at the end of `ids`."""
        # The row's own ids leave out the members' templates; its length is that of the prompt.
        row.offset = len(ids) - len(row.ids)
        self._rows[tuple(ids)] = (row, fit)

    def fit(self, ids: Sequence[int]) -> Fit:
        """What the prompt said."""
        return self._rows[tuple(ids)][1]

    def take(
        self, texts: Sequence[Sequence[int]], columns: int, last: bool
    ) -> list[PackSequence] | None:
        """The rows that begin these texts.

        Args:
            texts: Ids by row without padding, prompt and what was generated.
            columns: How many columns they had with it.
            last: Whether this is the last time: the rows themselves are given away, so that prompts
                are not held twice; if not, copies.

        Returns:
            One row for each text, each its own; None unless all prompts are here.
        """
        grown = columns - (columns if self.width is None else self.width)
        keys = [tuple(text[: len(text) - grown]) for text in texts]
        if grown < 0 or any(key not in self._rows for key in keys):
            return None
        given: set[Key] = set()
        rows: list[PackSequence] = []
        for key in keys:
            row = self._rows[key][0]
            rows.append(row if last and key not in given else row.fork())
            given.add(key)
        if last:
            self.drop(given)
        return rows

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget prompts and free what they hold."""
        for key in keys:
            self._rows.pop(key, None)
