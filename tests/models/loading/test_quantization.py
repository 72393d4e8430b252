"""Quantization by plain settings: what quantizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AwqConfig, BitsAndBytesConfig, GPTQConfig, QuantoConfig

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError, PackError
from packfuse.models.loading.quantization import make_quantization
from tests.support import pico


@pytest.mark.parametrize(
    ("settings", "four", "eight"),
    [
        ({"load_in_4bit": True}, True, False),
        ({"load_in_8bit": True}, False, True),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, True, False),
        ({"quant_method": "bitsandbytes_4bit"}, True, False),
        ({"quant_method": "bitsandbytes_8bit"}, False, True),
        ({"quant_method": "bitsandbytes_4bit", "bnb_4bit_quant_type": "nf4"}, True, False),
    ],
)
def test_plain_settings_quantize(settings: dict[str, Any], four: bool, eight: bool) -> None:
    made = make_quantization(settings)
    assert isinstance(made, BitsAndBytesConfig)
    assert (made.load_in_4bit, made.load_in_8bit) == (four, eight)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "no `quant_method`"),
        ({"bits": 4}, "no `quant_method`"),
        ({"load_in_4bit": False}, "no `quant_method`"),
        ({"quant_method": "bitsandbytes"}, "quantizes nothing"),
        ({"quant_method": "bitsandbytes_4bit", "load_in_4bit": False}, "quantizes nothing"),
        ({"quant_method": "none_such"}, "none_such"),
        ({"load_in_4bit": "yes"}, "boolean"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "only one"),
        ({"load_in_4bit": True, "bnb_4bit_computed_type": "x"}, "has no bnb_4bit_computed_type"),
    ],
)
def test_what_quantizes_nothing_is_refused_before_anything_is_loaded(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    for entry in (
        {"members": [{"model": "none/such", "quantization": settings}]},
        {"members": ["none/such"], "quantization": settings},
    ):
        file = tmp_path / "pack.yaml"
        file.write_text(yaml.safe_dump(entry))
        with pytest.raises(ConfigError, match=reason):
            Pack.from_config(file, progress=False)


@pytest.mark.parametrize(
    "quantization",
    [
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]),
        QuantoConfig(weights="int4"),
        GPTQConfig(bits=4),
        AwqConfig(bits=4),
    ],
)
@pytest.mark.parametrize("of_member", [False, True])
def test_an_object_is_written_and_read_again(
    quantization: Any, of_member: bool, tmp_path: Path
) -> None:
    given = {"quantization_config": quantization}
    member: dict[str, Any] = {"model": "one", **(given if of_member else {})}
    config = PackConfig.check({"members": [member], **({} if of_member else given)})
    config.write(tmp_path / "pack.yaml")
    read = PackConfig.read(tmp_path / "pack.yaml")
    assert read == config
    settings = (read.members[0] if of_member else read).quantization
    made: Any = make_quantization(settings)
    assert type(made) is type(quantization)
    assert made.to_dict() == quantization.to_dict()


def test_a_setting_of_the_caller_replaces_that_of_the_file(tmp_path: Path) -> None:
    folder = pico.save_tiny(tmp_path / "one", "mistral")
    file = tmp_path / "pack.yaml"
    file.write_text(yaml.safe_dump({"members": [str(folder)]}))
    with pytest.raises(PackError, match="none_such"):
        Pack.from_config(file, progress=False, quantization_config={"quant_method": "none_such"})
