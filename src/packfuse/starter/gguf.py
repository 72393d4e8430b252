"""Conversion of a GGUF file to a model folder that `from_pretrained` loads in seconds."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packfuse.errors import StarterError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Facts about a model that its GGUF file lacks.

    Attributes:
        origin: Name of the original model, written to the converted config.
        end_tokens: Tokens that end a text or a turn; the first is the tokenizer's EOS token.
        padding: Token that pads the sequences of a batch.
        split_digits: Split numbers into digits before the byte-level split of GPT-2. In GGUF this
            pre-tokenizer has a name (`smollm`) that transformers does not know.
        tied: Write one matrix for the embeddings and the LM head, as in the original model. The
            GGUF file has two, and that of the LM head is quantized with more bits.
        dtype: Type of the written weights.
    """

    origin: str
    end_tokens: tuple[str, ...]
    padding: str
    split_digits: bool = False
    tied: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"


def convert(gguf: Path, folder: Path, recipe: Recipe) -> None:
    """Write config, generation config, tokenizer and dequantized weights of `gguf` to `folder`.

    Raises:
        StarterError: A token of the recipe is not in the vocabulary.
        Exception: Any error of transformers on a file that it cannot read or write.
    """
    with _transformers_output_suppressed():
        tokenizer = _load_tokenizer(gguf, recipe)
        model = _load_model(gguf, recipe, tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _load_tokenizer(gguf: Path, recipe: Recipe) -> Any:
    """The tokenizer in `gguf`, as a class that loads tokenizer.json unchanged."""
    from tokenizers import pre_tokenizers

    hf = _transformers()
    loaded = hf.AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    backend = loaded.backend_tokenizer
    missing = {*recipe.end_tokens, recipe.padding} - backend.get_vocab().keys()
    if missing:
        raise StarterError(f"{gguf.name} has no token {', '.join(sorted(missing))}")
    if recipe.split_digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    # Model-specific classes rebuild the pre-tokenizer when they load, and would lose the change.
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=loaded.bos_token,
        eos_token=recipe.end_tokens[0],
        unk_token=loaded.unk_token,
        pad_token=recipe.padding,
        chat_template=loaded.chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _load_model(gguf: Path, recipe: Recipe, tokenizer: Any) -> Any:
    """The dequantized model in `gguf`, with the BOS, EOS and padding ids of `tokenizer`."""
    import torch

    hf = _transformers()
    model = hf.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are dequantized: save_pretrained must not write a quantization config.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if recipe.tied:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
    model.to(getattr(torch, recipe.dtype))
    model.config._model_name_or_path = recipe.origin
    model.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(recipe.end_tokens)),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


@contextlib.contextmanager
def _transformers_output_suppressed() -> Iterator[None]:
    """Suppress progress bars and log messages of transformers, which would overwrite ours."""
    hf = _transformers().utils.logging
    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    output = io.StringIO()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        # The GGUF reader draws a bar that no setting turns off.
        with contextlib.redirect_stderr(output):
            yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()
        _LOG.debug("output of transformers: %s", output.getvalue())


def _transformers() -> Any:
    """The transformers module: imported on first use, as it loads slowly, and untyped."""
    import transformers

    return transformers
