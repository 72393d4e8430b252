"""One read of a client: checked, computed, and sent as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError

import torch
from torch import Tensor

from packfuse.errors import PackError
from packfuse.models.batching import MAX_CHUNK_TOKENS
from packfuse.models.compute.heap import trim
from packfuse.models.member import Pause, Read, ReadCallback
from packfuse.models.remote.peer.wire import (
    VERSION,
    Answer,
    AnswerHeader,
    Request,
    WireError,
    subset_digest,
)
from packfuse.server.member.channel import Channel
from packfuse.server.member.host import Host
from packfuse.server.member.worker import Job


def begin(host: Host, body: bytes, channel: Channel) -> None:
    """Begin to answer a request.

    Args:
        host: The member and its sessions.
        body: The body of the request.
        channel: Takes the messages to the client.

    Raises:
        WireError: if the body is no request that can be answered.
    """
    request, member = Request.decode(body), host.member
    check_request(request, member.vocabulary.columns, member.context_window)
    tokens = sum(row.tokens for row in request.header.rows)
    reading = Reading(host, request, channel)
    host.worker.submit(Job(request.header.client, tokens, reading.run))


def check_request(request: Request, columns: int, context_window: int) -> None:
    """Refuse a request that cannot be answered, whatever has been read before.

    Args:
        request: The request.
        columns: Size of the member's output dimension.
        context_window: Most tokens of a session.

    Raises:
        WireError: naming what is wrong.
    """
    header = request.header
    if header.version != VERSION:
        raise WireError(
            f"version {header.version} of the member protocol; this server speaks {VERSION}",
            hint="install the same packfuse on both sides",
        )
    numbers = [row.session for row in header.rows]
    if len(set(numbers)) < len(numbers):
        raise WireError("a session in two rows")
    parts = zip(header.rows, request.ids, request.counts, strict=True)
    for k, (row, ids, counts) in enumerate(parts):
        end = row.start + row.tokens
        if not 0 <= min(ids) <= max(ids) < columns:
            raise WireError(f"row {k}: token ids are 0 to {columns - 1}")
        if end > context_window:
            raise WireError(f"row {k}: {end} tokens, of at most {context_window}")
        if row.keep > row.tokens or any(not row.start < count <= end for count in counts):
            raise WireError(f"row {k}: distributions are wanted where nothing is read")
        if row.subset and (row.counts is not None or header.candidates):
            raise WireError(f"row {k}: a subset goes without counts and candidates")
    for name, subset in request.subsets.items():
        _check_subset(name, subset, columns)


def _check_subset(name: str, ids: Tensor, columns: int) -> None:
    if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= columns:
        raise WireError(f"the tokens {name!r} are not 0 to {columns - 1}")
    if bool((ids.diff() <= 0).any()) or subset_digest(ids) != name:
        raise WireError(f"the tokens {name!r} are not in ascending order, or of another name")


class Reading:
    """One read of a client."""

    def __init__(self, host: Host, request: Request, channel: Channel) -> None:
        """Nothing is computed yet.

        Args:
            host: The member and its sessions.
            request: The request, which `check_request` has passed.
            channel: Takes the messages to the client.
        """
        self._host, self._request, self._channel = host, request, channel
        self._header = request.header
        self._sent: list[set[int]] = [set() for _ in request.header.rows]

    def run(self) -> None:
        """Compute, in the worker's thread; the last message says how it ended."""
        try:
            last = self._run()
        except CancelledError:
            last = [self._say("error", message="the client left, or was slow to read")]
        except PackError as error:
            last = [self._say("error", message=str(error))]
        except Exception as error:  # the thread goes on for other clients
            last = [self._say("error", message=f"{type(error).__name__}: {error}")]
        self._channel.end(*last)

    def _run(self) -> list[bytes]:
        host, header = self._host, self._header
        # Also for a client that has left: its sessions have ended.
        host.sessions.apply(header.client, header.operations)
        if not header.rows:
            return [self._say("done")]
        self._channel.check()
        if header.state != host.state:
            return [self._say("changed", message=host.member.facts.source)]
        gone = [k for k, row in enumerate(header.rows) if not host.sessions.has(header.client, row)]
        unknown = host.learn(self._request)
        if gone or unknown:
            gone_header = AnswerHeader(kind="gone", gone=gone, subsets=unknown)
            return [Answer(gone_header).encode()]
        try:
            found = self._read()
        except BaseException:
            host.sessions.end(header.client, [row.session for row in header.rows])
            raise
        host.sessions.measure(header.client, [row.session for row in header.rows])
        trim()
        return found

    def _read(self) -> list[bytes]:
        pause = Pause(self._header.pause or MAX_CHUNK_TOKENS, self._pause)
        reads = []
        for k, row in enumerate(self._header.rows):
            session, lost = self._host.sessions.cut(self._header.client, row)
            session.log_normalizers = None
            reads.append(
                Read(
                    session,
                    [*lost, *self._request.ids[k]],
                    row.keep,
                    None if row.counts is None else self._callback(k),
                    self._host.subsets[row.subset] if row.subset else None,
                    pause,
                )
            )
        returned = self._host.member.read(reads)
        messages = []
        for k, (read, logps) in enumerate(zip(reads, returned, strict=True)):
            last = read.session.length
            counts = [c for c in range(last - len(logps) + 1, last + 1) if c not in self._sent[k]]
            if counts:
                rest = logps if len(counts) == len(logps) else logps[[c - last - 1 for c in counts]]
                messages.append(self._rows(k, counts, rest))
        known = {f"normalizers.{k}": read.session.log_normalizers for k, read in enumerate(reads)}
        tensors = {name: own.float().cpu() for name, own in known.items() if own is not None}
        return [*messages, Answer(AnswerHeader(kind="done"), tensors).encode()]

    def _callback(self, k: int) -> ReadCallback:
        def send(counts: Sequence[int], logps: Tensor) -> None:
            self._channel.send(self._rows(k, counts, logps))
            self._sent[k].update(counts)

        return ReadCallback(send, frozenset(self._request.counts[k]))

    def _pause(self) -> None:
        if self._header.pause is None:
            self._channel.check()
        else:
            self._channel.send(self._say("pause"))
        self._host.worker.give_way()

    def _rows(self, k: int, counts: Sequence[int], logps: Tensor) -> bytes:
        """Distributions `[n, columns]` as the client wants them."""
        row, tensors = self._header.rows[k], dict[str, Tensor]()
        if row.subset:
            logps = logps.index_select(1, self._host.subsets[row.subset].ids.to(logps.device))
        if self._header.candidates is not None:
            logps, ids = logps.topk(min(self._header.candidates, logps.shape[1]), dim=-1)
            tensors["ids"] = ids.to(torch.int32).cpu()
        tensors["logps"] = logps.to(getattr(torch, self._header.dtype)).cpu().contiguous()
        return Answer(AnswerHeader(kind="rows", row=k, counts=list(counts)), tensors).encode()

    def _say(self, kind: str, message: str = "") -> bytes:
        header = {"kind": kind, "message": message}
        return Answer(AnswerHeader.model_validate(header)).encode()
