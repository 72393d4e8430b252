"""The picture of an answer: weights, the prompt as each member read it, and the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from packfuse.view.escaping import whole
from packfuse.view.picture import COLORS, DASHES, Picture, new_figure

_PANEL_INCHES = 2.0
_WIDTH_INCHES = 7.0
_WINDOW = 8
_MOST_LABELS = 40
_HIGHEST = 20.0


def answer_picture(record: Mapping[str, Any], turns: Sequence[Mapping[str, float]]) -> Picture:
    """Draw an answer; what its record does not have is left out.

    Args:
        record: Its `FusionRecord` as plain JSON types.
        turns: By turn of the chat, the weights by member.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    panels = [_weights]
    panels += [_turns] if len(turns) > 1 else []
    panels += [_prompt] if record.get("prompt_trace") else []
    panels += [_tokens] if record.get("trace") else []
    figure = new_figure(_WIDTH_INCHES, _PANEL_INCHES * len(panels))
    for panel, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
        panel(axes, record, turns)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8
        )
    return Picture(figure)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}


def _weights(axes: Any, record: Mapping[str, Any], turns: Any) -> None:
    names = record["members"]
    places = list(range(len(names)))
    shares = [record["weights"][name] for name in names]
    axes.barh(places, shares, color=[COLORS[at % len(COLORS)] for at in places])
    for at, share in zip(places, shares, strict=True):
        axes.text(share, at, f" {share:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, [_plain(name) for name in names])
    axes.set(xlabel="weight on this prompt", xlim=(0, 1.12))
    axes.invert_yaxis()


def _turns(axes: Any, record: Mapping[str, Any], turns: Sequence[Mapping[str, float]]) -> None:
    for index, name in enumerate(record["members"]):
        known = [(at, turn[name]) for at, turn in enumerate(turns, start=1) if name in turn]
        axes.plot(*zip(*known, strict=True), marker="o", label=_plain(name), **_style(index))
    axes.set(xlabel="turn of the chat", ylabel="weight", ylim=(0, 1))
    axes.set_xticks(range(1, len(turns) + 1))


def _prompt(axes: Any, record: Mapping[str, Any], turns: Any) -> None:
    steps = record["prompt_trace"]
    starts = [step["start"] for step in steps]
    tokens = [max(1, step["tokens"]) for step in steps]
    for index, name in enumerate(record["members"]):
        if name not in steps[0]["loss"]:
            continue
        losses = [step["loss"][name] for step in steps]
        axes.plot(starts, smoothed(losses, tokens), label=_plain(name), **_style(index))
    axes.set(xlabel="byte of the prompt", ylabel="perplexity")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")


def smoothed(losses: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """Perplexity at each piece of a prompt: over the tokens of the pieces around it.

    Args:
        losses: Loss of each piece, nats.
        tokens: Number of tokens of each piece.

    Example:
        >>> smoothed([0.0, 0.0], [1, 3])
        [1.0, 1.0]
    """
    total, count = ([0, *accumulate(values)] for values in (losses, tokens))
    found = []
    for at in range(len(losses)):
        low, high = max(0, at - _WINDOW), min(len(losses), at + _WINDOW + 1)
        mean = (total[high] - total[low]) / (count[high] - count[low])
        found.append(math.exp(min(mean, _HIGHEST)))
    return found


def _tokens(axes: Any, record: Mapping[str, Any], turns: Any) -> None:
    trace = record["trace"]
    places = range(len(trace))
    for index, name in enumerate(record["members"]):
        own = [step["member_probabilities"][name] for step in trace]
        axes.plot(places, own, label=_plain(name), linewidth=1, **_style(index))
    fused = [step["probability"] for step in trace]
    axes.plot(places, fused, "o", color="black", markersize=3, label="pack")
    axes.set(ylabel="probability of the token", ylim=(-0.02, 1.02))
    if len(trace) <= _MOST_LABELS:
        texts = [_plain(repr(step["text"])[1:-1]) for step in trace]
        axes.set_xticks(list(places), texts, rotation=60, fontsize=7, ha="right")
    else:
        axes.set_xlabel("token of the answer")


def _plain(text: str) -> str:
    """A text that matplotlib draws as it is: a dollar sign would begin a formula."""
    return whole(text).replace("$", r"\$")
