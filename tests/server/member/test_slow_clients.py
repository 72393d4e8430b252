"""A client that does not read its answer keeps the member from others for a short time only."""

from __future__ import annotations

import httpx
import pytest
import torch

from packfuse.models import hf_member
from packfuse.models.member import Read
from packfuse.models.remote.peer.wire import (
    CONTENT_TYPE,
    READ,
    ReadHeader,
    Request,
    RowHeader,
    prefix_digest,
)
from packfuse.server.member import channel
from tests.support import fusing
from tests.support.member_server import card, member_server, peer_of, until_sessions

IDS = [1, *range(300, 700)]


def test_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    own = fusing.member("mistral")
    monkeypatch.setattr(channel, "_AHEAD", 1)
    monkeypatch.setattr(channel, "_SLOW_SECONDS", 0.2)
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 64 * own.vocabulary.columns)
    (expected,) = own.read([Read(own.open(), IDS[:5])])
    with member_server(own) as url:
        peer = peer_of(url)
        count = len(IDS)
        row = RowHeader(
            session=0, start=0, prefix=prefix_digest([]), tokens=count, counts=count
        )  # every place of a long prompt: 50 MB
        header = ReadHeader(version=1, client="slow-client", state=card(url)["state"], rows=[row])
        body = Request(header, [IDS], [[*range(1, count + 1)]]).encode()
        kind = {"Content-Type": CONTENT_TYPE}
        with httpx.stream("POST", url + READ, content=body, headers=kind, timeout=30):
            (found,) = peer.read([Read(session := peer.open(), IDS[:5])])
            assert torch.equal(found, expected)
            until_sessions(url, 1)
            del session
