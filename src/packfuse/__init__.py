"""packfuse: a pack of local language models that answers as one."""

from packfuse.answer import Answer, Chunk
from packfuse.config import MemberConfig, PackConfig
from packfuse.errors import PackError
from packfuse.model import FusedForCausalLM
from packfuse.pack import Pack
from packfuse.record import FusionRecord

__all__ = [
    "Answer",
    "Chunk",
    "FusedForCausalLM",
    "FusionRecord",
    "MemberConfig",
    "Pack",
    "PackConfig",
    "PackError",
]
__version__ = "0.1.0"
