"""Small byte-level tokenizers, trained in place, for tests that load many models."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import pico

_BEGIN, _END = "<s>", "</s>"
_TEXTS = [
    "The capital of France is Paris, and that of Italy is Rome.",
    "Once upon a time there was a small town by the sea, and the people of the town were poor.",
    "Hello! How are you? I am fine, and then we went home again.",
]
_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"


def byte_tokenizer(size: int, *, chats: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about `size` tokens, with or without a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END, _BEGIN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_END,
        bos_token=_BEGIN,
        pad_token=_END,
    )
    if chats:
        tokenizer.chat_template = _TEMPLATE
    return tokenizer


def save_small(
    folder: Path, size: int, seed: int, *, context: int = 512, chats: bool = False
) -> Path:
    """Save a tiny Llama with a tokenizer of about `size` tokens, and return the folder."""
    tokenizer = byte_tokenizer(size, chats=chats)
    pico.tiny_model(tokenizer, seed=seed, context=context).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
