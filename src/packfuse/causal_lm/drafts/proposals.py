"""Which tokens were drafted, for the trace of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Proposals:
    """The drafted tokens of one answer, by position: the number of ids before each.

    A drafted token was accepted if it is the one in the answer. What was proposed after a rejected
    token is forgotten with the next draft.
    """

    def __init__(self) -> None:
        """Start without drafts."""
        self._tokens: dict[int, int] = {}

    def accepted(self, position: int, token: int) -> bool:
        """Whether the token at a position of the answer had been drafted."""
        return self._tokens.get(position) == token

    def noting(
        self, draft: Callable[..., tuple[Tensor, Tensor | None]]
    ) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """A function that drafts like another one, `[1, n]` to `[1, n + drafted]`, and is noted."""

        def noted(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            ids, scores = draft(input_ids, *args, **kwargs)
            start = input_ids.shape[1]
            for at in [at for at in self._tokens if at >= start]:
                del self._tokens[at]
            self._tokens.update(enumerate(ids[0, start:].tolist(), start))
            return ids, scores

        return noted
