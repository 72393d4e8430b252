"""The weights of a GGUF file, as llama.cpp has opened it."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path

from packfuse.errors import LoadError
from packfuse.models.llama_cpp.library import forget_errors, last_errors, library


class LlamaModel:
    """A GGUF file that llama.cpp has opened; freed with the last reference.

    Attributes:
        path: The file; of a split one, its first part.
        pointer: The address of the model, for calls of the library.
        columns: Number of logits.
    """

    def __init__(self, path: Path, *, gpu_layers: int = 0, vocabulary_only: bool = False) -> None:
        """Open a file.

        Args:
            path: The file; of a split one, its first part.
            gpu_layers: How many layers go to GPUs; -1 for all.
            vocabulary_only: Whether the weights stay in the file.

        Raises:
            LoadError: if llama.cpp cannot load it.
        """
        self._library = library()
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.vocab_only = vocabulary_only
        # Weights stay mapped from the file, and are not packed anew for other kernels. Those for
        # AMX set up each thread of the processor once, which kernels of torch presumably undo.
        parameters.use_extra_bufts = False
        forget_errors()
        self.path = path
        self.pointer = self._library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.pointer:
            raise LoadError(f"llama.cpp cannot load it: {last_errors('no reason given')}")
        free = weakref.finalize(self, self._library.llama_model_free, self.pointer)
        free.atexit = False  # a thread may still compute; the end of the process frees it
        self._vocabulary = self._library.llama_model_get_vocab(self.pointer)
        self.columns = int(self._library.llama_vocab_n_tokens(self._vocabulary))

    @property
    def context_window(self) -> int:
        """The most tokens that the model can read."""
        return int(self._library.llama_model_n_ctx_train(self.pointer))

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return int(self._library.llama_model_n_params(self.pointer))

    @property
    def nbytes(self) -> int:
        """Memory of the weights, in bytes."""
        return int(self._library.llama_model_size(self.pointer))

    @property
    def quantization(self) -> str:
        """How the weights are stored, as in "Q4_K - Medium"."""
        kind = self._library.llama_model_ftype(self.pointer)
        name = (self._library.llama_ftype_name(kind) or b"").decode()
        return name.removeprefix("(guessed) ")

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp."""
        text = ctypes.create_string_buffer(256)
        key = b"general.architecture"
        self._library.llama_model_meta_val_str(self.pointer, key, text, len(text))
        return text.value.decode(errors="replace")

    @property
    def is_causal(self) -> bool:
        """Whether it predicts the next token of a text."""
        call = self._library
        one = call.llama_model_has_decoder(self.pointer)
        other = call.llama_model_has_encoder(self.pointer)
        return bool(one) and not other and not call.llama_model_is_diffusion(self.pointer)

    @property
    def has_states(self) -> bool:
        """Whether some layers have a recurrent state, which cannot be rolled back."""
        call = self._library
        found = call.llama_model_is_recurrent(self.pointer) or call.llama_model_is_hybrid(
            self.pointer
        )
        return bool(found)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text as llama.cpp writes it, without those that begin or end a text."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._library.llama_tokenize(
            self._vocabulary, data, len(data), ids, len(ids), False, False
        )
        return list(ids[:count])
