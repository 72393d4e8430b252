"""A member whose model llama.cpp runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import xxhash
from torch import Tensor

from packfuse.errors import MemberError
from packfuse.models.batching import MAX_CHUNK_TOKENS, ReadChunk, chunks
from packfuse.models.llama_cpp.context import LlamaContext, NoRoomError
from packfuse.models.llama_cpp.gguf_file import GGUFFile
from packfuse.models.llama_cpp.model import LlamaModel
from packfuse.models.llama_cpp.sessions import LlamaSessions, Work
from packfuse.models.logps import check_numbers, whole_logps
from packfuse.models.member import Member, MemberFacts, Read, Session
from packfuse.text.vocabulary import Vocabulary

ROWS = 16
"""Most sequences of one batch."""

FIRST_CELLS = 512
"""Number of tokens for which there is memory at first; it grows with the sessions."""


class LlamaCppMember(Member):
    """A GGUF file that llama.cpp computes with as it is, without expanding its weights.

    Sequences share the memory for keys and values, so forks copy nothing. Sessions for which there
    is no room keep their ids, and are read again when they go on.

    Attributes:
        llama: The model.
        sessions: Its keys and values. Members with the same model have the same.
    """

    def __init__(
        self,
        name: str,
        llama: LlamaModel,
        vocabulary: Vocabulary,
        file: GGUFFile,
        sessions: LlamaSessions | None = None,
    ) -> None:
        """Wrap an open file.

        Args:
            name: The member's name.
            llama: The model.
            vocabulary: Its tokenizer.
            file: The file that it was loaded from.
            sessions: The keys and values of the same model; made if None.

        Raises:
            LoadError: if there is no memory for a context.
        """
        self.name, self.llama, self.vocabulary, self._file = name, llama, vocabulary, file
        self.context_window = llama.context_window
        if sessions is None:
            cells = min(FIRST_CELLS, self.context_window)
            context = LlamaContext(llama, cells, ROWS * MAX_CHUNK_TOKENS)
            sessions = LlamaSessions(context, ROWS * self.context_window)
        self.sessions = sessions
        self.state = self.quick_digest()

    def renamed(self, name: str) -> LlamaCppMember:
        """See `Member.renamed`."""
        return LlamaCppMember(name, self.llama, self.vocabulary, self._file, self.sessions)

    @property
    def facts(self) -> MemberFacts:
        """See `Member.facts`."""
        llama = self.llama
        return MemberFacts(str(llama.path), llama.quantization, llama.parameters, llama.nbytes)

    @property
    def device(self) -> torch.device:
        """See `Member.device`; ids and logits are here, wherever llama.cpp computes."""
        return torch.device("cpu")

    def digest(self) -> str:
        """See `Member.digest`. Other engines have other digests of the same file."""
        return _engine_digest(self._file.digest(self.name), self.vocabulary.fingerprint)

    def quick_digest(self) -> str:
        """See `Member.quick_digest`."""
        return _engine_digest(self._file.sampled, self.vocabulary.fingerprint)

    def refresh(self) -> None:
        """See `Member.refresh`.

        Raises:
            MemberError: if the file has changed since it was loaded.
        """
        self._file.check(self.name)

    def open(self) -> Session:
        """See `Member.open`."""
        return self.sessions.open()

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`."""
        self.sessions.rollback(session, length)

    def fork(self, session: Session) -> Session:
        """See `Member.fork`."""
        return self.sessions.fork(session)

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`. Cells that no session has are free."""
        kept = self.fork(session)
        self.rollback(kept, length)
        return kept

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`."""
        return self.sessions.nbytes(session)

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """See `Member.read`. All requests share batches, whatever their lengths."""
        self.check_context_window(requests)
        remaining = iter(requests)
        found: list[Tensor] = []
        while rows := list(islice(remaining, ROWS)):
            found += self._read(rows)
        return found

    def _read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Read requests that fit into one batch, in chunks."""
        kept: list[list[Tensor]] = [[] for _ in requests]
        size = self.sessions.context.logits // len(requests)
        ranges = list(chunks(requests, size, skips_logits=True))
        for number, (start, stop) in enumerate(ranges):
            if number and (pause := requests[0].pause):
                pause.call()
            all_chunks = [ReadChunk(request, start, stop) for request in requests]
            reading = [
                (chunk, found) for chunk, found in zip(all_chunks, kept, strict=True) if chunk.ids
            ]
            returned = self._forward([chunk for chunk, _ in reading])
            for (_, found), blocks in zip(reading, returned, strict=True):
                found.extend(blocks)
        return [found[0] if len(found) == 1 else torch.cat(found) for found in kept]

    def _forward(self, read_chunks: Sequence[ReadChunk]) -> list[list[Tensor]]:
        """Read chunks of several requests, together where there is room.

        Returns:
            For each chunk the log-probabilities that its request returns, blocks `[n, columns]`.
        """
        try:
            return self._together(read_chunks)
        except NoRoomError as error:
            if len(read_chunks) == 1:
                raise MemberError(
                    f"member {self.name!r}: {error.message}",
                    hint="shorten the prompt, or set max_rows lower",
                ) from error
        half = len(read_chunks) // 2
        return self._forward(read_chunks[:half]) + self._forward(read_chunks[half:])

    def _together(self, read_chunks: Sequence[ReadChunk]) -> list[list[Tensor]]:
        sessions = [chunk.request.session for chunk in read_chunks]
        work = [
            Work(session, chunk.ids, chunk.positions)
            for session, chunk in zip(sessions, read_chunks, strict=True)
        ]
        try:
            # Until they are normalized, the logits are in memory that the next batch overwrites.
            with self.sessions.lock:
                logits = self.sessions.decode(work)
                logps, normalizers = self._logps(logits, read_chunks)
            return list(self._deliver(read_chunks, logps, normalizers))
        except NoRoomError:
            raise
        except BaseException as error:
            for session in sessions:
                self.sessions.drop(session)
                session.ids = []
            if isinstance(error, MemberError) and self.name not in error.message:
                raise MemberError(f"member {self.name!r}: {error.message}") from error
            raise

    def _logps(self, logits: Tensor, read_chunks: Sequence[ReadChunk]) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[P, columns]` and log-normalizers `[P]` of logits, in nats."""
        counts = [count for chunk in read_chunks for count in chunk.counts]
        logps = whole_logps(logits, self.vocabulary.size)
        check_numbers(self.name, logps[:, 0], counts)
        return logps, logits[:, 0] - logps[:, 0]

    def _deliver(
        self, read_chunks: Sequence[ReadChunk], logps: Tensor, normalizers: Tensor
    ) -> Iterator[list[Tensor]]:
        """Advance the sessions of the chunks, and hand each its log-probabilities."""
        sizes = [len(chunk.positions) for chunk in read_chunks]
        parts = zip(read_chunks, logps.split(sizes), normalizers.split(sizes), strict=True)
        for chunk, own, values in parts:
            session = chunk.request.session
            returned = list(chunk.deliver(chunk.counts, own, pruned=False))
            session.log_normalizers = values
            session.ids.extend(chunk.ids)
            yield returned


def _engine_digest(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(("llama.cpp", *parts)).encode())
