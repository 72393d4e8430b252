"""A LangChain agent with two tools, with the fusion record of every step.

    pip install . ./integrations/langchain langchain
    python cookbooks/langchain_agent.py

Models as small as those of the starter pack rarely call a tool unless a call is forced. So the
first step forces a call, which is always valid; after the result of a tool, the answer is free
text. Larger models need no middleware.
"""

# %%
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_packfuse import ChatPackFuse, get_fusion_callback

from packfuse import Pack

# %% [markdown]
# ## The pack
#
# Two small models with different tokenizers, downloaded once (570 MB). For models of your own,
# change this one line, for example to
# `Pack.from_pretrained(["Qwen/Qwen3-1.7B", "HuggingFaceTB/SmolLM3-3B"])`.

# %%
pack = Pack.starter()

# %% [markdown]
# ## Tools


# %%
@tool
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


@tool
def count_letters(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


# %% [markdown]
# ## The agent


# %%
class CallFirst(AgentMiddleware[Any, Any]):
    """Forces a call until there is the result of a tool; after that it allows no calls."""

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        """Set the tool choice of a step."""
        answered = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if answered else "any"))


model = ChatPackFuse(pack=pack, max_tokens=48)
agent = create_agent(
    model,
    [multiply, count_letters],
    middleware=[CallFirst()],
    system_prompt="After a tool has answered, tell the user the answer in one sentence.",
)

# %% [markdown]
# ## A question
#
# Streamed, with the record of every step.


# %%
def ask(question: str) -> None:
    """Stream what the agent does, and show the members' weights in each step."""
    print(question)
    asked = {"messages": [{"role": "user", "content": question}]}
    with get_fusion_callback() as fusion:
        for message, _ in agent.stream(asked, stream_mode="messages"):
            if isinstance(message, ToolMessage):
                print(f"\n  {message.name} returns {message.content}")
            elif isinstance(message, AIMessageChunk):
                for call in message.tool_call_chunks:
                    print(f"  call {call['name']} {call['args']}", end="")
                print(message.text, end="", flush=True)
    print()
    for step, record in enumerate(fusion.records, 1):
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in record["weights"].items())
        print(f"  step {step}: {weights}; constraint: {record['constraint'] or 'none'}")


ask("What is 17 times 23?")
