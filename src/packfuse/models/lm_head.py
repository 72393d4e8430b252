"""Output heads that work out only the logits that are wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from packfuse.hf_compat import children_of, has_hooks, with_child
from packfuse.models.vocab_subset import VocabSubset

_TOLERANCE = 1e-2
"""Largest difference of logits, relative to their size, that rounding accounts for."""


class SelectiveHead(nn.Module):
    """An output head at selected places of its input."""

    def __init__(self, head: nn.Module, places: Tensor) -> None:
        """`places` number the rows' positions through, `[P]`: row times width plus position."""
        super().__init__()
        self.head, self.places = head, places

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `[1, P, columns]` of hidden states `[B, n, H]`."""
        places = self.places.to(hidden.device)
        logits: Tensor = self.head(hidden.flatten(0, 1).index_select(0, places)[None])
        return logits


class _CaptureHidden(nn.Module):
    """In the place of an output head: keeps what it is given, and makes nothing.

    Attributes:
        hidden: Hidden states `[P, H]`.
    """

    hidden: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden[0]
        return hidden.new_empty(1, 0, 1)


class _BodyOutput(BaseModelOutputWithPast):
    """What a body said, and nothing else of what some bodies say."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _ReplayBody(nn.Module):
    """In the place of a body: says what the body said before."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> _BodyOutput:
        return _BodyOutput(last_hidden_state=self.hidden[None])


class LMHead:
    """One model under heads of our own.

    A twin of the model shares its whole body and has another output head. What the model's own
    `forward` does to logits afterwards (soft caps, scales) is done to these, too. The model itself
    is never altered, so others may use it at the same time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the model's output head."""
        self.model = model
        head = model.get_output_embeddings()
        children = children_of(model).items()
        self._name = next((n for n, child in children if child is head and head is not None), None)
        self._pruned: WeakKeyDictionary[VocabSubset, nn.Linear | None] = WeakKeyDictionary()

    @property
    def replaceable(self) -> bool:
        """Whether the model's `forward` asks the model object itself for its head.

        It does not where the head is deeper inside, or where somebody has put another `forward`
        into the object, which is bound to the object that it was made for.
        """
        return self._name is not None and "forward" not in vars(self.model)

    def pick(self, places: Tensor, columns: VocabSubset | None = None) -> PreTrainedModel:
        """The model with a head that gives the logits at `places` only; see `SelectiveHead`.

        Args:
            places: Where.
            columns: Of which tokens; only what `prunes`.
        """
        own: Any = self._own if columns is None else self._pruned[columns]
        return self._headed(SelectiveHead(own, places))

    @property
    def separable(self) -> bool:
        """Whether logits can be made of hidden states, by a model with a head and no body.

        They cannot where the model does something between the two, which is tried once; and they
        are not where the model has hooks, which would see halves.
        """
        return not has_hooks(self.model) and self.replaceable and self._separable

    @cached_property
    def _separable(self) -> bool:
        if self.model.base_model_prefix not in children_of(self.model):
            return False
        probe, places = self.probe, torch.arange(2)
        with torch.no_grad():
            try:
                whole = self.pick(places)(probe).logits[0].float()
                body, kept = self.body(places)
                body(probe)
                parts = self.after(kept()).float()
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                return False
        return whole.shape == parts.shape and bool(whole.any()) and _close(whole, parts)

    def body(self, places: Tensor) -> tuple[PreTrainedModel, Callable[[], Tensor]]:
        """The model without its head, and what gives the hidden states `[P, H]` when it has run."""
        keeps = _CaptureHidden()
        return self._headed(SelectiveHead(keeps, places)), lambda: keeps.hidden

    def after(self, hidden: Tensor) -> Tensor:
        """The logits `[P, columns]` of hidden states `[P, H]`; only if `separable`."""
        twin = with_child(self.model, self.model.base_model_prefix, _ReplayBody(hidden))
        blank = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = twin(input_ids=blank).logits[0]
        return logits

    def prunes(self, columns: VocabSubset) -> bool:
        """Whether there is a head for these columns alone; made when it is first asked for.

        There is none where the head is not a plain matrix (quantized, hooked, on another device
        until it is used), or where the model does more to its logits than work on each by itself.
        """
        if not self.replaceable:
            return False
        if columns not in self._pruned:
            self._pruned[columns] = self._prune(columns)
        return self._pruned[columns] is not None

    @property
    def _own(self) -> nn.Module | None:
        return children_of(self.model)[self._name] if self._name else None

    @property
    def probe(self) -> Tensor:
        """Two tokens `[1, 2]`, none of the first ones, which may be padding and mean nothing."""
        embedding: Any = self.model.get_input_embeddings()
        weight: Tensor = embedding.weight
        return torch.tensor([[len(weight) // 2, len(weight) // 3]], device=weight.device)

    def _headed(self, head: SelectiveHead) -> PreTrainedModel:
        return with_child(self.model, str(self._name), head)

    @torch.no_grad()
    def _prune(self, columns: VocabSubset) -> nn.Linear | None:
        own: Any = self._own
        hooked = has_hooks(own) or "forward" in vars(own)
        if type(own) is not nn.Linear or hooked or not own.weight.is_floating_point():
            return None
        ids = columns.ids.to(own.weight.device)
        pruned = nn.utils.skip_init(nn.Linear, own.in_features, len(ids), bias=own.bias is not None)
        for name, weight in own.named_parameters():
            setattr(pruned, name, nn.Parameter(weight[ids], requires_grad=False))
        probe, places = self.probe, torch.arange(2)
        whole, part = (
            self._headed(SelectiveHead(h, places))(probe).logits[0].float() for h in (own, pruned)
        )
        if part.shape[1] != len(ids):
            return None
        return pruned if _close(whole[:, ids], part) else None


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
