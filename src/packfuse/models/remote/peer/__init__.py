"""Members that another packfuse serves (`packfuse member`), with whole distributions.

The server has the sessions; here are their token ids. `wire` says what is sent, for both sides.
This room may use the client of `remote`, the interface of members, `text` and `errors`.
"""

from packfuse.models.remote.peer.connecting import PEER, card_of, fetched_tokenizer, wrap_peer
from packfuse.models.remote.peer.peer_member import PeerMember

__all__ = ["PEER", "PeerMember", "card_of", "fetched_tokenizer", "wrap_peer"]
