"""Texts of users and models as text in HTML."""

from __future__ import annotations

import html

_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if chr(code) not in "\t\n"}


def escaped(text: str) -> str:
    r"""A text that HTML shows as it is: nothing of it becomes markup, in attributes neither.

    Lone surrogates, which no file can hold, and control characters are replaced.

    Example:
        >>> escaped("<b> & \ud800")
        '&lt;b&gt; &amp; �'
    """
    return html.escape(whole(text).translate(_CONTROL))


def whole(text: str) -> str:
    """A text without lone surrogates, which are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
