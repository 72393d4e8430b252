"""The integrations against the usual front ends for local models, on one member.

The usual front ends are not installed with packfuse: they may need older packages.

    pip install --no-deps langchain-huggingface llama-index-llms-huggingface
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from packfuse import Pack
from packfuse.models.hf_member import HFMember

from .bench import Bench
from .clock import exactly, interleave, seconds
from .rows import Part, Row, compare

Ask = Callable[[str], Any]
_CONTEXT = 32


def measure(bench: Bench) -> Part:
    """The time of whole calls with equally long answers."""
    member = bench.members[bench.pack.default_reference]
    pack = Pack([member], progress=False)
    rows = [
        _row(bench, "langchain", "HuggingFacePipeline", partial(_langchain, member, pack)),
        _row(bench, "llama_index", "HuggingFaceLLM", partial(_llama_index, member, pack)),
    ]
    about = (
        f"{member.name} alone, as a pack of one behind the integration and as the other front end "
        f"loads it. Greedy, {bench.tokens} tokens after {_CONTEXT}, {bench.rounds} times in turn; "
        "time per token of the whole call."
    )
    return Part(title="Against the usual front ends", about=about, rows=rows)


def _row(bench: Bench, package: str, incumbent: str, make: Callable[[int], tuple[Ask, Ask]]) -> Row:
    try:
        ours, theirs = make(bench.tokens)
    except ImportError as error:
        return Row(what=package, against=incumbent, skipped=f"not installed: {error.name}")
    for ask in (ours, theirs):
        ask(bench.prose(_CONTEXT))
    prompts = [bench.prose(_CONTEXT) for _ in range(bench.rounds)]

    def each(ask: Ask, number: int) -> float:
        return 1000 * seconds(lambda: ask(prompts[number])) / bench.tokens

    times = interleave({"ours": partial(each, ours), "theirs": partial(each, theirs)}, bench.rounds)
    return compare(package, f"`{incumbent}`", times["ours"], times["theirs"], unit="ms")


def _langchain(member: HFMember, pack: Pack, tokens: int) -> tuple[Ask, Ask]:
    from langchain_huggingface import HuggingFacePipeline
    from langchain_packfuse import PackFuseLLM
    from transformers import pipeline

    settings = exactly(tokens)
    task = pipeline("text-generation", model=member.model, tokenizer=member.tokenizer, **settings)
    theirs = HuggingFacePipeline(pipeline=task)
    return PackFuseLLM(pack=pack, model_kwargs=settings).invoke, theirs.invoke


def _llama_index(member: HFMember, pack: Pack, tokens: int) -> tuple[Ask, Ask]:
    from llama_index.llms.huggingface import HuggingFaceLLM
    from llama_index.llms.packfuse import PackFuse

    settings = exactly(tokens)
    ours = PackFuse(pack=pack, max_new_tokens=tokens, generate_kwargs=settings)
    theirs = HuggingFaceLLM(
        model=member.model,
        tokenizer=member.tokenizer,
        max_new_tokens=settings.pop("max_new_tokens"),
        generate_kwargs=settings,
    )
    return ours.complete, theirs.complete
