"""HTML tables of packs, weights and results: every fact is there, and no text becomes markup."""

from __future__ import annotations

from packfuse.evaluation.determination import Candidate, Determination
from packfuse.settings import PackConfig
from packfuse.view.tables import Share, Strong, html_table
from tests.support.small import small_pack
from tests.view.test_document import Elements

NASTY = '"><img src=x onerror=alert(1)>'


def cells(html: str) -> list[str]:
    """The texts of all cells and captions, in order."""
    parsed = Elements(html)
    return [
        parsed.texts.get(at, "") for at, name in enumerate(parsed.names) if name in ("th", "td")
    ]


def test_texts_of_a_table_are_texts() -> None:
    html = html_table(NASTY, ["a", NASTY], [[NASTY, Share(0.25)], [Strong(NASTY), "b"]], [NASTY])
    parsed = Elements(html)
    assert {"img", "script"}.isdisjoint(parsed.names)
    assert sum(NASTY in text for text in parsed.texts.values()) == 5
    assert "width:25.0%" in html
    assert "0.250" in html


def test_a_pack_as_a_table() -> None:
    pack = small_pack()
    html = pack._repr_html_()
    assert cells(html)[5::5] == pack.names
    assert "fusion packllm" in html
    assert "reference long" in html


def test_weights_as_a_table_and_in_a_line() -> None:
    pack = small_pack()
    found = pack.weigh("hello the true", ["uniform", "sim"])
    assert repr(found) == str(found)
    assert "uniform 0.50 / 0.50" in repr(found)
    assert len(repr(found)) < 120
    html = found._repr_html_()
    assert all(name in cells(html) for name in (*found.members, "uniform", "sim", "bits/byte"))
    for weights in found.weights.values():
        assert all(f"{share:.3f}" in html for share in weights.values())


def test_a_determination_as_a_table_and_in_a_line() -> None:
    candidates = [
        Candidate(name="one", model="one", score=0.5, stays=True, reason=NASTY),
        Candidate(name="two", model="two", reason="worse"),
    ]
    found = Determination(
        source="file", measure="accuracy", development=4, held_back=2, candidates=candidates,
        setting={}, config=PackConfig.check({"members": ["one", "two"]}),
    )  # fmt: skip
    assert repr(found) == str(found) == "Determination(one; of 2 candidates)"
    assert cells(found._repr_html_())[5:] == ["one", "0.5000", "–", "yes", NASTY, "two", "–", "–",
                                              "no", "worse"]  # fmt: skip
