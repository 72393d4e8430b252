"""A prompt, as every member will read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from packfuse.errors import PromptError
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class MemberPrompt:
    """One member's side of a prompt.

    Attributes:
        fixed: Ids that are read as they are (templates, beginning of sequence).
        text: Bytes after them that join with what is generated (a plain prompt).
        ends_turns: Whether the member knows how a turn ends here; one that does not (a base model
            in a chat) leaves that to the reference.
    """

    fixed: tuple[int, ...]
    text: bytes = b""
    ends_turns: bool = True

    def as_ids(self, vocabulary: Vocabulary) -> MemberPrompt:
        """The same for a member that reads the reference's ids one for one.

        What a plain prompt begins with is among those ids already; other text becomes fixed ids.
        """
        if (self.fixed, self.text) == (vocabulary.prefix_ids, vocabulary.text_prefix):
            return replace(self, fixed=(), text=b"")
        return replace(self, fixed=(*self.fixed, *vocabulary.encode_bytes(self.text)), text=b"")


@dataclass(frozen=True, slots=True)
class PackPrompt:
    """One prompt for the whole pack.

    Attributes:
        members: By member, in the pack's order.
        stream: Reference ids that follow every member's own part: text that each reads in its own
            tokens, control tokens by role.
        texts: The words on which the members' losses are taken (not templates).
        notes: What was done to the prompt that the user should know.
        fresh: Whether nothing precedes the stream, so that it begins as the reference's tokenizer
            begins a text: with its beginning of sequence, with its dummy space.
    """

    members: tuple[MemberPrompt, ...]
    stream: tuple[int, ...] = ()
    texts: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()
    fresh: bool = False


def blank(vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """The beginning of a row of which nothing but reference ids will be known."""
    members = [
        MemberPrompt(() if k == reference else vocabulary.prefix_ids, vocabulary.text_prefix)
        for k, vocabulary in enumerate(vocabularies)
    ]
    members[reference] = MemberPrompt(())
    return PackPrompt(tuple(members), fresh=True)


def from_ids(ids: Sequence[int], vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """A plain prompt from reference ids.

    Raises:
        PromptError: for no ids, or ids outside the vocabulary.
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
    return replace(blank(vocabularies, reference), stream=tuple(ids), texts=tuple(_texts(ids, own)))


def _texts(ids: Sequence[int], own: Vocabulary) -> Iterator[bytes]:
    """The words between control tokens, without the dummy space at the front."""
    prefix = own.text_prefix
    for control, run in groupby(ids, key=lambda index: index in own.control_ids):
        if not control:
            text = own.decode(run).removeprefix(prefix)
            prefix = b""
            if text.strip():
                yield text


def from_text(text: str, vocabularies: Sequence[Vocabulary], reference: int) -> PackPrompt:
    """A plain prompt; what spells a control token stays text.

    Raises:
        PromptError: if there is nothing to read.
    """
    if not text:
        raise PromptError("the prompt is empty", hint="give at least one character")
    own = vocabularies[reference]
    body = own.encode_bytes(own.text_prefix + text.encode())
    return from_ids([*own.prefix_ids, *body], vocabularies, reference)
