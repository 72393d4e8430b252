"""PackLLM and UniTE by their formulas: models without caches, one position at a time.

Text is encoded by the Hugging Face tokenizers; only the bytes of tokens come from `Vocabulary`. The
papers compare the strings of one family of tokenizers; this module compares words, as the package
does:

- A word is the bytes of a text token or of a mark (`<think>`), or the end of a text. Other control
  tokens are words of the reference alone; the papers have none among the most probable tokens of
  their models. With their probability, another model abstains: the reference's distribution stands
  for it.
- Of several tokens with the same bytes, only the one that the tokenizer produces is a word.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packfuse.text.vocabulary import Vocabulary

Word = bytes | int
END: Word = b""


@dataclass
class Model:
    """A model and its tokenizer."""

    model: PreTrainedModel
    vocabulary: Vocabulary

    @property
    def tokenizer(self) -> Any:
        return self.vocabulary.tokenizer

    @cached_property
    def word_of(self) -> dict[int, Word]:
        text = {ids[0]: word for word, ids in self.vocabulary.ids_of.items()}
        return text | self.vocabulary.marks | dict.fromkeys(self.vocabulary.end_ids, END)

    @cached_property
    def others(self) -> list[int]:
        """Control tokens that are not words."""
        size = len(self.tokenizer)
        return [i for i in self.vocabulary.control_ids if i < size and i not in self.word_of]

    def read(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        return ids

    @torch.no_grad()
    def logits(self, ids: Sequence[int], last: int = 0) -> Tensor:
        """Next-token logits after every token, or after the `last` ones, `[n, V]`."""
        out = self.model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=last)
        return out.logits[0, :, : len(self.tokenizer)].double()

    def find(self, word: Word) -> int:
        """The token of a word, or the first token of its encoding."""
        if isinstance(word, int):
            return word
        if word in self.vocabulary.marks.values():
            return next(i for i, name in self.vocabulary.marks.items() if name == word)
        if word == END:
            return self.vocabulary.end_ids[0]
        if word in self.vocabulary.ids_of:
            return self.vocabulary.ids_of[word][0]
        first = self.vocabulary.first_token(word)
        assert first is not None
        return first


@dataclass
class Written:
    """A greedy generation: ids, and at each step the fused distribution over reference ids."""

    ids: list[int] = field(default_factory=list)
    distributions: list[dict[int, float]] = field(default_factory=list)
    foreign: int = 0
    """How often the winner was a word that is not a token of the reference."""


def softmax(scores: dict[Word, float]) -> dict[Word, float]:
    top = max(scores.values())
    masses = {word: math.exp(score - top) for word, score in scores.items()}
    return {word: mass / sum(masses.values()) for word, mass in masses.items()}


def unite(models: Sequence[Model], reference: int, prompt: str, k: int, steps: int) -> Written:
    """UniTE: every model encodes the whole text at every step."""
    primary, written = models[reference], Written()
    prompt_ids = primary.read(prompt)
    for _ in range(steps):
        ids = prompt_ids + written.ids
        text = primary.tokenizer.decode(ids, skip_special_tokens=True)
        assert "\N{REPLACEMENT CHARACTER}" not in text, (
            "the text ends inside a character: choose another seed"
        )
        read = [ids if s is primary else s.read(text) for s in models]
        logits = [s.logits(i, 1)[-1] for s, i in zip(models, read, strict=True)]
        fused = union_average(models, logits, k, reference)
        winner = max(fused, key=lambda word: fused[word])
        written.foreign += winner != END and winner not in primary.word_of.values()
        written.distributions.append(by_reference(primary, fused))
        written.ids.append(primary.find(winner))
        if winner == END:
            break
    return written


def union_average(
    models: Sequence[Model], logits: Sequence[Tensor], k: int, reference: int
) -> dict[Word, float]:
    """The equations in order: top-k, union, look-up, softmax over the union, mean."""
    union: dict[Word, None] = {}
    own = dict.fromkeys(models[reference].others)
    for model, row in zip(models, logits, strict=True):
        scores = row.tolist()
        words = model.word_of | ({i: i for i in own} if model is models[reference] else {})
        best = heapq.nlargest(k, words, key=lambda i: scores[i])
        union.update(dict.fromkeys(words[i] for i in best))
    probs = [
        softmax(
            {
                word: -math.inf
                if isinstance(word, int) and model is not models[reference]
                else float(row[model.find(word)])
                for word in union
            }
        )
        for model, row in zip(models, logits, strict=True)
    ]
    shares = [
        1.0 if number == reference else 1 - float(row.softmax(0)[model.others].sum())
        for number, (model, row) in enumerate(zip(models, logits, strict=True))
    ]
    shares[reference] += sum(1 - share for share in shares)
    return {
        word: sum(share * p[word] for share, p in zip(shares, probs, strict=True)) / len(probs)
        for word in union
    }


def by_reference(primary: Model, fused: dict[Word, float]) -> dict[int, float]:
    """The token of each word; of words with the same first token, the most probable counts."""
    best: dict[int, float] = {}
    for word, p in fused.items():
        token = primary.find(word)
        best[token] = max(p, best.get(token, 0.0))
    return {token: p / sum(best.values()) for token, p in best.items()}


@dataclass
class PackLLM:
    """PackLLM over the reference's ids: `maps[k][i]` is the id of model k for the reference's i."""

    models: Sequence[Model]
    reference: int
    maps: Sequence[Sequence[int]]

    @cached_property
    def not_words(self) -> list[int]:
        own = self.models[self.reference]
        return [i for i in range(len(own.tokenizer)) if i not in own.word_of]

    def logits(self, ids: Sequence[int], last: int = 0) -> list[Tensor]:
        """Per model, `[n, V]` over the reference's ids; mapped models have words only."""
        size = len(self.models[self.reference].tokenizer)
        rows = []
        for k, (model, table) in enumerate(zip(self.models, self.maps, strict=True)):
            if k == self.reference:
                rows.append(model.logits(ids, last))
                continue
            carried = model.logits([table[i] for i in ids], last)[:, list(table[:size])]
            carried[:, self.not_words] = -math.inf
            rows.append(carried)
        return rows

    def losses(self, ids: Sequence[int], logits: Sequence[Tensor]) -> list[float]:
        """Mean cross-entropy on the prompt: log-perplexity."""
        return [cross_entropy(rows[:-1], ids[1:]) for rows in logits]

    def sim(self, prompt: str, tau: float) -> list[float]:
        """softmax(-log PPL / τ)."""
        ids = self.models[self.reference].read(prompt)
        losses = torch.tensor(self.losses(ids, self.logits(ids)), dtype=torch.float64)
        weights: list[float] = (-losses / tau).softmax(0).tolist()
        return weights

    def opt(self, prompt: str, *, early_stop: bool) -> list[float]:
        """The greedy search: members by rising loss, λ in steps of 0.05."""
        ids = self.models[self.reference].read(prompt)
        logits = self.logits(ids)
        losses = self.losses(ids, logits)
        order = sorted(range(len(losses)), key=lambda k: losses[k])
        current, weights = logits[order[0]], {order[0]: 1.0}
        for member in order[1:]:
            trials = {
                i / 20: cross_entropy(mix(current, logits[member], i / 20)[:-1], ids[1:])
                for i in range(21)
            }
            best = min(trials, key=lambda share: trials[share])
            if early_stop and best == 1:
                break
            current = mix(current, logits[member], best)
            weights = {k: w * best for k, w in weights.items()} | {member: 1 - best}
        return [weights.get(k, 0.0) for k in range(len(losses))]

    def pooled(self, ids: Sequence[int], weights: Sequence[float]) -> Tensor:
        """softmax(Σ λ_k s_k) after the last id, `[V]`."""
        total = torch.zeros(len(self.models[self.reference].tokenizer), dtype=torch.float64)
        for rows, weight in zip(self.logits(ids, 1), weights, strict=True):
            if weight > 0:
                total += weight * rows[-1]
        return total.softmax(0)

    def write(self, prompt: str, weights: Sequence[float], steps: int) -> list[int]:
        """Greedy generation with the weights of the prompt."""
        own = self.models[self.reference]
        ids = own.read(prompt)
        start = len(ids)
        for _ in range(steps):
            ids.append(int(self.pooled(ids, weights).argmax()))
            if ids[-1] in own.vocabulary.end_ids:
                break
        return ids[start:]


def mix(one: Tensor, other: Tensor, share: float) -> Tensor:
    """`share · one + (1 - share) · other` where both are finite."""
    either = torch.isneginf(one) | torch.isneginf(other)
    mixed = share * one.masked_fill(either, 0) + (1 - share) * other.masked_fill(either, 0)
    return mixed.masked_fill(either, -math.inf)


def cross_entropy(logits: Tensor, labels: Sequence[int]) -> float:
    """Mean of -log softmax at the labels."""
    at = torch.tensor(list(labels))[:, None]
    return float((logits.logsumexp(-1) - logits.gather(1, at)[:, 0]).mean())
