"""LlamaIndex agents: with function calls, and with reasoning in text.

    pip install . ./integrations/llama_index
    python cookbooks/llama_index_agent.py

`AgentWorkflow` chooses the agent by a flag of the LLM: a `FunctionAgent` if it calls functions, a
`ReActAgent` if it does not. Models as small as those of the starter pack rarely call a tool or
keep to a format by themselves. So the first call of the `FunctionAgent` is forced, and a grammar
constrains the `ReActAgent` to the format that its parser reads. Both are constrained decoding
over the fused distribution.
"""

# %%
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

from packfuse import Pack
from packfuse.constraint import Grammar, JsonSchema

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
#
# The weather is returned to the user directly, without another step.


# %%
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def weather(city: str) -> str:
    """Today's weather in a city."""
    return f"It is sunny in {city}."


tools = [
    FunctionTool.from_defaults(multiply),
    FunctionTool.from_defaults(weather, return_direct=True),
]


# %%
async def ask(agent: FunctionAgent | ReActAgent | AgentWorkflow, question: str) -> None:
    """Run an agent, streamed; then show the members' weights in each step."""
    print(question)
    with collect_fusion() as fusion:
        # A small model may call its tools again and again; then it has to answer.
        handler = agent.run(question, max_iterations=3, early_stopping_method="generate")
        async for event in handler.stream_events():
            if isinstance(event, AgentStream):
                print(event.delta, end="", flush=True)
            elif isinstance(event, ToolCallResult):
                call = f"{event.tool_name}({json.dumps(event.tool_kwargs)})"
                print(f"\n  {call} = {event.tool_output.content}")
        output = await handler
    print(f"\nAnswer: {output}")
    for step, record in enumerate(fusion.records, 1):
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in record["weights"].items())
        print(f"  step {step}: {weights}; constraint: {record['constraint'] or 'none'}")


# %% [markdown]
# ## An agent that calls functions

# %%
calling = PackFuse(pack=pack, max_new_tokens=48, generate_kwargs={"stop": ["<tool_response>"]})
caller = FunctionAgent(
    tools=list(tools),
    llm=calling,
    initial_tool_choice="any",
    system_prompt="After a tool has answered, tell the user the answer in one sentence.",
)
asyncio.run(ask(caller, "What is 6 times 7?"))

# %% [markdown]
# ## An agent that reasons in text
#
# The grammar: a thought, then an action with arguments that fit the tool's schema, or an answer.

# %%
HEADER = """You answer questions with the help of tools.

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
    """The format of a `ReActAgent`."""
    calls, arguments = [], []
    for number, tool in enumerate(tools):
        schema = JsonSchema(tool.metadata.get_parameters_dict()).laid_out()
        calls.append(f'"{tool.metadata.name}\\nAction Input: " arguments_{number}')
        arguments.append(f"arguments_{number}: %json {json.dumps(schema)}")
    lines = [
        "%llguidance {}",
        'start: "Thought: " (need | know)',
        f'need: "I need a tool.\\nAction: " ({" | ".join(calls)})',
        'know: "I can answer now.\\nAnswer: " /[^\\n]{1,100}/',
        *arguments,
    ]
    return Grammar("\n".join(lines))


reasoning = PackFuse(
    pack=pack,
    max_new_tokens=64,
    is_function_calling_model=False,
    generate_kwargs={"constraint": react_form(tools)},
)
formatter = ReActChatFormatter.from_defaults(system_header=HEADER)
reasoner = ReActAgent(tools=list(tools), llm=reasoning, formatter=formatter)
asyncio.run(ask(reasoner, "What is the weather in Paris?"))

# %% [markdown]
# ## `AgentWorkflow` chooses

# %%
workflow = AgentWorkflow.from_tools_or_functions(list(tools), llm=calling)
chosen = workflow.agents[workflow.root_agent]
print("chosen:", type(chosen).__name__)
chosen.initial_tool_choice = "any"
asyncio.run(ask(workflow, "What is the weather in Berlin?"))
