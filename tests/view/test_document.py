"""The file of a view: whatever the texts are, they stay data, and the file is whole."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from packfuse.errors import ConfigError
from packfuse.view.document import inline_json
from packfuse.view.escaping import escaped
from tests.support import views

ANY_TEXT = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["</script>", "<!--<script>", "]]>", "\u2028", "\ud800", "&lt;", "{title}", "\\u003c"]
)


class Elements(HTMLParser):
    """The elements of a document, and the text of the answer's data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: dict[int, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        at = len(self.names) - 1
        self.texts[at] = self.texts.get(at, "") + data


USUAL = Elements(views.answer([]).view().html).names


@given(ANY_TEXT)
@example("</script><script>alert(1)</script>")
def test_json_in_a_script_is_the_data_again(text: str) -> None:
    data = {"text": text, text: [1.5, None, True]}
    written = inline_json(data)
    assert json.loads(written) == data
    assert written.isascii()
    assert not set("<>&") & set(written)


@given(ANY_TEXT, ANY_TEXT)
def test_the_file_has_the_same_elements_whatever_was_written(token: str, name: str) -> None:
    names = (name, f"{name}2")
    answer = views.answer([token, token.encode(errors="replace")], names=names, notes=[token])
    view = answer.view()
    view.html.encode()
    parsed = Elements(view.html)
    assert parsed.names == USUAL
    data: dict[str, Any] = json.loads(parsed.texts[parsed.names.index("script")])
    assert data["record"] == answer.record.model_dump()
    assert data["text"] == answer.text
    frame = Elements(view._repr_html_())
    assert frame.names == ["iframe"]
    assert frame.attributes[0]["srcdoc"] == view.html
    assert frame.attributes[0]["sandbox"] == "allow-scripts"


@given(ANY_TEXT)
def test_escaped_text_is_read_as_itself(text: str) -> None:
    html = f'<p title="{escaped(text)}">{escaped(text)}</p>'
    html.encode()
    parsed = Elements(html)
    shown = parsed.attributes[0]["title"] or ""
    assert parsed.names == ["p"]
    assert parsed.texts.get(0, "") == shown
    lost = {letter for letter in text if letter not in shown}
    assert all(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in lost)


def test_the_file_names_no_address() -> None:
    html = views.answer([b"a"], [b"b"]).view().html
    assert [word for word in ("src=", "href=", "url(", "@import", "fetch(") if word in html] == []
    assert html.count("http") == html.count("http-equiv") + html.count("http://www.w3.org/2000/svg")


def test_a_view_is_saved_or_says_why_not(tmp_path: Path) -> None:
    view = views.answer([b"a"]).view()
    view.save(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == view.html
    with pytest.raises(ConfigError, match=r"cannot write .*folder that exists"):
        view.save(tmp_path / "missing" / "a.html")
    assert len(repr(view)) < 80


def test_an_unknown_theme_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no theme 'sepia' .*auto, light, dark"):
        views.answer([]).view(theme="sepia")  # type: ignore[arg-type]


def test_answers_have_a_short_repr() -> None:
    answer = views.answer([b"word "] * 500)
    assert len(repr(answer)) < 200
    assert "500 tokens" in repr(answer)
    assert "first 0.33" in repr(answer)
