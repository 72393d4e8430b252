"""From one GGUF file to a folder that `from_pretrained` loads in seconds."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packfuse.errors import StarterError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a GGUF file does not say about its model.

    Attributes:
        origin: Name of the original model, kept in the converted config.
        ends: Tokens that end a text or a turn; the first is the tokenizer's own.
        pad: Token that fills the rows of a batch.
        digits: Split digits from each other before a GPT-2 byte-level split. GGUF calls that
            rule by a name (`smollm`) that transformers does not know.
    """

    origin: str
    ends: tuple[str, ...]
    pad: str
    digits: bool = False


def convert(gguf: Path, folder: Path, recipe: Recipe) -> None:
    """Write config, generation config, tokenizer and float32 weights of `gguf` to `folder`.

    The dequantized weights are products of two halves, which neither float16 nor bfloat16
    holds exactly, so they stay float32.

    Raises:
        StarterError: A token of the recipe is not in the vocabulary.
        Exception: Whatever transformers raises on a file that it cannot read or write.
    """
    with _quiet():
        tokenizer = _tokenizer(gguf, recipe)
        model = _model(gguf, recipe, tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer(gguf: Path, recipe: Recipe) -> Any:
    """The tokenizer in `gguf`, as the class that takes tokenizer.json at its word."""
    from tokenizers import pre_tokenizers

    hf = _transformers()
    read = hf.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    backend = read.backend_tokenizer
    missing = {*recipe.ends, recipe.pad} - backend.get_vocab().keys()
    if missing:
        raise StarterError(f"{gguf.name} has no token {', '.join(sorted(missing))}")
    if recipe.digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    # Model-specific classes rebuild the pipeline in code when they load, and would lose the above.
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=recipe.ends[0],
        unk_token=read.unk_token,
        pad_token=recipe.pad,
        chat_template=read.chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _model(gguf: Path, recipe: Recipe, tokenizer: Any) -> Any:
    """The dequantized model in `gguf`, with the ids that begin, end and fill its texts."""
    import torch

    hf = _transformers()
    model = hf.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # Nothing is quantized any more, and save_pretrained must not think so.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._model_name_or_path = recipe.origin
    model.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(recipe.ends)),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars and notes of transformers from drawing over ours; all is put back after."""
    hf = _transformers().utils.logging
    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    said = io.StringIO()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        # The GGUF reader draws a bar of its own that no setting turns off.
        with contextlib.redirect_stderr(said):
            yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()
        _LOG.debug("transformers said: %s", said.getvalue())


def _transformers() -> Any:
    """The transformers module, imported late (it is slow) and untyped (as much of it is)."""
    import transformers

    return transformers
