"""llama.cpp as `llama-cpp-python` builds it: its low-level calls, and what it logs."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections import deque
from functools import cache
from importlib.metadata import version
from typing import Any

from packfuse.errors import LoadError
from packfuse.extras import install_command
from packfuse.models.compute.threads import find_openmp_again

EXTRA = "llama-cpp"
"""The extra that installs it."""
OLDEST = (0, 3, 36)
"""The oldest version of llama-cpp-python with the calls that are used here."""

_WARNING, _ERROR = 3, 4
"""Levels of ggml's log."""

_logger = logging.getLogger("packfuse.llama_cpp")
_errors: deque[str] = deque(maxlen=4)


def is_installed() -> bool:
    """Whether llama-cpp-python is there, of whatever version."""
    return importlib.util.find_spec("llama_cpp") is not None


@cache
def library() -> Any:
    """The low-level calls of llama.cpp, whose log goes to Python's from now on.

    Raises:
        LoadError: if llama-cpp-python is missing, too old, or cannot be loaded.
    """
    if not is_installed():
        raise LoadError("llama-cpp-python is not installed", hint=install_command(EXTRA))
    installed = version("llama_cpp_python")
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise LoadError(
            f"llama-cpp-python {installed} is too old; {needed} is needed",
            hint=install_command(EXTRA),
        )
    try:
        from llama_cpp import llama_cpp as found
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"llama-cpp-python cannot be loaded: {error}", hint="build and install it again"
        ) from error
    find_openmp_again()
    found.llama_log_set(_log_callback(found), None)
    found.llama_backend_init()
    return found


@cache
def _log_callback(found: Any) -> Any:
    """The callback for llama.cpp's log, which must exist as long as the library."""

    def log(level: int, text: bytes, _: Any) -> None:
        line = text.decode(errors="replace").strip()
        if level == _ERROR and line:
            _errors.append(re.sub(r"^\w+: ", "", line))  # without the name of the function
        _logger.log(logging.INFO if level in (_WARNING, _ERROR) else logging.DEBUG, line)

    return found.llama_log_callback(log)


def forget_errors() -> None:
    """Drop the errors that llama.cpp has logged so far."""
    _errors.clear()


def last_errors(default: str) -> str:
    """What llama.cpp has logged as errors since `forget_errors`, or else the default."""
    return "; ".join(dict.fromkeys(_errors)) or default
