"""What transformers asks of a model and a pack has from its reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from packfuse.errors import UnsupportedError
from packfuse.fusion.engine import Engine
from packfuse.models.member import Member


class OfReference:
    """The device, the type and the embeddings of a pack's reference."""

    engine: Engine

    @property
    def reference(self) -> Member:
        """The member whose tokens are generated."""
        return self.engine.members[self.engine.reference_index]

    @property
    def device(self) -> torch.device:
        """The reference's device, for ids and logits."""
        return self.reference.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the reference's parameters; fused log-probabilities are float32."""
        model = self.reference.model
        return torch.float32 if model is None else next(model.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """The reference's input embeddings.

        Raises:
            UnsupportedError: if its model is in another process, or under llama.cpp.
        """
        found: nn.Module = self._model.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """The reference's LM head; see `get_input_embeddings`."""
        found: nn.Module = self._model.get_output_embeddings()
        return found

    @property
    def _model(self) -> Any:
        model = self.reference.model
        if model is None:
            raise UnsupportedError(
                f"the layers of {self.reference.name!r} are not in transformers",
                hint="make a member that transformers runs the reference",
            )
        return model
