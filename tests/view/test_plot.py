"""Pictures of answers: what the record has is drawn, with any text, in every format."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from packfuse import Answer
from packfuse.errors import ConfigError
from packfuse.view.answer_plot import smoothed
from tests.support import views

BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_picture_in_every_format(tmp_path: Path, kind: str) -> None:
    answer = views.answer([b"$x_1$", "👩".encode()[:2], b"\n", "<end>"], [b"a", b" b"])
    file = tmp_path / f"answer.{kind}"
    picture = answer.plot(file)
    assert file.read_bytes().startswith(BEGINNINGS[kind])
    assert picture._repr_png_().startswith(BEGINNINGS["png"])


def test_the_panels_are_what_is_known() -> None:
    whole = views.answer([b"a", b"b"], [b"c", b"d"])
    plain = Answer(whole.text, whole.record.model_copy(update={"trace": None}), ())
    bare = views.answer([])
    assert [len(one.plot().figure.axes) for one in (whole, plain, bare)] == [3, 2, 1]
    turns, prompt = whole.plot(earlier=[whole]).figure.axes[1:3]
    lines: dict[Any, Any] = {line.get_label(): line for line in turns.lines}
    assert list(lines) == list(views.NAMES)
    assert lines["first"].get_ydata().tolist() == [pytest.approx(1 / 3)] * 2
    drawn: dict[Any, Any] = {line.get_label(): line.get_ydata() for line in prompt.lines}
    for name in views.NAMES:
        losses = [step.loss[name] for step in whole.record.prompt_trace or []]
        assert drawn[name][0] == pytest.approx(math.exp(sum(losses) / 2))


def test_curves_are_means_over_tokens() -> None:
    losses, tokens = [float(n % 7) for n in range(40)], [1 + n % 3 for n in range(40)]
    found = smoothed(losses, tokens)
    for at in (0, 5, 20, 39):
        near = slice(max(0, at - 8), at + 9)
        mean = sum(losses[near]) / sum(tokens[near])
        assert found[at] == pytest.approx(math.exp(mean))
    assert smoothed([9999.0], [1])[0] < 1e9


def test_no_global_state_of_matplotlib_is_touched() -> None:
    import matplotlib as mpl
    from matplotlib import pyplot

    before = mpl.rcParams["backend"]
    views.answer([b"a"]).plot()
    assert mpl.rcParams["backend"] == before
    assert pyplot.get_fignums() == []


def test_unusable_files_are_named(tmp_path: Path) -> None:
    answer = views.answer([])
    with pytest.raises(ConfigError, match=r"is no picture .*\.png, \.svg, \.pdf"):
        answer.plot(tmp_path / "answer.docx")
    with pytest.raises(ConfigError, match="cannot write"):
        answer.plot(tmp_path / "missing" / "answer.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"plots need matplotlib .*pip install .*\[plot\]"):
        views.answer([]).plot()
