"""`packfuse member`: one member behind the member protocol, for packs in other processes.

`packfuse.cli` imports `create_member_app` and `MemberLimits`. One thread computes (`worker`); it
alone uses the member and its sessions. What is sent is in `models.remote.peer.wire`.
"""

from packfuse.server.member.app import MemberLimits, create_member_app

__all__ = ["MemberLimits", "create_member_app"]
