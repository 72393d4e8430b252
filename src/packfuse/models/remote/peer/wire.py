"""What client and server of the member protocol send each other.

A read is `POST /packfuse/member/read`. Its body is one message: safetensors, in which the tensor
`header` is JSON. The answer is a stream of messages, each after its length in four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from packfuse.errors import PackError

VERSION = 1
"""Version of the protocol. Client and server must have the same."""

CARD = "/packfuse/member"
DIGEST = f"{CARD}/digest"
TOKENIZER = f"{CARD}/tokenizer"
TOKENS = f"{CARD}/tokens"
READ = f"{CARD}/read"
"""Paths of the server."""

CONTENT_TYPE = "application/vnd.packfuse.member"

_HEADER = "header"
_LENGTH = struct.Struct("<I")

Count = Annotated[int, Field(ge=0)]
Operation = tuple[Literal["fork", "keep", "drop"], Count, Count, Count]
"""What happened to a session: `fork` and `keep` make it from the session that follows (`keep` of
its first tokens, whose number is last), `drop` ends it."""


class WireError(PackError, ValueError):
    """Bytes that are no message of the protocol."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


Header = TypeVar("Header", bound=_Strict)


class MemberCard(BaseModel):
    """What a server says of its member.

    Attributes:
        protocol: Version of the protocol.
        packfuse: Version of the package.
        model: Hub id, folder or file of the model.
        state: Digest of what the distributions depend on, from samples of the weights.
        vocabulary: Fingerprint of the vocabulary.
        columns: Size of the output dimension.
        end_ids: Token ids that end a text.
        context_window: Most tokens of a session.
        dtype: Type of the weights; "" if that is not known.
        parameters: Number of parameters; None if that is not known.
        lease: Time after which a client that sends nothing loses its sessions, in seconds.
        clients: Number of clients that have sessions.
        sessions: Number of sessions.
        cache_bytes: Memory of the sessions.
    """

    model_config = ConfigDict(frozen=True)

    protocol: int
    packfuse: str
    model: str
    state: str
    vocabulary: str
    columns: int
    end_ids: tuple[int, ...]
    context_window: int
    dtype: str
    parameters: int | None
    lease: float
    clients: int
    sessions: int
    cache_bytes: int


class RowHeader(_Strict):
    """One sequence of a request.

    Attributes:
        session: Number of the session, chosen by the client.
        start: The session is cut to so many tokens, and read on from there.
        prefix: Digest of the ids of these tokens.
        tokens: Number of tokens to read.
        keep: For how many of the last of them distributions are wanted.
        counts: For how many other counts of tokens distributions are wanted; None to read as
            without a callback.
        subset: Digest of the token ids over which distributions are normalized; None for all.
    """

    session: Count
    start: Count
    prefix: str
    tokens: Annotated[int, Field(ge=1)]
    keep: Annotated[int, Field(ge=1)] = 1
    counts: Count | None = None
    subset: str | None = None


class ReadHeader(_Strict):
    """A request; see `Request`.

    Attributes:
        version: Version of the protocol.
        client: Whose sessions are meant.
        state: What the member is expected to be.
        operations: What happened to sessions before.
        rows: The sequences.
        pause: Most tokens that are read without a message; None for the server's own choice.
        dtype: Type of the values.
        candidates: Most tokens that are named at a place; None for all.
    """

    version: int
    client: Annotated[str, Field(min_length=8, max_length=64)]
    state: str
    operations: list[Operation] = []
    rows: list[RowHeader] = []
    pause: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "float16"] = "float32"
    candidates: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        header: The header.
        ids: By row, the token ids to read.
        counts: By row, the counts for which distributions are wanted besides the last ones.
        subsets: Token ids by their digest, ascending, of which the server may know some already.
    """

    header: ReadHeader
    ids: Sequence[Sequence[int]] = ()
    counts: Sequence[Sequence[int]] = ()
    subsets: Mapping[str, Tensor] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The body of a request."""
        tensors = {
            "ids": _numbers([index for own in self.ids for index in own]),
            "counts": _numbers([count for own in self.counts for count in own]),
        }
        tensors |= {name: ids.to(torch.int32) for name, ids in self.subsets.items()}
        return _encode(self.header, tensors)

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """The request of a body.

        Raises:
            WireError: for anything else.
        """
        header, tensors = _decode(body, ReadHeader)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.int32 or tensor.dim() != 1:
                raise WireError(f"{name} is not a list of 32-bit integers")
        ids = _split(tensors, "ids", [row.tokens for row in header.rows])
        counts = _split(tensors, "counts", [row.counts or 0 for row in header.rows])
        rest = tensors.keys() - {"ids", "counts"}
        if unknown := rest - {row.subset for row in header.rows}:
            raise WireError(f"no row needs the tokens {min(unknown)!r}")
        return cls(header, ids, counts, {name: tensors[name].long() for name in rest})


class AnswerHeader(_Strict):
    """The header of a message of an answer.

    Attributes:
        kind: rows: distributions; pause: a part was read; wait: no result yet;
            done: all was read; gone: the server has not these rows' sessions, or not these subsets,
            and did nothing; changed: the member is another one; error: it failed.
        row: Index of the row in the request.
        counts: For each distribution, the count of tokens after which it is.
        gone: Indices of rows.
        subsets: Digests of subsets.
        message: What went wrong.
    """

    kind: Literal["rows", "pause", "wait", "done", "gone", "changed", "error"]
    row: int = 0
    counts: list[int] = []
    gone: list[int] = []
    subsets: list[str] = []
    message: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of an answer.

    Attributes:
        header: The header.
        tensors: Of `rows`: `logps` `[n, m]` in nats, over all tokens, those of the row's subset, or
            those of `ids` `[n, m]`. Of `done`: by row, `normalizers.0` and so on, where they are
            known.
    """

    header: AnswerHeader
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The message, after its length."""
        body = _encode(self.header, self.tensors)
        return _LENGTH.pack(len(body)) + body


def answers(parts: Iterator[bytes], longest: int) -> Iterator[Answer]:
    """The messages of an answer that arrives in parts.

    Args:
        parts: The parts.
        longest: Most bytes of a message.

    Raises:
        WireError: for anything else.
    """
    waiting = bytearray()
    for part in parts:
        waiting += part
        while len(waiting) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(waiting)
            if length > longest:
                raise WireError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(waiting) < end:
                break
            body = bytes(memoryview(waiting)[_LENGTH.size : end])
            del waiting[:end]
            yield Answer(*_decode(body, AnswerHeader))
    if waiting:
        raise WireError("the answer ends within a message")


def prefix_digest(ids: Sequence[int]) -> str:
    """Digest of token ids."""
    return xxhash.xxh3_64_hexdigest(np.array(ids, np.int32).tobytes())


def subset_digest(ids: Tensor) -> str:
    """Digest of the token ids of a subset."""
    return xxhash.xxh3_128_hexdigest(ids.to(torch.int32).numpy().tobytes())


def _numbers(numbers: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers, np.int32))


def _split(tensors: Mapping[str, Tensor], name: str, sizes: Sequence[int]) -> list[list[int]]:
    found = tensors.get(name)
    if found is None or len(found) != sum(sizes):
        raise WireError(f"{name}: {sum(sizes)} numbers are needed")
    return [part.tolist() for part in found.split(list(sizes))] if sizes else []


def _encode(header: _Strict, tensors: Mapping[str, Tensor]) -> bytes:
    text = header.model_dump_json(exclude_defaults=True).encode()
    own = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return save({**tensors, _HEADER: own})


def _decode(body: bytes, kind: type[Header]) -> tuple[Header, dict[str, Tensor]]:
    try:
        tensors = load(body)
        own = tensors.pop(_HEADER)
        return kind.model_validate_json(own.numpy().tobytes()), tensors
    except (SafetensorError, KeyError, ValidationError) as error:
        text = str(error).splitlines()
        raise WireError(f"no message of the member protocol: {' '.join(text[:3])}") from error
