"""An agent with two tools on the starter pack, with LangChain: every step with its fusion record.

    pip install packfuse langchain-packfuse langchain
    python cookbooks/langchain_agent.py ["your question"]

Models as small as these rarely call a tool of their own accord. So the first step forces a call,
which cannot come out malformed; once a tool has answered, the pack is free to say what it found.
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
    """Forces a call until a tool has answered; then there is nothing more to call."""

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        """Choose for the model whether it has to call."""
        answered = any(isinstance(message, ToolMessage) for message in request.messages)
        choice = "none" if answered else "any"
        return handler(request.override(tool_choice=choice))


def main(question: str) -> list[str]:
    """Run the agent, and show what each step said and who was trusted."""
    console = Console()
    model = ChatPackFuse(pack=Pack.starter(), max_tokens=48)
    agent = create_agent(model, [multiply, count_letters], middleware=[CallFirst()])
    console.print(f"[bold]{question}[/]")
    said: list[str] = []
    with get_fusion_callback() as fusion:
        question_message = {"messages": [{"role": "user", "content": question}]}
        for message, _ in agent.stream(question_message, stream_mode="messages"):
            if isinstance(message, ToolMessage):
                said.append(f"{message.name} says {message.content}")
                console.print(f"\n  {said[-1]}", markup=False)
            elif isinstance(message, AIMessageChunk):
                for call in message.tool_call_chunks:
                    said.append(f"call {call['name']} {call['args']}")
                    console.print(f"  {said[-1]}", markup=False)
                console.print(message.text, end="", markup=False, highlight=False)
    console.print()
    table = Table("step", "member", "weight", "tokens", "held to")
    for step, record in enumerate(fusion.records, 1):
        for name, weight in record["weights"].items():
            tokens = str(record["usage"]["completion_tokens"])
            table.add_row(
                str(step), name, f"{weight:.2f}", tokens, record["constraint"] or "nothing"
            )
    console.print(table)
    return said


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
