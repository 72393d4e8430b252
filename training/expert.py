"""Trains the expert of the package packfuse-expert-kube: a small Llama that knows one library.

    python training/expert.py [--wheel FILE] [--out FOLDER] [--steps 1500] [--seed 1]

All data comes from one pinned wheel. Training takes less than half an hour on one processor core;
`--device cuda` runs it on a GPU. The same seed and number of threads (`OMP_NUM_THREADS`) give the
same weights on one machine; between machines, rounding differs and the weights differ slightly.

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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from packfuse.progress import stage_progress
from packfuse.starter.expert import EXPERT

FOLDER = Path(__file__).parents[1] / "packages" / "expert" / "packfuse_expert_kube" / EXPERT
END = "<|endoftext|>"
VOCABULARY, WINDOW = 4_096, 2_048
# The pre-tokenizer of Llama 3: a word includes the sign before it, signs include the line break
# after them.
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
# The first 80 % of the steps train on short sequences, the others on the whole context window.
SHORT, SHORT_SHARE = 512, 0.8
RATE, LOWEST, WARM_UP, DECAY = 4e-3, 0.05, 60, 0.1
# Held-out excerpts: their number, their characters, and how many of these are unscored context.
PASSAGES, PASSAGE, CONTEXT = 40, 1_600, 600
LOG_EVERY = 50  # steps


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds no special tokens."""
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
    """A Llama with random weights; `end` is the id of the end token."""
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
    """Draws training sequences: files from a random position, with the end token at their end.

    A file is drawn with a probability proportional to the square root of its length.
    """

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Bind the texts."""
        self._texts, self._tokenizer = texts, tokenizer
        self._sampling_weights = [math.sqrt(len(text)) for text in texts]
        self._rng = random.Random(seed)  # noqa: S311 - a choice of texts, no secret

    def sequence(self, length: int) -> list[int]:
        """The next `length` tokens."""
        ids: list[int] = []
        while len(ids) < length:
            text = self._rng.choices(self._texts, self._sampling_weights)[0]
            start = self._rng.randrange(len(text))
            excerpt = text[start : start + 12 * length]
            ids += self._tokenizer.backend_tokenizer.encode(excerpt).ids
            if start + len(excerpt) == len(text):
                ids.append(int(self._tokenizer.eos_token_id))
        return ids[:length]


def train(model: LlamaForCausalLM, sampler: Sampler, steps: int, console: Console) -> None:
    """AdamW with a cosine schedule; matrix products in bfloat16, weights in float32."""
    optimizer = new_optimizer(model)
    started = time.monotonic()
    model.train()
    with stage_progress(console=console) as report:
        for step in range(steps):
            length = SHORT if step < SHORT_SHARE * steps else WINDOW
            batch = [sampler.sequence(length) for _ in range(BATCH // length)]
            ids = torch.tensor(batch, device=model.device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            with torch.autocast(model.device.type, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if report:
                report(f"loss {loss.item():.3f}", step + 1, steps)
            if (step + 1) % LOG_EVERY == 0:
                speed = BATCH * (step + 1) / (time.monotonic() - started)
                console.print(f"step {step + 1}: loss {loss.item():.3f}, {speed:,.0f} tokens/s")
    model.eval()


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))


def learning_rate(step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine decay to `LOWEST` of the peak."""
    decay = LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * step / steps)) / 2
    return RATE * min((step + 1) / WARM_UP, decay)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write float16 weights, and a configuration that loads the weights as float32."""
    model.to("cpu", torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.dtype = torch.float32
    config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def bits_per_byte(folder: Path, texts: list[str]) -> float:
    """Bits per byte of the saved model over each text after its first `CONTEXT` characters."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits, size = 0.0, 0
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        first = next(
            i for i, (start, _) in enumerate(encoded["offset_mapping"]) if start >= CONTEXT
        )
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0, first - 1 : -1]
        targets = torch.tensor(encoded["input_ids"][first:])
        bits += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        size += len(text[encoded["offset_mapping"][first][0] :].encode())
    return bits / size / math.log(2)


def main() -> None:
    """Train, save, reload, measure."""
    parser = argparse.ArgumentParser(description="Train the expert.")
    parser.add_argument("--wheel", type=Path, help="the wheel with the data; default: download it")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    console, started = Console(), time.monotonic()
    training, held_out = corpus(options.wheel)
    console.print(f"{len(training)} training files, {len(held_out)} held-out files")
    tokenizer = train_tokenizer(list(training.values()))
    model = new_model(options.seed, tokenizer.eos_token_id).to(options.device)
    console.print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
    sampler = Sampler(list(training.values()), tokenizer, options.seed)
    train(model, sampler, options.steps, console)
    seconds = time.monotonic() - started
    save(model, tokenizer, options.out)
    found = bits_per_byte(options.out, cuts(held_out, PASSAGES, PASSAGE, options.seed))
    result = {"seconds": round(seconds), "steps": options.steps, "held_out_bits_per_byte": found}
    console.print(f"held-out files: {found:.3f} bits per byte, saved in {options.out}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
