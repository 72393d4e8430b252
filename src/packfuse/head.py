"""Output heads that work out only the logits that are wanted."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class Head(nn.Module):
    """A model's output head at selected places of its input."""

    def __init__(self, head: nn.Module, places: Tensor) -> None:
        """`places` number the rows' positions through, `[P]`: row times width plus position."""
        super().__init__()
        self.head, self.places = head, places

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `[1, P, columns]` of hidden states `[B, n, H]`."""
        places = self.places.to(hidden.device)
        logits: Tensor = self.head(hidden.flatten(0, 1).index_select(0, places)[None])
        return logits


class Heads:
    """One model under heads of our own.

    A twin of the model shares its whole body and has another output head. What the model's own
    `forward` does to logits afterwards (soft caps, scales) is done to these, too. The model itself
    is never altered, so others may use it at the same time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the model's output head."""
        self.model = model
        head = model.get_output_embeddings()
        children = model._modules.items()
        self._name = next((n for n, child in children if child is head and head is not None), None)

    @property
    def replaceable(self) -> bool:
        """Whether the model's `forward` asks the model object itself for its head.

        It does not where the head is deeper inside, or where somebody has put another `forward`
        into the object, which is bound to the object that it was made for.
        """
        return self._name is not None and "forward" not in vars(self.model)

    def pick(self, places: Tensor) -> PreTrainedModel:
        """The model with a head that gives the logits at `places` only; see `Head`."""
        name: Any = self._name
        twin = copy.copy(self.model)
        own: Any = self.model._modules[name]
        twin._modules = {**self.model._modules, name: Head(own, places)}
        return twin
