"""By what are members trusted in a chat? Candidates for the weights, on the package's worked chats.

    python benchmarks/chat_weights.py [--starter NAME] [--small] [--save]

Every worked chat is the last question of a chat of three turns, whose first two are worked chats
with their right answers. A candidate gives weights without the last answer; what counts is the
weighted sum of the members' margins, log p(right answer) - log p(wrong answer), and how often it is
positive. About two minutes on two cores. The last line of the output is one JSON document.

    equal      the same weight for every member
    question   fitted to the last question, as in a plain text
    history    fitted to the assistant's turns before it
    both       fitted to all turns before the answer
    worked     the posterior under preferences in the other worked chats: the prior that ships
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from common import MEASURED, machine, progress

from packfuse import Pack
from packfuse.starter.sources import DEFAULT, LINEUPS
from packfuse.text.chats.chat_template import render_chat
from packfuse.weighting.methods.base import FitLimits, Weights, equal
from packfuse.weighting.methods.exact import Exact
from packfuse.weighting.prefill import read_prompt
from packfuse.weighting.prompt_scores import PromptScores
from packfuse.weighting.worked_chats import CHATS, WorkedChat, preferences

PLAIN = Exact(chat=None)
"""The weighting of plain texts: what a chat's candidates are fitted by."""


def scores(pack: Pack, turns: Sequence[str], scored: Sequence[str]) -> PromptScores:
    """The members' scores of some of the turns of a chat, which the user begins."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    runtime = pack.runtime
    reference = runtime.default_reference
    rendered = render_chat(messages, runtime.vocabularies, reference)
    found = read_prompt(
        runtime.model(reference).engine,
        replace(rendered.prompt, texts=tuple(turn.encode() for turn in scored)),
        runtime.call,
        fit_positions=True,
        limits=FitLimits(pieces=None),
        prefixes=runtime.prefixes,
    ).scores
    if found is None:
        raise LookupError("nothing was scored")
    return found


def fitted(pack: Pack, turns: Sequence[str], scored: Sequence[str]) -> Weights:
    """Weights as in a plain text, fitted to some of the turns."""
    return PLAIN.fit(scores(pack, turns, scored).evidence(PLAIN.normalize), "logit")


def margins(pack: Pack, turns: Sequence[str], chat: WorkedChat) -> Weights:
    """By member, log p(right answer) - log p(wrong answer) after the turns, nats, `[K]`."""
    right, wrong = (
        scores(pack, [*turns, answer], [answer]).of_text(0)[0]
        for answer in (chat.right, chat.wrong)
    )
    return right - wrong


def measure(pack: Pack, chats: Sequence[WorkedChat]) -> dict[str, dict[str, float | list[float]]]:
    """By candidate: mean margin, share of right answers preferred, and mean weights."""
    step = progress("chats")
    found, own = list[dict[str, Weights]](), list[Weights]()
    for number, chat in enumerate(chats):
        before = [chats[(number + away) % len(chats)] for away in (3, 7)]
        history = [turn for one in before for turn in (one.question, one.right)]
        turns = [*history, chat.question]
        own.append(margins(pack, turns, chat))
        found.append(
            {
                "equal": equal(len(pack.names)),
                "question": fitted(pack, turns, turns[-1:]),
                "history": fitted(pack, turns, history[1::2]),
                "both": fitted(pack, turns, turns),
            }
        )
        step(number + 1, len(chats))
    for number, weights in enumerate(found):
        others = [one for at, one in enumerate(own) if at != number]
        weights["worked"] = preferences(np.array(others).T)[0]
    return {name: _summary([weights[name] for weights in found], own) for name in found[0]}


def _summary(weights: Sequence[Weights], own: Sequence[Weights]) -> dict[str, float | list[float]]:
    pooled = [float(w @ m) for w, m in zip(weights, own, strict=True)]
    return {
        "margin": float(np.mean(pooled)),
        "right": float(np.mean([margin > 0 for margin in pooled])),
        "weights": np.mean(weights, axis=0).tolist(),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--starter", default=DEFAULT, choices=LINEUPS, help="a starter pack")
    parser.add_argument("--small", action="store_true", help="eight chats: does it run?")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args()
    pack = Pack.starter(options.starter, progress=False)
    chats = CHATS[:8] if options.small else CHATS
    found = {"members": pack.names, "candidates": measure(pack, chats)}
    results = {"machine": machine(), options.starter: found}
    if options.save and not options.small:
        path = MEASURED / "chat_weights.json"
        kept = json.loads(path.read_bytes()) if path.exists() else {}
        path.write_text(json.dumps({**kept, **results}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
