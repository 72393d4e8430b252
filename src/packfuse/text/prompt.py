"""A prompt in the tokens of every member."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from packfuse.errors import PromptError
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class MemberPrompt:
    """The prompt of one member.

    Attributes:
        fixed: Token ids that never change (chat template, beginning of sequence).
        text: Bytes after `fixed`; they are tokenized together with the text that follows.
        ends_turns: Whether the member can predict the end of a turn. For a member that cannot (a
            base model in a chat), the reference's probability of an end is used.
    """

    fixed: tuple[int, ...]
    text: bytes = b""
    ends_turns: bool = True

    def as_ids(self, vocabulary: Vocabulary) -> MemberPrompt:
        """This prompt for a member that is fed the reference's ids (`Pairing.same_ids`).

        Those ids already contain what a plain prompt begins with. Any other text becomes fixed ids.
        """
        if (self.fixed, self.text) == (vocabulary.prefix_ids, vocabulary.text_prefix):
            return replace(self, fixed=(), text=b"")
        return replace(self, fixed=(*self.fixed, *vocabulary.encode_bytes(self.text)), text=b"")


@dataclass(frozen=True, slots=True)
class PackPrompt:
    """One prompt for the whole pack.

    Attributes:
        members: Each member's own part, in the pack's order.
        stream: Reference ids that follow the own part of every member. Each member tokenizes the
            text of these ids itself; control tokens are mapped by role.
        texts: The parts of the prompt on which the members' losses are computed (not templates).
        notes: Changes to the prompt that the user should know about.
        fresh: Whether the stream is the beginning of the sequence, so that it begins with the
            reference's beginning-of-sequence token and dummy space, if it has these.
        dummy: The dummy space with which the first text of the stream begins, which is no part of
            the text; empty for none.
    """

    members: tuple[MemberPrompt, ...]
    stream: tuple[int, ...] = ()
    texts: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()
    fresh: bool = False
    dummy: bytes = b""


def blank(vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """An empty prompt for a sequence that is given as reference ids."""
    members = [
        MemberPrompt(() if k == reference else vocabulary.prefix_ids, vocabulary.text_prefix)
        for k, vocabulary in enumerate(vocabularies)
    ]
    members[reference] = MemberPrompt(())
    return PackPrompt(tuple(members), fresh=True, dummy=vocabularies[reference].text_prefix)


def from_ids(ids: Sequence[int], vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """A plain prompt (no chat template) from reference ids.

    Args:
        ids: Token ids of the reference.
        vocabularies: One per member.
        reference: Index of the reference among the members.

    Raises:
        PromptError: for an empty list of ids, or ids outside the reference's vocabulary.
    """
    own = vocabularies[reference]
    if not ids:
        raise PromptError("the prompt has no tokens", hint="give at least one token")
    outside = [index for index in ids if not 0 <= index < own.columns]
    if outside:
        raise PromptError(
            f"token id {outside[0]} is outside the reference's {own.columns} ids",
            hint="use the pack's own tokenizer",
        )
    dummy = own.text_prefix
    texts = tuple(_texts(ids, own, dummy))
    return replace(blank(vocabularies, reference), stream=tuple(ids), texts=texts)


def _texts(ids: Sequence[int], own: Vocabulary, dummy: bytes) -> Iterator[bytes]:
    """The text between control tokens, without the dummy space at the beginning."""
    prefix = dummy
    for control, run in groupby(ids, key=lambda index: index in own.control_ids):
        if not control:
            text = own.decode(run).removeprefix(prefix)
            prefix = b""
            if text.strip():
                yield text


def from_text(text: str, vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """A plain prompt (no chat template) from text, in which no control token is recognized.

    Args:
        text: The prompt.
        vocabularies: One per member.
        reference: Index of the reference among the members.

    Raises:
        PromptError: for an empty text.
    """
    if not text:
        raise PromptError("the prompt is empty", hint="give at least one character")
    own = vocabularies[reference]
    dummy = own.prefix_of(text.encode())
    ids = (*own.prefix_ids, *own.encode_bytes(dummy + text.encode()))
    texts = tuple(_texts(ids, own, dummy))
    return replace(blank(vocabularies, reference), stream=ids, texts=texts, dummy=dummy)
