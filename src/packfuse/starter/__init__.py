"""Starter packs: small models, fetched as pinned wheels and converted once, and an expert.

Other rooms import `starter_paths` and `is_ready` from here, the lineups from
`packfuse.starter.sources`, the expert from `packfuse.starter.expert`, and the plan to show from
`packfuse.starter.plan`. This room uses `packfuse.errors`, `packfuse.extras`, `packfuse.paths`,
`packfuse.progress`, `packfuse.registry` and third-party packages only.
"""

from packfuse.starter.prepare import is_ready, starter_paths

__all__ = ["is_ready", "starter_paths"]
