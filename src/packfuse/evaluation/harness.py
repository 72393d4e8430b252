"""The pack as an lm-eval model, by the interface `lm_eval.api.model.LM`."""

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
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.pack import Pack
from packfuse.text.vocabulary import Vocabulary

_LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of generated tokens, by precedence, as in lm-eval's own models."""


@register_model("packfuse")
class PackLM(LM):  # type: ignore[misc]
    """Log-likelihoods and generated answers of a pack.

    Log-likelihoods follow the definition of lm-eval (`packfuse.text.continuation`). Only the
    log-probabilities of target tokens are kept, so memory does not grow as B x L x V. Weights are
    fitted to each context.

    Importing this module registers the model name "packfuse" in lm-eval.

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
            pack: The pack; by default that of `pack_file`, or else the starter pack.
            pack_file: YAML file of a pack.
            journal: Keeps every result; known results are not computed again.
            **_: lm-eval's `batch_size`, `max_batch_size` and `device` are ignored.

        Raises:
            ConfigError: for a wrong pack file.
            LoadError: if a member cannot be loaded.
        """
        super().__init__()
        if pack is None:
            pack = Pack.from_config(pack_file) if pack_file else Pack.starter()
        self.pack, self.setting = pack, Setting.of(pack)
        self.journal = journal
        self._system = ScoringSystem(pack, {"pack": self.setting})

    @property
    def tokenizer_name(self) -> str:
        """The identity of the pack, part of lm-eval's cache keys."""
        return str(self.pack.identity)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether greedy decoding generates it.

        Raises:
            PromptError: for a context that is too long for a member.
            MemberError: if a member fails.
        """
        results = self._each("likelihood", requests, self._likelihood, disable_tqdm)
        return [(logp, greedy) for logp, greedy in results]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows of the default reference's tokens.

        As in `HFLM`, each text follows the beginning-of-sequence token, and long texts are split
        into disjoint windows.

        Raises:
            MemberError: if a member fails.
        """
        return self._each("rolling", requests, self._rolling, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, each up to its stop strings.

        Raises:
            PromptError: for a prompt that is too long for a member.
            MemberError: if a member fails.
        """
        return self._each("answer", requests, self._answer, disable_tqdm)

    def _each(
        self, kind: str, requests: Sequence[Any], run: Callable[..., Any], disable_tqdm: bool
    ) -> list[Any]:
        """The result of `run` for each request's arguments, from the journal if it is there."""
        console = Console(stderr=True)
        results = []
        for request in track(requests, "Evaluating", console=console, disable=disable_tqdm):
            key = digest(self._system.key, kind, repr(request.args))
            result = self.journal and self.journal.get(key)
            if result is None:
                result = run(*request.args)
                if self.journal:
                    self.journal.add(key, result)
            results.append(result)
        return results

    def _likelihood(self, context: str, text: str) -> tuple[float, bool]:
        if not context:
            return self._score_ids([self._start], self._encode(text))
        scores = self._system.scored_prompts(context, [text]).under(self.setting).scores
        return float(scores.logps[0, 0]), bool(scores.greedy[0, 0])

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=[*self._vocabulary.prefix_ids, *self._encode(text)],
            prefix_token=self._start,
            max_seq_len=self.pack.context_window,
            context_len=1,
        )
        parts = (self._score_ids(*make_disjoint_window(window)) for window in windows)
        return sum(logp for logp, _ in parts)

    def _answer(self, context: str, options: dict[str, Any]) -> str:
        arguments = dict(options)
        until = arguments.pop("until", None) or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        longest = [arguments.pop(name, None) for name in _LONGEST]
        arguments["max_new_tokens"] = next((count for count in longest if count is not None), 256)
        return str(self.pack.generate(context, stop=stop or None, **arguments).text)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.pack.members[self.pack.default_reference].vocabulary

    @property
    def _start(self) -> int:
        """The token before a text without context: that of the beginning, or else the end."""
        tokenizer = self._vocabulary.tokenizer
        first = tokenizer.bos_token_id
        return int(tokenizer.eos_token_id if first is None else first)

    def _encode(self, text: str) -> list[int]:
        return self._vocabulary.encode_bytes(
            self._vocabulary.prefix_of(text.encode()) + text.encode()
        )

    def _score_ids(self, head: Sequence[int], new: Sequence[int]) -> tuple[float, bool]:
        logps, greedy = self._system.scorer(self.pack.default_reference).score_ids(head, new)
        return float(logps[0]), bool(greedy[0])
