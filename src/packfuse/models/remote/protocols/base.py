"""What the kinds of servers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from packfuse.models.remote.client import Client


@dataclass(frozen=True, slots=True)
class Candidates:
    """The most probable next tokens at one place.

    Attributes:
        ids: Token ids `[k]`.
        logps: Their log-probabilities `[k]`, nats, over the whole vocabulary.
        cached: How many of the tokens before the place the server had in its KV cache; None if it
            does not say.
    """

    ids: NDArray[np.int64]
    logps: NDArray[np.float64]
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of its model.

    Attributes:
        model: Its name.
        columns: Size of its vocabulary; None if the server does not say.
        context_window: Most tokens of one sequence.
        parameters: Number of parameters; None if the server does not say.
        max_candidates: Most tokens that it names at a place; None for all.
    """

    model: str
    columns: int | None
    context_window: int
    parameters: int | None = None
    max_candidates: int | None = None


class Protocol(ABC):
    """One kind of server.

    Attributes:
        api: What settings call it.
        scores_prompts: Whether it names candidates at several places in one request.
        raise_limit: How the server is told to name more candidates, as a sentence; may be empty.
        client: The connection.
        facts: What the server said when it was asked last.
    """

    api: str
    scores_prompts: bool = False
    raise_limit: str = ""
    facts: ServerFacts

    def __init__(self, client: Client, model: str | None) -> None:
        """Talk over a connection; `model` is the name of the model, where a server has several."""
        self.client, self.model = client, model

    def renamed(self, name: str) -> Self:
        """The same server for a member of another name, which errors have."""
        twin = copy(self)
        twin.client = self.client.renamed(name)
        return twin

    @abstractmethod
    def probe(self) -> bool:
        """Set `facts`; whether the server is of this kind.

        Raises:
            ServerError: if it cannot be reached, or does not have the model.
        """

    @abstractmethod
    def tokenize(self, text: str) -> list[int] | None:
        """The server's token ids of a text, without special tokens; None if it has no such call."""

    @abstractmethod
    def read(self, ids: Sequence[int], k: int) -> Candidates:
        """The candidates after a sequence of token ids, at most `k`.

        Raises:
            ServerError: if the server fails, or answers what cannot be right.
        """

    def scores(self, ids: Sequence[int], counts: Sequence[int], k: int) -> list[Candidates]:
        """The candidates after the first n tokens for all n of `counts`, in one request.

        Args:
            ids: Token ids.
            counts: In ascending order.
            k: Most candidates at a place.

        Raises:
            ServerError: as for `read`.
            NotImplementedError: without `scores_prompts`.
        """
        raise NotImplementedError
