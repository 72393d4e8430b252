"""Members whose models run in servers: another packfuse, llama.cpp, vLLM and SGLang.

Import from here: `load_remote`, which connects to a server and checks that it is what its settings
say, `RemoteMember`, and `PeerMember`, which another packfuse serves. A new kind of server is one
`Protocol` in `protocols/`. This room may use
`text`, `settings` and `errors`, and the interface of members.
"""

from packfuse.models.remote.loading import load_remote
from packfuse.models.remote.peer import PeerMember
from packfuse.models.remote.remote_member import RemoteMember

__all__ = ["PeerMember", "RemoteMember", "load_remote"]
