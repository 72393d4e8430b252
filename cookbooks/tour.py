"""A tour of packfuse: several models as one, and what each answer tells about itself.

    pip install .
    python cookbooks/tour.py

Everything runs on this machine.
"""

# %%
from __future__ import annotations

from pydantic import BaseModel

from packfuse import Pack

# %% [markdown]
# ## A pack
#
# Two small models with different tokenizers, downloaded once (570 MB). For models of your own,
# change this one line, for example to
# `Pack.from_pretrained(["Qwen/Qwen3-1.7B", "HuggingFaceTB/SmolLM3-3B"])`.

# %%
pack = Pack.starter()

# %% [markdown]
# ## An answer, and its record
#
# At every step the members' next-token distributions are fused into one, under weights that are
# fitted to the prompt. The record says which weights, how well each member predicted the prompt
# (bits per byte: lower is better), and how often the members agreed.

# %%
answer = pack.generate([{"role": "user", "content": "What is the capital of Italy?"}])
print(answer.text)
for name in answer.record.members:
    weight, loss = answer.record.weights[name], answer.record.bits_per_byte[name]
    print(f"  {name}: weight {weight:.2f}, {loss:.2f} bits per byte of the prompt")
print(f"  all members had the same first choice at {answer.record.agreed:.0%} of the steps")

# %% [markdown]
# ## Who wanted what
#
# With `trace=True` the record has every token, its probability under the pack and under each
# member, and the first choice of each member.

# %%
traced = pack.generate("The three primary colors are", max_new_tokens=8, trace=True)
for step in traced.record.trace:
    shares = "  ".join(f"{share:.2f}" for share in step.member_probabilities.values())
    others = {choice for choice in step.member_choices.values() if choice != step.text}
    print(f"{step.text!r:12} pack {step.probability:.2f}  members {shares}  {others or ''}")

# %% [markdown]
# ## Weights follow the text
#
# `weigh` generates nothing. The weights on a plain text say which member reads it best.

# %%
for text in (
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return",
    "Once upon a time there was a little girl who lived near the forest. One day",
):
    weighing = pack.weigh(text)
    print({name: round(weight, 2) for name, weight in weighing.weights["exact"].items()})

# %% [markdown]
# ## Streams, settings of one call, and a member alone

# %%
chat = [{"role": "user", "content": "What color is the sky?"}]
for chunk in pack.stream(chat, max_new_tokens=24):
    print(chunk.text, end="", flush=True)
print()
first, second = pack.names
alone = pack.generate(chat, weights={first: 0, second: 1}, max_new_tokens=24)
print(f"{second} alone: {alone.text}")

# %% [markdown]
# ## An answer of a given form
#
# Tokens that would break the form are masked in the fused distribution.


# %%
class City(BaseModel):
    """A city and the country that it is in."""

    name: str
    country: str


fact = [{"role": "user", "content": "Rome is a city in Italy. Write this as JSON."}]
print(pack.generate(fact, constraint=City, max_new_tokens=40).text)

# %% [markdown]
# ## As a model of transformers
#
# `pack.model` and `pack.tokenizer` work where a model and a tokenizer of transformers do.

# %%
inputs = pack.tokenizer("The capital of France is", return_tensors="pt")
ids = pack.model.generate(**inputs, max_new_tokens=8, num_beams=2)
print(pack.tokenizer.decode(ids[0]))
