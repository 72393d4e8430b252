"""Two models of 8B with random weights on a device, trained tokenizers, and their own times."""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from packfuse import Pack
from packfuse.causal_lm.decoding import Decoder
from packfuse.hf_compat.models import CACHE
from parts.clock import Clock, exactly

TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "head_dim": 16,
}  # fmt: skip
LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "head_dim": 128,
}  # fmt: skip
QWEN = {**LLAMA, "num_hidden_layers": 36, "intermediate_size": 12288}
COLUMNS = (128_256, 151_936)
KEEPER = (
    "On day {} the keeper of the lighthouse wrote that the {} wind came from the {}, that {} ships "
    "had passed, and that the lamp, which had been cleaned at {} o'clock, burned {}. She counted "
    "the {} along the shore, mended a net, and read two chapters of a book about {}."
)


def prose() -> str:
    """About 12,000 tokens of English."""
    words = [
        (wind, place, light, animals, book)
        for wind in ("cold", "gentle", "salty") for place in ("north", "south-west", "open sea")
        for light in ("brightly", "low") for animals in ("gulls", "seals", "children")
        for book in ("navigation", "tides", "glass-making", "whales")
    ]  # fmt: skip
    return " ".join(
        KEEPER.format(day, wind, place, day * 7 % 97, day % 12 + 1, light, animals, book)
        for day, (wind, place, light, animals, book) in enumerate(words)
    )


def library_texts(part: int) -> Iterator[str]:
    """Every other file of Python's library, a few megabytes."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))[part::2]
    left = 6_000_000
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore")
        left -= len(text)
        if left < 0:
            return
        yield text


def trained_tokenizer(part: int, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; each part has its own texts, so that tokens differ."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [*library_texts(part), prose()] if size > 1000 else [prose()[part::1][:5000]]
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")  # noqa: S106


class Forced(LogitsProcessor):
    """Whatever the scores are, the next token is the next one of the prose."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        """The tokens after a prompt of `context` tokens."""
        ids = tokenizer(prose(), add_special_tokens=False).input_ids
        self._ids, self._start = ids[context:], context

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with one possible token."""
        token = self._ids[(input_ids.shape[1] - self._start) % len(self._ids)]
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0
        return forced


def random_models(
    tokenizers: Sequence[Any], device: torch.device, *, small: bool
) -> list[PreTrainedModel]:
    """A model of Llama's and one of Qwen's shape: of 8B in bfloat16, or tiny in float32."""
    kinds = ((LlamaForCausalLM, LlamaConfig, LLAMA), (Qwen3ForCausalLM, Qwen3Config, QWEN))
    made = []
    torch.set_default_dtype(torch.float32 if small else torch.bfloat16)
    try:
        for (kind, config, shape), tokenizer, columns in zip(
            kinds, tokenizers, COLUMNS, strict=True
        ):
            wide = len(tokenizer) if small else max(columns, len(tokenizer))
            settings = {**(TINY if small else shape), "max_position_embeddings": 32_768}
            with device:
                model: Any = kind(config(vocab_size=wide, **settings))
            end = tokenizer.eos_token_id
            model.generation_config.eos_token_id = model.config.eos_token_id = end
            model.generation_config.pad_token_id = end
            made.append(model.eval())
    finally:
        torch.set_default_dtype(torch.float32)
    return made


class Bench:
    """Two models, and what is measured of them.

    Attributes:
        floors: Seconds of a step of both members alone, by how they were run.
        steps: Seconds of a step of the pack, by what it was.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """Make the tokenizers; the models are made when they are needed."""
        self.small = options.small or not torch.cuda.is_available()
        self.device = torch.device("cpu" if self.small else "cuda:0")
        self.context, self.tokens = (48, 6) if self.small else (512, 64)
        self._folders = options.tokenizers or (None, None)
        self.floors: dict[str, float] = {}
        self.steps: dict[str, float] = {}

    @cached_property
    def tokenizers(self) -> list[Any]:
        """One for each model."""
        size = 400 if self.small else 48_000
        return [
            AutoTokenizer.from_pretrained(folder) if folder else trained_tokenizer(part, size)
            for part, folder in enumerate(self._folders)
        ]

    @cached_property
    def models(self) -> list[Any]:
        """The models, on the device."""
        return random_models(self.tokenizers, self.device, small=self.small)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def pack(self, **settings: Any) -> Pack:
        """The pack of both models."""
        steps = "static" if self.small else "auto"
        usual = {"weighting": "uniform", "prefix_cache": 0, "max_rows": 64, "steps": steps}
        chosen = {**usual, **settings}
        pairs = list(zip(self.models, self.tokenizers, strict=True))
        return Pack.from_pretrained(pairs, progress=False, **chosen)

    def text(self, tokenizer: Any, context: int, row: int = 0) -> str:
        """A prompt of about so many tokens."""
        ids = tokenizer(prose(), add_special_tokens=False).input_ids
        return str(tokenizer.decode(ids[7 * row : 7 * row + context]))

    def alone(self, which: int, context: int, tokens: int, **settings: Any) -> Clock:
        """One member under transformers' `generate`."""
        model, tokenizer = self.models[which], self.tokenizers[which]
        ids = tokenizer(prose(), add_special_tokens=False).input_ids[:context]
        forced = LogitsProcessorList([Forced(tokenizer, context)])
        self.sync()
        clock = Clock()
        model.generate(
            torch.tensor([ids], device=self.device), streamer=clock, logits_processor=forced,
            **exactly(tokens), **settings,
        )  # fmt: skip
        return clock

    def fused(self, pack: Pack, context: int, tokens: int) -> Clock:
        """One answer of the pack."""
        text = self.text(pack.tokenizer, context)
        with self._forced(pack, context):
            self.sync()
            clock = Clock()
            pack.generate(text, streamer=clock, max_new_tokens=tokens, do_sample=False)
        return clock

    def drafted(self, pack: Pack, context: int, tokens: int) -> Clock:
        """The same for a pack with drafts, which are compared with what a processor forces."""
        forced = LogitsProcessorList([Forced(pack.tokenizer, context)])
        text = self.text(pack.tokenizer, context)
        self.sync()
        clock = Clock()
        pack.generate(text, streamer=clock, logits_processor=forced, **exactly(tokens))
        return clock

    @contextmanager
    def _forced(self, pack: Pack, context: int) -> Iterator[None]:
        """A context in which packs write the prose, whatever they choose.

        It does without a logits processor, for which the host would wait once more a token and row.
        """
        ids = pack.tokenizer(prose(), add_special_tokens=False).input_ids[context:]
        prose_ids = torch.tensor(ids, device=self.device)
        choose = Decoder.choose

        def forced(decoder: Decoder, logps: torch.Tensor) -> torch.Tensor:
            choose(decoder, logps)
            at = (decoder.ids.shape[1] - context) % len(prose_ids)
            return prose_ids[at : at + 1]

        Decoder.choose = forced  # type: ignore[method-assign]
        try:
            yield
        finally:
            Decoder.choose = choose  # type: ignore[method-assign]

    def batch(self, pack: Pack, rows: int) -> float | None:
        """Seconds of a step of so many answers at once; None if they never ran all together.

        Prompts are read between the steps of the answers that have begun, so that all rows run
        together only after a while.
        """
        texts = [self.text(pack.tokenizer, self.context, row) for row in range(rows)]
        # A prompt may take two turns, and every turn ends with a step.
        tokens, found = 2 * rows + self.tokens // 2, list[float]()

        def note(count: int, taken: float) -> None:
            if count == rows:
                found.append(taken)

        pack.scheduler.on_step = note
        try:
            with self._forced(pack, self.context):
                pack.generate(texts, max_new_tokens=tokens, do_sample=False)
        finally:
            pack.scheduler.on_step = None
        return statistics.median(found) if found else None

    def step(self, run: Callable[[], Clock]) -> float:
        """Seconds of a step: the better of two runs after one that is not counted."""
        run()
        return min(run().timing.step for _ in range(2))

    def members_step(self, **settings: Any) -> float:
        """Seconds of a step of both members alone."""
        return sum(
            self.step(lambda k=k: self.alone(k, self.context, self.tokens, **settings))  # type: ignore[misc]
            for k in range(2)
        )

    @cache  # noqa: B019 - one bench a process
    def graph(self, rows: int) -> float:
        """Seconds of both members' batched steps over a `StaticCache`, as CUDA graphs."""
        return sum(self._graph(model, rows) for model in self.models)

    @torch.no_grad()
    def _graph(self, model: Any, rows: int) -> float:
        static = StaticCache(config=model.config, max_cache_len=self.context + 256)
        place = torch.arange(self.context, device=self.device)
        ids = torch.zeros(rows, self.context, dtype=torch.long, device=self.device)
        model(ids, position_ids=place[None], use_cache=True, logits_to_keep=1, **{CACHE: static})
        one, at = ids[:, :1].clone(), place[-1:, None] + 1
        mask = torch.arange(self.context + 256, device=self.device) <= at[0]

        def step() -> None:
            model(
                one, position_ids=at, use_cache=True, attention_mask=mask[None, None, None],
                **{CACHE: static},
            )  # fmt: skip

        if self.device.type != "cuda":
            return seconds(step, lambda: None, 2)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            step()
        return seconds(graph.replay, self.sync, 30)


def seconds(run: Callable[[], object], wait: Callable[[], None], count: int) -> float:
    """Mean time of a call."""
    run()
    wait()
    started = time.perf_counter()
    for _ in range(count):
        run()
    wait()
    return (time.perf_counter() - started) / count
