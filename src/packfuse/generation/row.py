"""One answer while it is decoded together with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.decoding import Decoder, Prepared
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.output.result import Answer
from packfuse.transfer import download
from packfuse.weighting.prefill import leave_out


class Row:
    """One sequence, with all that belongs to its request.

    Attributes:
        model: The pack over the vocabulary of the reference.
        sequence: The prompt and the answer so far.
        call: How the members are fused.
        done: Whether the answer has ended.
    """

    def __init__(
        self,
        model: FusedForCausalLM,
        sequence: PackSequence,
        cache: FusedCache,
        ids: Tensor,
        arguments: dict[str, Any],
        streamer: BaseStreamer | None,
        answer: Callable[[list[int]], Answer],
        drops: bool = False,
    ) -> None:
        """Prepare the answer to a prompt that has been read; `begin` chooses its first token.

        Args:
            model: The pack over the vocabulary of the reference.
            sequence: The prompt, with its weights.
            cache: The cache of the call, with the sequence.
            ids: The prompt, `[1, n]`.
            arguments: Arguments of transformers' `generate`.
            streamer: Called with the ids of the prompt, and then with every token.
            answer: Makes the answer from its ids.
            drops: Whether members that fail are left out.
        """
        self.model, self.sequence, self._streamer, self._answer = model, sequence, streamer, answer
        self.call: CallSettings = cache.call or model.call
        self._start, self._drops = ids.shape[1], drops
        self._decoder = Decoder(ids, cache, Prepared.of(model, ids, cache, arguments))

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._decoder.done

    @property
    def last(self) -> int:
        """The token by which the sequence is to be advanced."""
        return self._decoder.last

    def begin(self) -> None:
        """Choose the first token from the distribution after the prompt."""
        sequence, streamer = self.sequence, self._streamer
        if streamer:
            streamer.put(self._decoder.ids)
        if sequence.is_stale:
            self.model.engine.read_again([sequence], self.call)
        fused, members = sequence.fused_logps, sequence.member_logps
        if fused is None or members is None:
            raise LookupError("the prompt has not been fused")
        if self.call.observer:
            # This position was fused when the prompt was prepared, without an observer.
            count = len(sequence.ids)
            self.call.observer(sequence, FusedPosition(count, members, fused, sequence.is_fused))
        self.take(fused)

    def take(self, logps: Tensor) -> None:
        """Choose the next token from the fused log-probabilities `[V]` after the last one, nats."""
        self.accept(download([self.choose(logps)])[0])

    def choose(self, logps: Tensor) -> Tensor:
        """Choose the next token where the log-probabilities `[V]` are; `accept` follows.

        Returns:
            The token, `[1]`, for which nothing has waited yet.

        Raises:
            MemberError: if a member gave NaN, and that was noticed here.
        """
        try:
            return self._decoder.choose(logps)
        except Exception:
            # Errors that follow from NaN give way to the one that names the member.
            self.sequence.settle()
            raise

    def accept(self, chosen: NDArray[np.int64]) -> None:
        """Add the token that was chosen, `[1]`, once it is on the host.

        Raises:
            MemberError: if a member gave NaN, which is known by then.
        """
        self.sequence.settle()
        token = self._decoder.accept(chosen)
        if self._streamer:
            self._streamer.put(token)

    def leave_out(self, name: str) -> bool:
        """Go on without a member that has failed, if the pack drops such members.

        Returns:
            Whether anything changed: not for the reference, nor for a member that reads nothing.
        """
        engine = self.model.engine
        k = [member.name for member in engine.members].index(name)
        able = self._drops and k != engine.reference_index
        if not able or self.sequence.streams[k] is None:
            return False
        leave_out(self.sequence, k, engine)
        self.sequence.left_out[name] = self._decoder.ids.shape[1] - self._start
        return True

    def answer(self) -> Answer:
        """The answer so far."""
        if self._streamer:
            self._streamer.end()
        return self._answer(self._decoder.ids[0, self._start :].tolist())
