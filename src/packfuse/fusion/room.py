"""Room in the members' context windows, measured in each member's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packfuse.errors import PromptError
from packfuse.fusion.member_stream import MemberStream
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member


@dataclass(frozen=True, slots=True)
class Overflow:
    """A member that cannot read a text.

    Attributes:
        member: The member.
        length: Length of the text in the member's tokens.
    """

    member: Member
    length: int


def lengths(sequence: PackSequence) -> list[int]:
    """By member, the length of a sequence in the member's tokens; 0 for members with weight 0."""
    return [
        len(stream.ids(sequence.text_ids, sequence.text)) if stream else 0
        for stream in sequence.streams
    ]


def overflow(sequence: PackSequence, ids: Sequence[int] = ()) -> Overflow | None:
    """The first member that cannot read a sequence followed by `ids`; None if all can.

    Nothing is read, and the sequence stays as it is.

    Args:
        sequence: The sequence.
        ids: Reference ids after it.
    """
    more = [*sequence.unread, *ids]
    if sequence.reference.control_ids.isdisjoint(more):
        text_ids = [*sequence.text_ids, *more]
        text = sequence.text + sequence.spelled(more)
    else:
        sequence = sequence.outline()
        sequence.feed(more)
        text_ids, text = sequence.text_ids, sequence.text
    for stream in sequence.streams:
        if stream is None or _surely_fits(stream, text_ids, text):
            continue
        length = len(stream.ids(text_ids, text))
        if length > stream.member.context_window:
            return Overflow(stream.member, length)
    return None


def check_room(sequence: PackSequence, ids: Sequence[int] = ()) -> None:
    """Check that all members can read a sequence followed by `ids`.

    Raises:
        PromptError: naming the first member that cannot.
    """
    over = overflow(sequence, ids)
    if over is None:
        return
    window = over.member.context_window
    raise PromptError(
        f"the {'text' if ids else 'prompt'} is {over.length} tokens long for member "
        f"{over.member.name!r}, which can read {window}",
        hint=f"shorten it by {over.length - window} tokens or more",
    )


def _surely_fits(stream: MemberStream, text_ids: Sequence[int], text: bytes) -> bool:
    """Whether a text fits without tokenizing it: no token has less than one byte."""
    rest = len(text_ids) if stream.pairing.same_ids else len(stream.base) + len(text)
    return len(stream.fixed) + rest <= stream.member.context_window
