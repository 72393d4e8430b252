"""LlamaIndex LLM over a pack: local language models, fused into one."""

from llama_index.llms.packfuse.base import PackFuse
from llama_index.llms.packfuse.collector import FusionCall, FusionCollector, collect_fusion
from llama_index.llms.packfuse.metadata import attach_fusion

__all__ = ["FusionCall", "FusionCollector", "PackFuse", "attach_fusion", "collect_fusion"]
