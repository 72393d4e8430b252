"""How much memory the KV cache of a member takes, computed without its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from packfuse.errors import LoadError
from packfuse.hf_compat.models import STATES, cache_argument, is_stateful
from packfuse.models.kv.store import new_cache
from packfuse.models.loading.architecture import auto_class


class CacheSize(BaseModel):
    """Bytes of the KV cache of one member.

    Attributes:
        per_token: Keys and values of one token. All tokens are kept, those of layers with a sliding
            window too, so that any suffix can be dropped.
        per_row: Convolutional and recurrent states of one sequence, whatever its length.
    """

    model_config = ConfigDict(frozen=True)

    per_token: int
    per_row: int

    def total(self, tokens: int, rows: int = 1) -> int:
        """Bytes of `rows` sequences of `tokens` tokens each.

        Example:
            >>> CacheSize(per_token=1024, per_row=100).total(tokens=2048, rows=2)
            4194504
        """
        return rows * (tokens * self.per_token + self.per_row)


def cache_size(config: PreTrainedConfig, dtype: str) -> CacheSize:
    """Run a model of this configuration without weights (on torch's meta device), and measure.

    Args:
        config: The model's configuration.
        dtype: Type of its weights, as torch names it; "auto" for that of the configuration.

    Raises:
        LoadError: if it is no causal language model.
        UnsupportedError: if it has a cache that a pack cannot use.
    """
    auto = auto_class(config)
    if auto is None:
        raise LoadError(f"a {config.model_type} is not a causal language model")
    config = copy.deepcopy(config)  # what is loaded later is left alone
    text = config.get_text_config()
    kind = text.dtype if dtype == "auto" else getattr(torch, dtype)
    # A model with padding looks at the values of its input, and here there are none.
    config.pad_token_id = text.pad_token_id = None
    with torch.device("meta"):
        model = auto.from_config(config, dtype=kind or torch.float32)
    short, long = (_measured(model, tokens) for tokens in (2, 4))
    per_token = (long - short) // 2
    return CacheSize(per_token=per_token, per_row=short - 2 * per_token)


def _measured(model: PreTrainedModel, tokens: int) -> int:
    cache = new_cache(model.config)
    name = cache_argument(model)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        model(ids, **({name: cache} if name else {}), use_cache=True)
    return sum(tensor.nbytes for tensor in _tensors(cache))


def _tensors(cache: DynamicCache) -> Iterator[Tensor]:
    for layer in cache.layers:
        found = [getattr(layer, name, None) for name in ("keys", "values")]
        states = [getattr(layer, name) for name in STATES] if is_stateful(layer) else []
        found += [tensor for group in states for tensor in group.values()]
        yield from (tensor for tensor in found if isinstance(tensor, Tensor))
