"""LangChain chat model and LLM over a pack: local language models, fused into one."""

from importlib.metadata import version

from langchain_packfuse.callbacks import FusionCallbackHandler, get_fusion_callback
from langchain_packfuse.chat_models import ChatPackFuse
from langchain_packfuse.llms import PackFuseLLM

__version__ = version("langchain-packfuse")

__all__ = [
    "ChatPackFuse",
    "FusionCallbackHandler",
    "PackFuseLLM",
    "__version__",
    "get_fusion_callback",
]
