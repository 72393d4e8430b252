"""Trains the small expert that comes with packfuse: a Llama that knows one library and no more.

    python training/expert.py [--wheel FILE] [--out FOLDER] [--steps 1500] [--seed 1]

Everything is made from one pinned wheel, in under half an hour on one processor core, or with
`--device cuda`. The same seed and number of threads (`OMP_NUM_THREADS`) give the same weights on
one machine; between machines sums differ in their last bits, and the weights drift apart a little.

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from corpus import corpus, cuts
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from packfuse.starter.expert import expert_path

END = "<|endoftext|>"
VOCABULARY, WINDOW = 4_096, 2_048
# Llama 3's: letters take the sign before them along, signs the line break after them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
BATCH = 4_096  # tokens
STEPS = 1_500
SHORT, SHORT_SHARE = 512, 0.8  # most steps see short rows, the last ones the whole window
RATE, LOWEST, WARM_UP, DECAY = 4e-3, 0.05, 60, 0.1
PASSAGES, PASSAGE, CONTEXT = 40, 1_600, 600  # held out: how many, characters, of them unscored


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; nothing is put before a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def new_model(seed: int, end: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    return model


class Sampler:
    """Draws rows of tokens: files from a random place on, the end token after their ends.

    Long files come more often than short ones, but not as often as their length would have it.
    """

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Bind the texts."""
        self._texts, self._tokenizer = texts, tokenizer
        self._shares = [math.sqrt(len(text)) for text in texts]
        self._chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret

    def row(self, length: int) -> list[int]:
        """The next `length` tokens."""
        ids: list[int] = []
        while len(ids) < length:
            text = self._chooser.choices(self._texts, self._shares)[0]
            start = self._chooser.randrange(len(text))
            piece = text[start : start + 12 * length]
            ids += self._tokenizer.backend_tokenizer.encode(piece).ids
            if start + len(piece) == len(text):
                ids.append(int(self._tokenizer.eos_token_id))
        return ids[:length]


def train(model: LlamaForCausalLM, sampler: Sampler, steps: int, console: Console) -> None:
    """AdamW with a cosine schedule; products in bfloat16, weights in float32."""
    large = [p for p in model.parameters() if p.dim() > 1]
    small = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": large, "weight_decay": DECAY}, {"params": small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    started = time.monotonic()
    model.train()
    with Progress(*shown, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("training", total=steps)
        for step in range(steps):
            length = SHORT if step < SHORT_SHARE * steps else WINDOW
            batch = [sampler.row(length) for _ in range(BATCH // length)]
            ids = torch.tensor(batch, device=model.device)
            fall = LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = RATE * min((step + 1) / WARM_UP, fall)
            with torch.autocast(model.device.type, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % 50 == 0:
                speed = BATCH * (step + 1) / (time.monotonic() - started)
                bar.print(f"step {step + 1}: loss {loss.item():.3f}, {speed:,.0f} tokens/s")
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in half of their size; the configuration has them loaded as float32 again."""
    model.to("cpu", torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.dtype = torch.float32
    config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def bits_per_byte(folder: Path, texts: list[str]) -> float:
    """Of what is saved, over each text after its first `CONTEXT` characters."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits, size = 0.0, 0
    for text in texts:
        whole = tokenizer(text, return_offsets_mapping=True)
        first = next(i for i, (start, _) in enumerate(whole["offset_mapping"]) if start >= CONTEXT)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole["input_ids"]])).logits[0, first - 1 : -1]
        wanted = torch.tensor(whole["input_ids"][first:])
        bits += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        size += len(text[whole["offset_mapping"][first][0] :].encode())
    return bits / size / math.log(2)


def main() -> None:
    """Train, save, reload, measure."""
    options = argparse.ArgumentParser(description="Train the small expert.")
    options.add_argument("--wheel", type=Path, help="the data, if it is on disk already")
    options.add_argument("--out", type=Path, default=expert_path())
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--device", default="cpu")
    asked = options.parse_args()
    console, started = Console(), time.monotonic()
    learned, held_out = corpus(asked.wheel)
    console.print(f"{len(learned)} files to learn from, {len(held_out)} held out")
    tokenizer = train_tokenizer(list(learned.values()))
    model = new_model(asked.seed, tokenizer.eos_token_id).to(asked.device)
    console.print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
    train(model, Sampler(list(learned.values()), tokenizer, asked.seed), asked.steps, console)
    seconds = time.monotonic() - started
    save(model, tokenizer, asked.out)
    found = bits_per_byte(asked.out, cuts(held_out, PASSAGES, PASSAGE, asked.seed))
    result = {"seconds": round(seconds), "steps": asked.steps, "held_out_bits_per_byte": found}
    console.print(f"held out: {found:.3f} bits per byte, saved in {asked.out}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
