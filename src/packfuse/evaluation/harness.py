"""The pack as an lm-eval model: `lm_eval.api.model.LM` by the library's own interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-untyped]
from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
from lm_eval.utils import (  # type: ignore[import-untyped]
    get_rolling_token_windows,
    make_disjoint_window,
)
from rich.console import Console
from rich.progress import track

from packfuse.evaluation.journal import Journal, digest
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems import Scored
from packfuse.pack import Pack
from packfuse.text.vocabulary import Vocabulary

_LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the longest answer; the first one counts, as in lm-eval's own models."""


@register_model("packfuse")
class PackLM(LM):  # type: ignore[misc]
    """Likelihoods and answers of a pack.

    Likelihoods are defined as lm-eval defines them (`packfuse.text.continuation`). The distribution
    at a position is dropped as soon as the next token has been looked up, so nothing of size
    B x L x V is held. Weights are fitted to each context.

    Importing this module registers the name, as lm-eval's models register theirs.

    Example:
        >>> lm_eval.simple_evaluate(model=PackLM(Pack.starter()), tasks=["piqa"])  # doctest: +SKIP
    """

    def __init__(
        self,
        pack: Pack | None = None,
        *,
        pack_file: str | None = None,
        journal: Journal | None = None,
        **_: Any,
    ) -> None:
        """Wrap a pack.

        Args:
            pack: The pack; without it, and without a file, the starter pack.
            pack_file: A YAML file that describes one.
            journal: Keeps every answer, and gives it again after an interruption.
            **_: lm-eval's own `batch_size`, `max_batch_size` and `device` change nothing.
        """
        super().__init__()
        if pack is None:
            pack = Pack.from_config(pack_file) if pack_file else Pack.starter()
        self.pack, self.setting = pack, Setting.of(pack)
        self.journal = journal
        self._scored = Scored(pack, {"pack": self.setting})

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's cache keys."""
        return str(self.pack.identity)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, nats, and whether greedy decoding writes it."""
        found = self._each("likelihood", requests, self._likelihood, disable_tqdm)
        return [(logp, greedy) for logp, greedy in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, nats, in windows of the default reference's tokens.

        As in `HFLM`, a text begins after one token, and what outgrows the window is cut into
        windows that do not overlap.
        """
        return self._each("rolling", requests, self._rolling, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, each up to its stop strings."""
        return self._each("answer", requests, self._answer, disable_tqdm)

    def _each(
        self, kind: str, requests: Sequence[Any], ask: Callable[..., Any], silent: bool
    ) -> list[Any]:
        """What `ask` gives for each request's arguments, or what it gave before."""
        console = Console(stderr=True)
        found = []
        for request in track(requests, "Asking the pack", console=console, disable=silent):
            key = digest(self._scored.key, kind, repr(request.args))
            known = self.journal and self.journal.get(key)
            if known is None:
                known = ask(*request.args)
                if self.journal:
                    self.journal.add(key, known)
            found.append(known)
        return found

    def _likelihood(self, context: str, text: str) -> tuple[float, bool]:
        if not context:
            return self._follow([self._start], self._encode(text))
        scores = self._scored.readings(context, [text]).under(self.setting).scores
        return float(scores.logps[0, 0]), bool(scores.greedy[0, 0])

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=[*self._own.prefix_ids, *self._encode(text)],
            prefix_token=self._start,
            max_seq_len=self.pack.context_window,
            context_len=1,
        )
        parts = (self._follow(*make_disjoint_window(window)) for window in windows)
        return sum(logp for logp, _ in parts)

    def _answer(self, context: str, given: dict[str, Any]) -> str:
        arguments = dict(given)
        until = arguments.pop("until", None) or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        longest = [arguments.pop(name, None) for name in _LONGEST]
        arguments["max_new_tokens"] = next((count for count in longest if count is not None), 256)
        return str(self.pack.generate(context, stop=stop or None, **arguments).text)

    @property
    def _own(self) -> Vocabulary:
        return self.pack.members[self.pack.default_reference].vocabulary

    @property
    def _start(self) -> int:
        """What a text without a context follows: the beginning of sequence, or else the end."""
        tokenizer = self._own.tokenizer
        first = tokenizer.bos_token_id
        return int(tokenizer.eos_token_id if first is None else first)

    def _encode(self, text: str) -> list[int]:
        return self._own.encode_bytes(self._own.text_prefix + text.encode())

    def _follow(self, head: Sequence[int], new: Sequence[int]) -> tuple[float, bool]:
        logps, greedy = self._scored.scorer(self.pack.default_reference).follow(head, new)
        return float(logps[0]), bool(greedy[0])
