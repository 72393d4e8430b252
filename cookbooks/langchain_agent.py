"""A LangChain agent with two tools on the starter pack, with the fusion record of every step.

    pip install . ./integrations/langchain langchain
    python cookbooks/langchain_agent.py ["your question"]

Such small models rarely call a tool unless a call is forced. So the first step forces a call, which
is always valid. After the result of a tool, the answer is free text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_packfuse import ChatPackFuse, get_fusion_callback
from rich.console import Console
from rich.table import Table

from packfuse import Pack

QUESTION = "What is 17 times 23?"


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


@tool
def count_letters(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


class CallFirst(AgentMiddleware[Any, Any]):
    """Forces a call until there is the result of a tool; after that it allows no calls."""

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        """Set the tool choice of a step."""
        answered = any(isinstance(message, ToolMessage) for message in request.messages)
        choice = "none" if answered else "any"
        return handler(request.override(tool_choice=choice))


def main(question: str) -> list[str]:
    """Run the agent, and show each step with the members' weights."""
    console = Console()
    model = ChatPackFuse(pack=Pack.starter(), max_tokens=48)
    agent = create_agent(model, [multiply, count_letters], middleware=[CallFirst()])
    console.print(f"[bold]{question}[/]")
    lines: list[str] = []
    with get_fusion_callback() as fusion:
        question_message = {"messages": [{"role": "user", "content": question}]}
        for message, _ in agent.stream(question_message, stream_mode="messages"):
            if isinstance(message, ToolMessage):
                lines.append(f"{message.name} returns {message.content}")
                console.print(f"\n  {lines[-1]}", markup=False)
            elif isinstance(message, AIMessageChunk):
                for call in message.tool_call_chunks:
                    lines.append(f"call {call['name']} {call['args']}")
                    console.print(f"  {lines[-1]}", markup=False)
                console.print(message.text, end="", markup=False, highlight=False)
    console.print()
    table = Table("step", "member", "weight", "tokens", "constraint")
    for step, record in enumerate(fusion.records, 1):
        for name, weight in record["weights"].items():
            tokens = str(record["usage"]["completion_tokens"])
            table.add_row(str(step), name, f"{weight:.2f}", tokens, record["constraint"] or "none")
    console.print(table)
    return lines


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
