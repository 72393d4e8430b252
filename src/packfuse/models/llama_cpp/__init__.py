"""Members whose models llama.cpp runs in this process, from GGUF files as they are.

Import from here: `load_llama_cpp`, which opens a file and checks its tokenizer, `LlamaCppMember`,
and `is_installed`. `library` is the one place that imports `llama_cpp`, and only its low-level
calls; `model` holds the weights, `context` the keys and values, `sessions` gives them to sessions.
This room may use `text` and `errors`, and the interface of members.
"""

from packfuse.models.llama_cpp.library import EXTRA, is_installed
from packfuse.models.llama_cpp.llama_cpp_member import LlamaCppMember
from packfuse.models.llama_cpp.loading import load_llama_cpp, open_vocabulary

__all__ = ["EXTRA", "LlamaCppMember", "is_installed", "load_llama_cpp", "open_vocabulary"]
