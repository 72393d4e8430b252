"""One class for each kind of server; `PROTOCOLS` has them by the name that settings use.

Import from here: `PROTOCOLS`, `Protocol`, `Candidates` and `ServerFacts`. This room may use the
client of `remote` and `errors`.
"""

from packfuse.models.remote.protocols.base import Candidates, Protocol, ServerFacts
from packfuse.models.remote.protocols.llama_cpp import LlamaCpp
from packfuse.models.remote.protocols.sglang import Sglang
from packfuse.models.remote.protocols.vllm import Vllm

PROTOCOLS: dict[str, type[Protocol]] = {own.api: own for own in (LlamaCpp, Vllm, Sglang)}
"""In the order in which "auto" tries them."""

__all__ = ["PROTOCOLS", "Candidates", "Protocol", "ServerFacts"]
