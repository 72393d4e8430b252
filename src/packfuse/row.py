"""One sequence of the pack: the reference's ids, and every member's reader."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from packfuse.prompt import PackPrompt
from packfuse.reader import Place, Reader
from packfuse.vocabulary import Vocabulary


class Row:
    """A sequence that grows, shrinks and forks.

    Attributes:
        prompt: What it began with.
        ids: Every reference id given so far, control tokens included.
        stream: Those since the last control token: text that members read in their own tokens.
        readers: One by member; None for a member that has no say in this row.
        weights: `[K]`, how much each member is trusted.
        last: Fused log-probabilities after the last token, `[reference columns]`.
        prefilled: Places of the prompt, read but not fused yet.
        offset: Tokens of the prompt that are in the members' templates, not in `ids`.
        heard: The members' log-probabilities behind `last`, `[K, V]`.
        place: Which row of the batch it is, for those who watch.
        warm: Whether the readers stand at the end of `stream` with their filters up to date.
    """

    def __init__(
        self, prompt: PackPrompt, readers: Sequence[Reader | None], reference: Vocabulary
    ) -> None:
        """Start before the prompt; nothing has been read."""
        self.prompt, self.reference = prompt, reference
        self.readers = list(readers)
        self.ids: list[int] = []
        self.stream: list[int] = []
        self.ends: list[int] = []
        self.text = b""
        self.unread: list[int] = []
        self.weights: Tensor | None = None
        self.last: Tensor | None = None
        self.warm = False
        self.offset = 0
        self.heard: Tensor | None = None
        self.place = 0
        self.prefilled: list[list[Place] | None] = []
        self._closed: list[tuple[int, list[tuple[list[int], bytes] | None]]] = []

    def fork(self) -> Row:
        """An independent copy."""
        twin = object.__new__(Row)
        twin.__dict__.update(self.__dict__)
        for name in ("ids", "stream", "ends", "unread", "prefilled", "_closed"):
            setattr(twin, name, list(getattr(self, name)))
        twin.readers = [reader and reader.fork() for reader in self.readers]
        return twin

    @property
    def length(self) -> int:
        """Reference tokens so far, prompt included."""
        return self.offset + len(self.ids)

    def feed(self, ids: Sequence[int]) -> None:
        """Take tokens of both kinds."""
        for index in ids:
            if index in self.reference.control_ids:
                self.close(index)
            else:
                self.append([index])

    def append(self, ids: Sequence[int]) -> None:
        """Take text tokens."""
        for index in ids:
            token = self.reference.token_bytes[index] or b""
            self.text += token
            self.ids.append(index)
            self.stream.append(index)
            self.ends.append(len(self.text))

    def close(self, index: int) -> None:
        """Take a control token: what came before it becomes fixed for every member."""
        before: list[tuple[list[int], bytes] | None] = []
        for reader in self.readers:
            if reader is None:
                before.append(None)
                continue
            before.append((reader.fixed, reader.base))
            ids = reader.ids(self.stream, self.text)
            reader.fixed = [*ids, *self._by_role(reader, index)]
            reader.base = b""
            reader.path.update(b"")
            reader.straddle = reader.pairing.straddle()
        self._closed.append((len(self.ids), before))
        self.ids.append(index)
        self._restart([])

    def _by_role(self, reader: Reader, index: int) -> list[int]:
        if reader.pairing.verbatim:
            return reader.pairing.map_ids([index])
        vocabulary = reader.member.vocabulary
        opens = index in (*self.reference.prefix_ids, *self.reference.end_ids)
        if not self.ids and opens:
            return []  # A beginning of sequence; every member has its own already.
        if index in self.reference.end_ids and vocabulary.end_ids:
            return [vocabulary.end_ids[0]]
        return vocabulary.encode_bytes(self.reference.spell(index).encode())

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens."""
        if count == 0:
            return
        target = len(self.ids) + len(self.unread) - count
        self.unread = self.unread[: max(0, target - len(self.ids))]
        if target >= len(self.ids):
            return
        stream_start = len(self.ids) - len(self.stream)
        ids = self.ids[:target]
        while self._closed and self._closed[-1][0] >= target:
            position, before = self._closed.pop()
            for reader, old in zip(self.readers, before, strict=True):
                if reader is not None and old is not None:
                    reader.fixed, reader.base = old
            stream_start = self._closed[-1][0] + 1 if self._closed else 0
        self.ids = ids[:stream_start]
        self._restart(ids[stream_start:])

    def _restart(self, stream: Sequence[int]) -> None:
        self.stream, self.ends, self.text, self.warm = [], [], b"", False
        self.append(stream)
