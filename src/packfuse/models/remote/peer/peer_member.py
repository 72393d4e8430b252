"""A member that another packfuse serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from packfuse.errors import ServerError
from packfuse.models.member import Member, MemberFacts, NamedFacts, Read, Session
from packfuse.models.remote.client import Client
from packfuse.models.remote.peer.exchange import Exchange, Transfer
from packfuse.models.remote.peer.outbox import PeerState
from packfuse.models.remote.peer.peer_row import PeerRow
from packfuse.models.remote.peer.wire import CARD, DIGEST, READ, Answer, MemberCard, WireError
from packfuse.models.remote.rows import FEW, NonsenseError
from packfuse.process import on_fork
from packfuse.text.vocabulary import Vocabulary


class _GoneError(Exception):
    """The server did nothing, because it has not the sessions of these rows, or not the subsets."""

    def __init__(self, rows: Sequence[int], subsets: Sequence[str]) -> None:
        super().__init__()
        self.rows, self.subsets = rows, subsets


class PeerMember(Member):
    """A member that another packfuse serves. Its sessions are there, and their token ids here.

    A session that the server has lost is read again.

    Attributes:
        client: The connection.
        card: What the server said of the member.
        transfer: What it is asked to send.
    """

    elsewhere = True

    def __init__(
        self,
        name: str,
        client: Client,
        card: MemberCard,
        vocabulary: Vocabulary,
        transfer: Transfer | None = None,
    ) -> None:
        """Wrap a server that has been asked for its card.

        Args:
            name: The member's name.
            client: The connection.
            card: What the server said of the member.
            vocabulary: Its tokenizer.
            transfer: What it is asked to send; whole distributions by default.
        """
        self.name, self.client, self.card, self.vocabulary = name, client, card, vocabulary
        self.transfer = transfer or Transfer()
        self.context_window = card.context_window
        named = self.transfer.candidates
        self.names_few = named is not None and named < min(FEW, vocabulary.size)
        self.state = self.quick_digest()
        self._exchange = Exchange(client, card.state, self.transfer)
        on_fork(self._exchange.renew)

    @property
    def device(self) -> torch.device:
        """See `Member.device`; its distributions arrive on the processor."""
        return torch.device("cpu")

    @property
    def facts(self) -> MemberFacts:
        """See `Member.facts`."""
        card = self.card
        return MemberFacts(f"{self.client.url} ({card.model})", card.dtype, card.parameters)

    @property
    def api(self) -> str:
        """What settings call the kind of server."""
        return "packfuse"

    @property
    def model_name(self) -> str:
        """What the server calls its model."""
        return self.card.model

    @property
    def named_tokens(self) -> int | None:
        """Most tokens that the server is asked for at a place; None for all."""
        return self.transfer.candidates

    def digest(self) -> str:
        """See `Member.digest`."""
        found: Any = self.client.get(DIGEST)
        if not isinstance(found, dict) or "digest" not in found:
            raise self.client.error("it serves no member of packfuse any more")
        return f"{found['digest']} {self.transfer}"

    def quick_digest(self) -> str:
        """See `Member.quick_digest`."""
        return f"{self.card.state} {self.transfer}"

    def renamed(self, name: str) -> PeerMember:
        """See `Member.renamed`."""
        own = self.client.renamed(name)
        return PeerMember(name, own, self.card, self.vocabulary, self.transfer)

    def refresh(self) -> None:
        """See `Member.refresh`: ask the server whether it still has the same model."""
        found: Any = self.client.get(CARD)
        try:
            now = MemberCard.model_validate(found)
        except ValueError as error:
            raise self.client.error("it serves no member of packfuse any more") from error
        if now.state != self.card.state:
            raise self._changed(now.model)

    def named(self, session: Session) -> NamedFacts | None:
        """See `Member.named`."""
        state: PeerState = session.state
        return state.named.facts(self.named_tokens)

    def open(self) -> Session:
        """See `Member.open`."""
        return Session(state=self._exchange.outbox.state())

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """See `Member.read`. All requests travel together, with what happened to the sessions."""
        if not requests:
            return []
        self.check_context_window(requests)
        vocabulary, candidates = self.vocabulary, self.transfer.candidates
        rows = [
            PeerRow(request, vocabulary.columns, vocabulary.size, candidates)
            for request in requests
        ]
        try:
            for row in rows:
                if row.state.client != self._exchange.outbox.client:
                    row.request.session.state = self._exchange.outbox.copy(row.state, "fork", 0)
            try:
                return self._read(rows)
            except _GoneError as gone:
                for index in gone.rows:
                    rows[index].state.known = False
                self._exchange.forget(gone.subsets)
                return self._read(rows)
        except BaseException as error:
            for row in rows:  # it is not known how far the server has read them
                row.request.session.state = self._exchange.outbox.state()
            if isinstance(error, _GoneError | NonsenseError | WireError):
                raise self._nonsense(error) from error
            raise

    def _read(self, rows: Sequence[PeerRow]) -> list[Tensor]:
        """Send one request, and take what comes."""
        pause = next((row.request.pause for row in rows if row.request.pause), None)
        progress, done = time.monotonic(), None
        with self._exchange.ask(rows, pause.tokens if pause else None) as incoming:
            for answer in incoming:
                # After the last message comes the end of the answer, which frees the connection.
                done = answer if answer.header.kind == "done" else None
                self._take(answer, rows)
                if pause and answer.header.kind in ("pause", "wait"):
                    pause.call()
                if answer.header.kind != "wait":
                    progress = time.monotonic()
                elif time.monotonic() > progress + self.client.timeout:
                    raise self.client.late(READ)
        if done is None:
            raise WireError("the answer ends too early")
        for row in rows:
            row.check()  # all of them, before the first session is advanced
        found = [done.tensors.get(f"normalizers.{k}") for k in range(len(rows))]
        return [row.finish(own) for row, own in zip(rows, found, strict=True)]

    def _take(self, answer: Answer, rows: Sequence[PeerRow]) -> None:
        """Take distributions, and raise what the server says of errors."""
        header = answer.header
        unknown = [k for k in (header.row, *header.gone) if not 0 <= k < len(rows)]
        if unknown:
            raise WireError(f"there is no row {unknown[0]}")
        if header.kind == "rows":
            rows[header.row].take(answer)
        elif header.kind == "gone":
            raise _GoneError(header.gone, header.subsets)
        elif header.kind == "changed":
            raise self._changed(header.message)
        elif header.kind == "error":
            raise self.client.error(header.message)

    def _changed(self, model: str) -> ServerError:
        return self.client.error(
            f"it has another model than when it joined: {model!r}", "load the pack again"
        )

    def _nonsense(self, error: Exception) -> ServerError:
        problem = "its sessions end at once" if isinstance(error, _GoneError) else str(error)
        return self.client.error(
            f"it answered what cannot be right: {problem}", "is it the server of `packfuse member`?"
        )

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. The server follows with the next read."""
        del session.ids[max(length, 0) :]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`. The server follows with the next read."""
        return self._copy(session, "fork", session.length)

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`. The server follows with the next read."""
        return self._copy(session, "keep", min(max(length, 0), session.length))

    def _copy(self, session: Session, kind: str, length: int) -> Session:
        state = self._exchange.outbox.copy(session.state, kind, length)
        return replace(session, ids=session.ids[:length], state=state, log_normalizers=None)

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`: the server keeps the rest."""
        return 8 * session.length
