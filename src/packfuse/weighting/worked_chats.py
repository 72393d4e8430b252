"""Worked chats, on which members are compared as assistants.

How well a member reads a question does not tell how well it answers: a base model may read it best
of all, and then go on with the next question. Nor does the perplexity of good answers tell it: a
member may expect their style, and any content. What tells is how much more probable a right answer
is to a member than a wrong one of the same kind, under the member's own chat template.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from packfuse.weighting.methods.base import Weights, equal

_POINTS = 12
"""Binary logarithm of the number of weights over which the posterior is averaged."""

_MOST = 100.0
"""Nats: larger margins count as this much."""


class WorkedChat(NamedTuple):
    """A question, a right answer, and a wrong one."""

    question: str
    right: str
    wrong: str


def _from_text(text: str, question: str, right: str, wrong: str) -> WorkedChat:
    ask = f"Answer from the text only.\n\nText: {text}\n\nQuestion: {question}"
    return WorkedChat(ask, right, wrong)


def _code(task: str, head: str, right: str, wrong: str) -> WorkedChat:
    block = "```python\ndef {}:\n    return {}\n```"
    ask = f"Write a Python function that {task}."
    return WorkedChat(ask, block.format(head, right), block.format(head, wrong))


CHATS: tuple[WorkedChat, ...] = (
    WorkedChat("Hi there!", "Hello! How can I help you today?", "Hi there!\n\nUser: Hi there!"),
    WorkedChat("Thanks a lot!", "You're welcome!", "Thanks a lot!"),
    WorkedChat(
        "Which planet is the largest one?",
        "Jupiter is the largest planet.",
        "Mars is the largest planet.",
    ),
    WorkedChat(
        "How many sides does a hexagon have?",
        "A hexagon has six sides.",
        "A hexagon has eight sides.",
    ),
    WorkedChat(
        "Who painted the Mona Lisa?",
        "Leonardo da Vinci painted it.",
        "Vincent van Gogh painted it.",
    ),
    WorkedChat(
        "Wie heißt die Hauptstadt von Italien?",
        "Die Hauptstadt von Italien ist Rom.",
        "Die Hauptstadt von Italien ist Madrid.",
    ),
    WorkedChat("What is 8 times 7?", "8 times 7 is 56.", "8 times 7 is 54."),
    WorkedChat("Write the word house in capital letters, and nothing else.", "HOUSE", "House"),
    WorkedChat(
        "List two fruits, one a line, each after a dash.",
        "- apple\n- pear",
        "Apple and pear are two fruits.",
    ),
    WorkedChat("Write three numbers with commas between them.", "1, 2, 3", "One\nTwo\nThree"),
    _from_text(
        "The museum opens at ten and closes at six.",
        "When does the museum close?",
        "The museum closes at six.",
        "The museum closes at ten.",
    ),
    _from_text(
        "Ana has a red bicycle. Ben has a blue one.",
        "What color is Ben's bicycle?",
        "Ben's bicycle is blue.",
        "Ben's bicycle is red.",
    ),
    _code("doubles a number", "double(x)", "x * 2", "x + 2"),
    _code("returns the last item of a list", "last(items)", "items[-1]", "items[1]"),
    WorkedChat(
        'Write the city as JSON with the key "city": "We moved to Oslo in May."',
        '{"city": "Oslo"}',
        '{"city": "May"}',
    ),
)


class Skill(NamedTuple):
    """The members as assistants.

    Attributes:
        weights: The weights `[K]`.
        deviations: Their uncertainty `[K]`: standard deviations of the posterior.
        usual_losses: The members' losses on the questions `[K]`, nats per byte: by these, a member
            is compared with itself, where it reads a question of another kind or language.
    """

    weights: Weights
    deviations: Weights
    usual_losses: Weights


def preferences(margins: NDArray[np.float64]) -> tuple[Weights, Weights]:
    """Weights under which a pack prefers right answers to wrong ones.

    A pack with weights w prefers the right answer of chat n by about `m_n = Σ_k w_k m_kn`. It is
    taken to prefer it with the probability `1 / (1 + exp(-m_n))`, as in the model of Bradley and
    Terry (1952). The result is the posterior mean of w under a uniform prior: few chats, or members
    of one skill, leave the weights near equal.

    Args:
        margins: `log p_k(right) - log p_k(wrong)`, nats, `[K, N]`.

    Returns:
        The weights `[K]`, and the standard deviation of each.

    Example:
        >>> preferences(np.array([[4.0, 5.0, 3.0], [1.0, -2.0, 2.0]]))[0].round(2)
        array([0.63, 0.37])
    """
    members = len(margins)
    margins = np.nan_to_num(margins).clip(-_MOST, _MOST)
    if members == 1 or not margins.size:
        return equal(members), np.zeros(members)
    points = qmc.Sobol(members, seed=0).random_base2(_POINTS)
    drawn = -np.log(points.clip(1e-12))
    drawn /= drawn.sum(1, keepdims=True)
    log_likelihood = -np.logaddexp(0, -drawn @ margins).sum(1)
    share = np.exp(log_likelihood - log_likelihood.max())
    share /= share.sum()
    weights: Weights = share @ drawn
    return weights, np.sqrt(share @ (drawn - weights) ** 2)
