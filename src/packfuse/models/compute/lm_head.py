"""LM heads that compute only selected logits: at some positions, of some tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from packfuse.hf_compat.models import children_of, has_hooks, with_child
from packfuse.models.devices import execution_device
from packfuse.models.vocab_subset import VocabSubset

_TOLERANCE = 1e-2
"""Largest difference of logits, relative to the largest logit, that rounding accounts for."""


class SelectiveHead(nn.Module):
    """An LM head applied to selected positions of its input."""

    def __init__(self, head: nn.Module, positions: Tensor) -> None:
        """`positions` `[P]` are flat indices into the batch: row times width plus column."""
        super().__init__()
        self.head, self.positions = head, positions

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `[1, P, columns]` of hidden states `[B, n, H]`."""
        positions = self.positions.to(hidden.device)
        logits: Tensor = self.head(hidden.flatten(0, 1).index_select(0, positions)[None])
        return logits


class _CaptureHidden(nn.Module):
    """Replaces an LM head: stores its input and returns empty logits.

    Attributes:
        hidden: Hidden states `[P, H]`.
    """

    hidden: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden[0]
        return hidden.new_empty(1, 0, 1)


class _BodyOutput(BaseModelOutputWithPast):
    """Output of `_ReplayBody`; any attribute that only some bodies return is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _ReplayBody(nn.Module):
    """Replaces a model's body: returns hidden states that the body computed before."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> _BodyOutput:
        return _BodyOutput(last_hidden_state=self.hidden[None])


class LMHead:
    """A model with its LM head or its body replaced.

    The model itself is never altered. `with_child` makes a shallow twin: a second module object
    with its own dict of children, in which one child is replaced; all other children, parameters,
    buffers and hooks are the same objects as the model's. The invariants:

    - Replacing a child of the twin leaves the model unchanged, so other threads may run the model
      at the same time. Changing a shared object (weights, hooks of a layer) changes both.
    - The twin's `forward` is that of the model's class, so what it does to logits (soft caps,
      scales) is done to the selected logits, too. This needs a `forward` that reads the head from
      `self`, which `replaceable` checks.
    - Twins are made for each call and not kept, except for compiled calls.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the model's LM head among its direct children."""
        self.model = model
        head = model.get_output_embeddings()
        children = children_of(model).items()
        self._name = next((n for n, child in children if child is head and head is not None), None)
        self._pruned: WeakKeyDictionary[VocabSubset, nn.Linear | None] = WeakKeyDictionary()

    @property
    def replaceable(self) -> bool:
        """Whether a twin with another LM head uses that head.

        It does not if the head is a module deeper inside, or if `forward` was set on the model
        object: such a function is bound to the object for which it was made.
        """
        return self._name is not None and "forward" not in vars(self.model)

    def select(self, positions: Tensor, subset: VocabSubset | None = None) -> PreTrainedModel:
        """A twin whose logits are `[1, P, columns]`, at selected positions only.

        Args:
            positions: Flat positions `[P]`; see `SelectiveHead`.
            subset: Tokens of which logits are computed, for which `can_prune` is True; None for
                all.
        """
        head: Any = self._head if subset is None else self._pruned[subset]
        return self._with_head(SelectiveHead(head, positions))

    @property
    def separable(self) -> bool:
        """Whether body and LM head can run one after the other, with the same logits.

        They cannot if the model does something between the two, which a probe finds out once. They
        do not if the model has hooks, which would get incomplete outputs.
        """
        return not has_hooks(self.model) and self.replaceable and self._separable

    @cached_property
    def _separable(self) -> bool:
        if self.model.base_model_prefix not in children_of(self.model):
            return False
        probe, positions = self.probe_ids, torch.arange(2)
        with torch.no_grad():
            try:
                whole = self.select(positions)(probe).logits[0].float()
                body, hidden = self.body(positions)
                body(probe)
                parts = self.logits(hidden()).float()
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                return False
        return whole.shape == parts.shape and bool(whole.any()) and _close(whole, parts)

    def body(self, positions: Tensor) -> tuple[PreTrainedModel, Callable[[], Tensor]]:
        """A twin without LM head, and a function for its hidden states.

        The function returns the hidden states `[P, H]` at the positions after the twin has run.
        """
        capture = _CaptureHidden()
        return self._with_head(SelectiveHead(capture, positions)), lambda: capture.hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits `[P, columns]` of hidden states `[P, H]`; only if `separable`."""
        twin = with_child(self.model, self.model.base_model_prefix, _ReplayBody(hidden))
        blank = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = twin(input_ids=blank).logits[0]
        return logits

    def can_prune(self, subset: VocabSubset) -> bool:
        """Whether there is a pruned head for this subset; it is made on the first call.

        There is none if the head is not a plain linear layer (quantized, hooked, offloaded), or if
        the model computes logits of which one depends on another.
        """
        if not self.replaceable:
            return False
        if subset not in self._pruned:
            self._pruned[subset] = self._prune(subset)
        return self._pruned[subset] is not None

    def forget(self) -> None:
        """Drop pruned heads and the result of the probe, after the model has changed."""
        self._pruned.clear()
        vars(self).pop("_separable", None)

    @property
    def _head(self) -> nn.Module | None:
        return children_of(self.model)[self._name] if self._name else None

    @property
    def probe_ids(self) -> Tensor:
        """Two token ids `[1, 2]`, none of the first ones, which may be padding."""
        embedding: Any = self.model.get_input_embeddings()
        count, device = len(embedding.weight), execution_device(embedding)
        return torch.tensor([[count // 2, count // 3]], device=device)

    def _with_head(self, head: SelectiveHead) -> PreTrainedModel:
        return with_child(self.model, str(self._name), head)

    @torch.no_grad()
    def _prune(self, subset: VocabSubset) -> nn.Linear | None:
        head: Any = self._head
        hooked = has_hooks(head) or "forward" in vars(head)
        if type(head) is not nn.Linear or hooked or not head.weight.is_floating_point():
            return None
        ids = subset.ids.to(head.weight.device)
        bias = head.bias is not None
        pruned = nn.utils.skip_init(nn.Linear, head.in_features, len(ids), bias=bias)
        for name, weight in head.named_parameters():
            setattr(pruned, name, nn.Parameter(weight[ids], requires_grad=False))
        probe, positions = self.probe_ids, torch.arange(2)
        whole, part = (
            self._with_head(SelectiveHead(h, positions))(probe).logits[0].float()
            for h in (head, pruned)
        )
        if part.shape[1] != len(ids):
            return None
        return pruned if _close(whole[:, ids], part) else None


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
