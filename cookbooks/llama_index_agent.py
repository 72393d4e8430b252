"""LlamaIndex agents on the starter pack: with function calls, and with reasoning in text.

    pip install . ./integrations/llama_index
    python cookbooks/llama_index_agent.py

`AgentWorkflow` chooses the agent by a flag of the LLM: a `FunctionAgent` if it calls functions, a
`ReActAgent` if it does not. Models as small as those of the starter pack rarely call a tool or keep
to a format by themselves. So the first call of the `FunctionAgent` is forced, and a grammar
constrains the `ReActAgent` to the format that its parser reads. Both are constrained decoding over
the fused distribution. The weather is returned to the user directly, without another step. The
weights of the members are shown for every step.
"""

from __future__ import annotations

import asyncio
import json

from llama_index.core.agent import ReActChatFormatter
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.tools import FunctionTool
from llama_index.llms.packfuse import PackFuse, collect_fusion
from rich.console import Console
from rich.table import Table

from packfuse import Pack
from packfuse.constraint import Grammar, JsonSchema

console = Console()


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def weather(city: str) -> str:
    """Today's weather in a city."""
    return f"It is sunny in {city}."


TOOLS = [
    FunctionTool.from_defaults(multiply),
    FunctionTool.from_defaults(weather, return_direct=True),
]
REACT_HEADER = """You answer questions with the help of tools.

{tool_desc}

Write a thought, then an action:

Thought: I need a tool.
Action: one of {tool_names}
Action Input: its arguments as JSON

or, once you know the answer:

Thought: I can answer now.
Answer: the answer
"""


def react_form(tools: list[FunctionTool]) -> Grammar:
    """The format of a `ReActAgent`: a thought, then an action with arguments, or an answer."""
    calls, arguments = [], []
    for number, tool in enumerate(tools):
        schema = JsonSchema(tool.metadata.get_parameters_dict()).laid_out()
        calls.append(f'"{tool.metadata.name}\\nAction Input: " arguments_{number}')
        arguments.append(f"arguments_{number}: %json {json.dumps(schema)}")
    return Grammar(
        "\n".join(
            [
                "%llguidance {}",
                'start: "Thought: " (need | know)',
                f'need: "I need a tool.\\nAction: " ({" | ".join(calls)})',
                'know: "I can answer now.\\nAnswer: " /[^\\n]{1,100}/',
                *arguments,
            ]
        )
    )


async def ask(title: str, agent: FunctionAgent | ReActAgent | AgentWorkflow, question: str) -> None:
    """Run an agent, streamed; then show the members' weights in each step."""
    console.rule(title, align="left")
    console.print(f"[bold]{question}[/bold]")
    with collect_fusion() as fusion:
        # A small model may call its tools again and again; then it has to answer.
        handler = agent.run(question, max_iterations=3, early_stopping_method="generate")
        async for event in handler.stream_events():
            if isinstance(event, AgentStream):
                console.print(event.delta, end="", markup=False, highlight=False)
            elif isinstance(event, ToolCallResult):
                call = f"{event.tool_name}({json.dumps(event.tool_kwargs)})"
                line = f"\n  {call} = {event.tool_output.content}"
                console.print(line, style="cyan", markup=False)
        output = await handler
    console.print(f"\nAnswer: {output}", markup=False)
    steps = Table("step", *fusion.records[0]["members"], "tokens", "constraint", box=None)
    for number, record in enumerate(fusion.records, 1):
        weights = [f"{weight:.1%}" for weight in record["weights"].values()]
        tokens = str(record["usage"]["total_tokens"])
        steps.add_row(str(number), *weights, tokens, record["constraint"] or "")
    console.print(steps, "")


async def main() -> None:
    """Ask one agent of each kind, then let `AgentWorkflow` choose."""
    pack = Pack.starter()
    calling = PackFuse(pack=pack, max_new_tokens=48, generate_kwargs={"stop": ["<tool_response>"]})
    reasoning = PackFuse(
        pack=pack,
        max_new_tokens=64,
        is_function_calling_model=False,
        generate_kwargs={"constraint": react_form(TOOLS)},
    )
    formatter = ReActChatFormatter.from_defaults(system_header=REACT_HEADER)
    instruction = "After a tool has answered, tell the user the answer in one sentence."

    caller = FunctionAgent(
        tools=list(TOOLS), llm=calling, initial_tool_choice="any", system_prompt=instruction
    )
    await ask("FunctionAgent", caller, "What is 6 times 7?")
    reasoner = ReActAgent(tools=list(TOOLS), llm=reasoning, formatter=formatter)
    await ask("ReActAgent", reasoner, "What is the weather in Paris?")

    for llm in (calling, reasoning):
        workflow = AgentWorkflow.from_tools_or_functions(list(TOOLS), llm=llm)
        chosen = workflow.agents[workflow.root_agent]
        if isinstance(chosen, FunctionAgent):
            chosen.initial_tool_choice = "any"
        elif isinstance(chosen, ReActAgent):
            chosen.formatter = formatter
        title = f"AgentWorkflow chose {type(chosen).__name__}"
        await ask(title, workflow, "What is the weather in Berlin?")


if __name__ == "__main__":
    asyncio.run(main())
