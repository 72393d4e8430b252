"""Packs whose members generate a given answer, for tests that need meaningful text.

Only the logits are not those of a real model; tokenizers, caches, alignment, fusion, generation and
constraints are.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse import Pack
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]:"
ASSISTANT = b"[assistant]:"
CERTAIN = 12.0

Script = Callable[[str], str]
"""From the rendered prompt without `ASSISTANT` at its end to the whole answer."""


class ScriptedConfig(PreTrainedConfig):
    """A model with one layer, whose KV cache holds the token ids."""

    model_type = "scripted"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_hidden_layers = 1
        self.max_position_embeddings = 2048


class Scripted(PreTrainedModel):
    """A model that generates the script's answer; within a prompt all logits are 0."""

    config_class = ScriptedConfig

    def __init__(self, vocabulary: Vocabulary, script: Script) -> None:
        super().__init__(ScriptedConfig(vocab_size=vocabulary.columns))
        self.vocabulary, self.script = vocabulary, script
        self.embedding = nn.Embedding(1, 1)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: DynamicCache,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        new = input_ids[:, None, :, None].float()
        keys, _values = past_key_values.update(new, new.clone(), 0)
        rows = keys[:, 0, :, 0].long().tolist()
        keep = logits_to_keep or input_ids.shape[1]
        logits = torch.zeros(len(rows), keep, self.vocabulary.columns)
        for index, ids in enumerate(rows):
            pads = 0 if attention_mask is None else int((attention_mask[index] == 0).sum())
            own = ids[pads:]
            whole, ends = self.vocabulary.decode(own), self.vocabulary.lengths[own].cumsum()
            for place in range(keep):
                count = max(0, len(own) - keep + place + 1)
                text = whole[: ends[count - 1]] if count else b""
                self.fill(logits[index, place], own[:count], text)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def fill(self, logits: Tensor, prefix: list[int], text: bytes) -> None:
        """Set the logits after a prefix, `[columns]`, whose text is `text`."""
        token = self.following(text)
        if token is not None:
            logits[token] = CERTAIN

    def following(self, text: bytes) -> int | None:
        """The next token of the answer, or its end token; None within a prompt."""
        prompt, separator, begun = text.rpartition(ASSISTANT)
        if not separator:
            return None
        answer = self.script(prompt.decode(errors="replace")).encode()
        if answer.startswith(begun) and len(begun) < len(answer):
            return self.vocabulary.encode_bytes(answer[len(begun) :])[0]
        return self.vocabulary.end_ids[0]


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """A packaged tokenizer with the chat template `TEMPLATE`."""
    tokenizer = copy.deepcopy(pico.real_tokenizer(name))
    tokenizer.chat_template = TEMPLATE
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))


def scripted_pack(script: Script, *names: str, **settings: Any) -> Pack:
    """A pack of scripted members, one per tokenizer."""
    members = [
        HFMember(name, Scripted(vocabulary(name), script).eval(), vocabulary(name))
        for name in names or ("deepseek", "mistral")
    ]
    return Pack(members, progress=False, **settings)
