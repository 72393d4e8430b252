"""What runs a member in this process: transformers, or llama.cpp for a GGUF file."""

from __future__ import annotations

from packfuse.errors import ConfigError
from packfuse.extras import install_command
from packfuse.models.llama_cpp import EXTRA, is_installed
from packfuse.models.loading.source import split_gguf
from packfuse.settings import (
    LLAMA_CPP,
    TRANSFORMERS,
    TRANSFORMERS_ONLY,
    EngineName,
    LoadSettings,
    MemberSettings,
)


def engine_of(member: MemberSettings, pack: LoadSettings) -> EngineName:
    """The engine of a member: that of its settings, or else the one that fits them.

    Raises:
        ConfigError: for llama.cpp without a GGUF file, or where it is not installed.
    """
    wanted = member.wanted_engine
    if wanted == TRANSFORMERS:
        return wanted
    is_gguf = split_gguf(member.model)[1] is not None
    if wanted == LLAMA_CPP:
        if not is_gguf:
            raise ConfigError(
                f"llama.cpp reads GGUF files, and {member.model!r} is none",
                hint="name a file that ends in .gguf, or leave out engine and n_gpu_layers",
            )
        if not is_installed():
            raise ConfigError(
                "llama.cpp runs GGUF files with llama-cpp-python, which is not installed",
                hint=install_command(EXTRA),
            )
        return wanted
    fits = is_gguf and is_installed() and not _needs_transformers(member, pack)
    return LLAMA_CPP if fits else TRANSFORMERS


def _needs_transformers(member: MemberSettings, pack: LoadSettings) -> bool:
    """Whether there are settings that have no effect with llama.cpp."""
    defaults = LoadSettings.model_fields
    own = member.given(TRANSFORMERS_ONLY)
    shared = [n for n in TRANSFORMERS_ONLY if getattr(pack, n) != defaults[n].default]
    return bool(own or shared)
