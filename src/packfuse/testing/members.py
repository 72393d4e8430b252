"""Laws of members."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from packfuse.models.member import Member, Read, Session

CLOSE = 1e-3


class MemberLaws:
    """What every `Member` must satisfy.

    Attributes:
        ids: A sequence of at least eight of the member's tokens.
    """

    ids: Sequence[int]

    @abstractmethod
    def member(self) -> Member:
        """The member; the same one at every call, or a new one."""

    def whole(self, member: Member) -> Tensor:
        """Log-probabilities after every token, read at once, `[n, columns]`."""
        return member.read([Read(member.open(), list(self.ids), len(self.ids))])[0]

    def extend(self, member: Member, session: Session, ids: Sequence[int]) -> Tensor:
        """Log-probabilities after the last of the new tokens, `[columns]`."""
        return member.read([Read(session, list(ids))])[0][-1]

    def close(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors of log-probabilities are the same distributions."""
        return torch.allclose(one.exp(), other.exp(), atol=CLOSE)

    def test_distributions_are_normalized(self) -> None:
        """`[keep, columns]`, float32, never NaN."""
        member = self.member()
        found = self.whole(member)
        assert found.shape == (len(self.ids), member.vocabulary.columns)
        assert found.dtype == torch.float32
        assert not found.isnan().any()
        assert (found.logsumexp(-1).abs() < CLOSE).all()

    def test_parts_are_the_whole(self) -> None:
        """Reading in parts, one token among them, is reading at once."""
        member = self.member()
        session, found = member.open(), []
        for start, stop in ((0, 3), (3, 4), (4, len(self.ids))):
            part = list(self.ids[start:stop])
            found.append(member.read([Read(session, part, len(part))])[0])
        assert session.length == len(self.ids)
        assert self.close(torch.cat(found), self.whole(member))

    def test_a_rolled_back_session_goes_on_as_if_nothing_had_followed(self) -> None:
        """What was read after the cut leaves no trace."""
        member, cut = self.member(), len(self.ids) - 3
        session = member.open()
        self.extend(member, session, self.ids)
        member.rollback(session, cut)
        assert session.length <= cut
        assert list(session.ids) == list(self.ids[: session.length])
        rest = self.ids[session.length :]
        assert self.close(self.extend(member, session, rest), self.whole(member)[-1])

    def test_a_fork_is_independent(self) -> None:
        """Neither copy notices what the other one reads."""
        member, half = self.member(), len(self.ids) // 2
        session = member.open()
        self.extend(member, session, self.ids[:half])
        twin = member.fork(session)
        self.extend(member, twin, list(self.ids[half:])[::-1])
        found = self.extend(member, session, self.ids[half:])
        assert self.close(found, self.whole(member)[-1])

    def test_a_kept_beginning_goes_on_by_itself(self) -> None:
        """`keep` copies the first tokens, or a few less, and nothing more."""
        member, length = self.member(), len(self.ids) - 2
        session = member.open()
        self.extend(member, session, self.ids)
        kept = member.keep(session, length)
        assert kept.length <= length
        found = self.extend(member, kept, self.ids[kept.length :])
        assert self.close(found, self.whole(member)[-1])
        assert member.nbytes(kept) >= 0

    def test_a_batch_is_its_sequences(self) -> None:
        """Sequences of different lengths in one call are read as each alone."""
        member = self.member()
        texts = [list(self.ids), list(self.ids[2:]), list(self.ids[:5])]
        together = member.read([Read(member.open(), text, 2) for text in texts])
        for text, found in zip(texts, together, strict=True):
            alone = member.read([Read(member.open(), text, 2)])[0]
            assert self.close(found, alone)
