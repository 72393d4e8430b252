"""Figures as text: bits per byte with four digits, shares of right answers in percent."""

from __future__ import annotations

from collections.abc import Mapping


def level(figure: Mapping[str, float] | None, name: str) -> str:
    """A figure with its interval; "" for none."""
    return "" if figure is None else _with_interval(figure, name, "")


def signed(figure: Mapping[str, float] | None, name: str) -> str:
    """A difference with its interval; bold where the interval excludes zero."""
    if figure is None:
        return ""
    text = _with_interval(figure, name, "+")
    return f"**{text}**" if figure["low"] > 0 or figure["high"] < 0 else text


def _with_interval(figure: Mapping[str, float], name: str, sign: str) -> str:
    digits, factor = (4, 1) if name == "bits_per_byte" else (1, 100)
    value, low, high = (f"{factor * figure[k]:{sign}.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
