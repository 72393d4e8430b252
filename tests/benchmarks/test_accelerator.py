"""The measurement that waits for a GPU runs: here on a processor, with small members."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parts.accelerator import measure
from benchmarks.parts.bench import Bench
from packfuse.models.compiled import Compiled

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 48,
}  # fmt: skip


@pytest.mark.starter
# The compiler itself uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_pair_of_any_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.dtype] = []
    begin = Compiled._chosen

    def note(one: Compiled, *arguments: object) -> torch.Tensor:
        read.append(one.model.dtype)
        return begin(one, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Compiled, "_chosen", note)
    bench = Bench(rounds=1, tokens=4, contexts=(16,))
    with torch.compiler.set_stance("force_eager"):
        (row,) = measure(bench, "cpu", (SMALL, SMALL)).rows
    assert row.ratios
    assert row.skipped is None
    assert set(read) == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_without_a_gpu_the_row_stays_open() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, on which members of 7B would be measured")
    (row,) = measure(Bench()).rows
    assert (row.skipped, row.target and row.target.value) == ("no GPU here", 1.05)
