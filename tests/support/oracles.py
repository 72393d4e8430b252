"""Simple twins: the papers' formulas on dicts and lists, one position at a time.

They share no code with the package. A distribution is a dict of token to probability, without
tokens of probability 0.
"""

from __future__ import annotations

import math

Distribution = dict[int, float]


def normalized(masses: Distribution) -> Distribution:
    """The same proportions with sum one, without tokens of mass 0."""
    total = sum(masses.values())
    return {token: mass / total for token, mass in masses.items() if mass > 0}


def mixture(members: list[Distribution], weights: list[float]) -> Distribution:
    """`Σ w_k p_k`, normalized; an empty distribution abstains."""
    fused: Distribution = {}
    for member, weight in zip(members, weights, strict=True):
        for token, p in normalized(member).items():
            fused[token] = fused.get(token, 0.0) + weight * p
    return normalized(fused)


def packllm(members: list[Distribution], weights: list[float]) -> Distribution:
    """`softmax(Σ w_k s_k)` with `s_k = log p_k`; the mixture if no token is left."""
    weighted = [(m, w) for m, w in zip(members, weights, strict=True) if w > 0]
    allowed = set.intersection(*(set(member) for member, _ in weighted))
    if not allowed:
        return mixture(members, weights)
    logits = {c: sum(w * math.log(m[c]) for m, w in weighted) for c in allowed}
    top = max(logits.values())
    return normalized({c: math.exp(s - top) for c, s in logits.items()})


def unite(members: list[Distribution], weights: list[float], k: int) -> Distribution:
    """Mean of the members, each normalized over the union of their k most probable tokens."""
    union: set[int] = set()
    for member, weight in zip(members, weights, strict=True):
        if weight > 0:
            union |= set(sorted(member, key=lambda c: -member[c])[:k])
    return mixture([{c: m[c] for c in union if c in m} for m in members], weights)


def sim(losses: list[float], tau: float) -> list[float]:
    """PackLLM-sim: each member's perplexity to the power -1/τ, normalized."""
    powers = [math.exp(loss) ** (-1 / tau) for loss in losses]
    return [power / sum(powers) for power in powers]


def nll(logits: list[list[float]], labels: list[int]) -> float:
    """Mean of -log softmax at the labels; `logits[t][c]`."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(s - top) for s in row)) - row[label]
    return total / len(labels)


def pooled(first: list[list[float]], second: list[list[float]], share: float) -> list[list[float]]:
    """`share · first + (1 - share) · second`, number by number."""
    return [
        [share * a + (1 - share) * b for a, b in zip(row, other, strict=True)]
        for row, other in zip(first, second, strict=True)
    ]


def opt(
    logits: list[list[list[float]]],
    labels: list[int],
    losses: list[float],
    points: int = 20,
    *,
    early_stop: bool,
) -> list[float]:
    """PackLLM-opt as published: `logits[k][t][c]`, members by rising loss, one line search each."""
    order = sorted(range(len(losses)), key=lambda k: losses[k])
    current = logits[order[0]]
    weights = {order[0]: 1.0}
    for member in order[1:]:
        best_share, best_loss = 0.0, math.inf
        for i in range(points + 1):
            loss = nll(pooled(current, logits[member], i / points), labels)
            if loss < best_loss:
                best_share, best_loss = i / points, loss
        if early_stop and best_share == 1:
            break
        current = pooled(current, logits[member], best_share)
        weights = {k: w * best_share for k, w in weights.items()}
        weights[member] = 1 - best_share
    return [weights.get(k, 0.0) for k in range(len(losses))]


def linear_nll(pieces: list[list[float]], weights: list[float]) -> float:
    """Mean of `-log Σ_k w_k p_k` over pieces of text; `pieces[k][m]` in nats."""
    total = 0.0
    for column in zip(*pieces, strict=True):
        total -= math.log(sum(w * math.exp(p) for w, p in zip(weights, column, strict=True)))
    return total / len(pieces[0])
