"""The size of a KV cache that is computed without weights is that of the cache itself."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, PreTrainedModel, T5Config

from packfuse.errors import LoadError, UnsupportedError
from packfuse.hf_compat.models import STATES, cache_argument
from packfuse.models.cache_size import cache_size
from packfuse.models.kv.store import new_cache
from tests.support import pico


def held(model: PreTrainedModel, tokens: int) -> int:
    """Bytes that the model's cache holds after so many tokens, read with real weights."""
    cache = new_cache(model.config)
    ids = torch.arange(tokens).unsqueeze(0)
    with torch.no_grad():
        model(ids, **{str(cache_argument(model)): cache}, use_cache=True)
    found = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    for layer in cache.layers:
        for name in STATES:
            found += getattr(layer, name, {}).values()
    return sum(one.nbytes for one in found if isinstance(one, torch.Tensor))


@pytest.mark.parametrize("arch", pico.ARCHITECTURES)
def test_the_size_is_that_of_a_real_cache(arch: str) -> None:
    model, _ = pico.tiny_pair(pico.PACKAGED[0], arch, 0)
    size = cache_size(model.config, "float32")
    assert size.per_token > 0
    for tokens in (3, 3 * pico.WINDOW):
        assert size.total(tokens) == held(model, tokens)


def test_the_dtype_counts() -> None:
    config = pico.tiny_pair(pico.PACKAGED[0], "llama", 0)[0].config
    assert cache_size(config, "float32").per_token == 2 * cache_size(config, "bfloat16").per_token
    assert cache_size(config, "auto") == cache_size(config, "float32")
    assert config.dtype == torch.float32


def test_models_that_cannot_join_have_no_size() -> None:
    with pytest.raises(LoadError, match="t5 is not a causal"):
        cache_size(T5Config(), "float32")
    with pytest.raises(UnsupportedError):
        cache_size(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64), "float32")
