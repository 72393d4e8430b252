"""Everything that can be set, once: `Pack`, pack.yaml, the command line and front ends use it.

The docstring of a field is its documentation everywhere. Import from here: `PackSettings`,
`MemberSettings`, `RayPlace`, `LoadSettings` and `PackConfig`. This room may use `paths` and
`errors`.
"""

from packfuse.settings.base import OTHER_NAMES, Settings
from packfuse.settings.config import PackConfig
from packfuse.settings.loading import (
    LLAMA_CPP,
    TRANSFORMERS,
    TRANSFORMERS_ONLY,
    TRUST,
    EngineName,
    LoadSettings,
    MemberSettings,
    RayPlace,
)
from packfuse.settings.pack import (
    HEADS,
    PARTS,
    SCHEDULING,
    STEPS,
    HeadsName,
    PackSettings,
    Part,
    StepsName,
    plain_part,
    weighting_part,
)

__all__ = [
    "HEADS",
    "LLAMA_CPP",
    "OTHER_NAMES",
    "PARTS",
    "SCHEDULING",
    "STEPS",
    "TRANSFORMERS",
    "TRANSFORMERS_ONLY",
    "TRUST",
    "EngineName",
    "HeadsName",
    "LoadSettings",
    "MemberSettings",
    "PackConfig",
    "PackSettings",
    "Part",
    "RayPlace",
    "Settings",
    "StepsName",
    "plain_part",
    "weighting_part",
]
