"""The view of an answer as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from packfuse.errors import ConfigError
from packfuse.paths import write_named
from packfuse.view.escaping import escaped

Theme = Literal["auto", "light", "dark"]
"""Colors of a view; "auto" follows the reader's system."""

SCRIPTS = ("dom.js", "units.js", "tokens.js", "charts.js", "facts.js", "answer.js")
"""The scripts of a view, in the order in which they are loaded."""
_TITLE = "A fused answer"
_LINE_CHARACTERS, _LINE_PIXELS = 70, 31


@dataclass(frozen=True, slots=True)
class View:
    """The view of an answer; in a notebook, it shows itself.

    Attributes:
        html: The file: HTML with its scripts, styles and data. It uses no network.
        height: Height in a notebook, in pixels.
    """

    html: str
    height: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file.

        Raises:
            ConfigError: if it cannot be written.
        """
        write_named(path, self.html.encode())

    def _repr_html_(self) -> str:
        """The file in a frame, which keeps its scripts and styles apart from the notebook's."""
        size = f"width: 100%; height: {self.height}px; border: 0"
        kind = f'title="{_TITLE}" sandbox="allow-scripts" style="{size}"'
        return f'<iframe {kind} srcdoc="{html.escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        """The size of the file."""
        return f"View({len(self.html):,} characters of HTML; save(path) writes them)"


def answer_view(
    text: str,
    record: Mapping[str, Any],
    turns: Sequence[Mapping[str, float]],
    theme: Theme = "auto",
) -> View:
    """The view of an answer.

    Args:
        text: The answer.
        record: Its `FusionRecord` as plain JSON types.
        turns: By turn of the chat, the weights by member; the last ones are those of this answer.
        theme: The colors.

    Raises:
        ConfigError: for an unknown theme.
    """
    if theme not in get_args(Theme):
        known = ", ".join(get_args(Theme))
        raise ConfigError(f"there is no theme {theme!r}", hint=f"take one of {known}")
    data = {"text": text, "record": record, "turns": list(turns)}
    style, code = styles(), script() + _asset("start.js")
    page = _asset("view.html").format(
        theme=escaped(theme),
        title=_TITLE,
        style=style,
        style_hash=_hash(style),
        script=code,
        script_hash=_hash(code),
        plain=escaped(text),
        answer=inline_json(data),
    )
    traced = bool(record.get("trace"))
    return View(page, _height(text, traced=traced, prompt=bool(record.get("prompt_trace"))))


def inline_json(data: Any) -> str:
    r"""JSON that can stand inside of a script element, whatever texts it has.

    Only ASCII is written, so that lone surrogates, line separators and bytes of another encoding
    cannot be misread; the characters that begin markup are escaped as well.

    Example:
        >>> inline_json(["</script>"])
        '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


@cache
def script() -> str:
    """The scripts of a view as one; they define functions and run nothing."""
    return "".join(_asset(name) for name in SCRIPTS)


@cache
def styles() -> str:
    """The styles of a view."""
    return _asset("view.css")


def _asset(name: str) -> str:
    return files("packfuse.view").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash by which a content security policy admits a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _height(text: str, *, traced: bool, prompt: bool) -> int:
    """A height at which most of a view is seen at once, in pixels."""
    lines = sum(1 + len(line) // _LINE_CHARACTERS for line in text.split("\n"))
    return min(max(360, 200 + lines * _LINE_PIXELS + (traced and prompt) * 320), 760)
