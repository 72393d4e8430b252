"""How long a prompt is for a pack: one measure that is safe for all members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packfuse.fusion.room import lengths
from packfuse.generation.runtime import Runtime
from packfuse.text.chats.chat_template import render_chat
from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.prompt import MemberPrompt, PackPrompt, from_text
from packfuse.text.vocabulary import Vocabulary


def context_window(runtime: Runtime) -> int:
    """The smallest context window of the members, in tokens."""
    return min(member.context_window for member in runtime.members)


def prompt_length(
    runtime: Runtime,
    prompt: Any,
    template: Mapping[str, Any],
    *,
    continue_final_message: bool = False,
) -> int:
    """The length of a prompt in tokens of the pack; see `Pack.count_tokens`."""
    counts = member_lengths(
        runtime, prompt, template, continue_final_message=continue_final_message
    )
    return max(_scaled(runtime, counts))


def longest_ids(runtime: Runtime, text: str) -> list[int]:
    """As many token ids as `prompt_length` counts, of the member that counts most.

    They are a beginning of the member's ids if its context window is not the smallest.
    """
    if not text:
        return []
    counts = _scaled(runtime, member_lengths(runtime, text, {}))
    count = max(counts)
    vocabulary = runtime.members[counts.index(count)].vocabulary
    ids = [*vocabulary.prefix_ids, *vocabulary.encode(text)]
    # What stands in the member's prompt besides the text is part of the count.
    return [*ids, *ids[-1:] * count][:count]


def _scaled(runtime: Runtime, counts: Sequence[int]) -> list[int]:
    """Each member's count, as a share of its window, in tokens of the smallest window."""
    smallest = context_window(runtime)
    return [
        -(-count * smallest // member.context_window)
        for count, member in zip(counts, runtime.members, strict=True)
    ]


def member_lengths(
    runtime: Runtime,
    prompt: Any,
    template: Mapping[str, Any],
    *,
    continue_final_message: bool = False,
) -> list[int]:
    """By member, the most tokens that it may have to read of a prompt.

    Args:
        runtime: The pack.
        prompt: Text, or messages.
        template: Arguments for the chat templates.
        continue_final_message: Whether an answer would continue the last message.

    Raises:
        PromptError: for an empty text, or malformed messages.
    """
    reference, vocabularies = runtime.default_reference, runtime.vocabularies
    if isinstance(prompt, str):
        whole = from_text(prompt, vocabularies, reference)
        text = prompt.encode()
        own = [MemberPrompt(v.prefix_ids, v.prefix_of(text) + text) for v in vocabularies]
    else:
        whole = render_chat(
            prompt,
            vocabularies,
            reference,
            dict(template),
            continue_final_message=continue_final_message,
        ).prompt
        own = list(whole.members)
    counts = _as_read(runtime, whole)
    if runtime.settings.reference != "auto":
        return counts
    # Another reference may be chosen, beside which the members read their own tokens.
    counts = [max(pair) for pair in zip(counts, map(_own_length, own, vocabularies), strict=True)]
    feeds_ids = runtime.parts.alignment.reading is not runtime.parts.alignment
    # With such an alignment, members read the tokens of whichever member is the reference.
    return [max(counts)] * len(counts) if feeds_ids else counts


def _as_read(runtime: Runtime, prompt: PackPrompt) -> list[int]:
    """By member, the length of a prompt beside the default reference."""
    sequence = runtime.model(runtime.default_reference).engine.open(prompt, runtime.call)
    sequence.feed(prompt.stream)
    return lengths(sequence)


def _own_length(prompt: MemberPrompt, vocabulary: Vocabulary) -> int:
    """The length of a member's prompt in its own tokens."""
    tokenizer = IncrementalTokenizer(vocabulary)
    tokenizer.update(prompt.text)
    plain = vocabulary.encode_bytes(prompt.text) if prompt.text else []
    return len(prompt.fixed) + max(len(plain), len(tokenizer.ids))
