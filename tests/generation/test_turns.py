"""An answer is one turn: it ends where any member's next turn would begin."""

from __future__ import annotations

from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, PromptError
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.scripted import Scripted
from tests.support.templates import CHATML

CHAT = [{"role": "user", "content": "What is 1 + 2?"}]
OPENINGS = {"chat": b"assistant\n", "base": b"Assistant: "}
MARKS = [
    "\n\nUser:",
    "\n\nAssistant:",
    "<|im_start|>user",
    "<|im_start|>assistant",
    "<|im_end|>\n<|im_start|>user",
]


class Speaker(Scripted):
    """A scripted member whose answer begins after the first of its own openings."""

    def following(self, text: bytes) -> int | None:
        """The next token of the answer."""
        opening = OPENINGS[self.vocabulary.name]
        prompt, found, begun = text.partition(opening)
        return super().following(prompt + b"[assistant]:" + begun) if found else None


def vocabulary(name: str) -> Vocabulary:
    controls = ("<|im_end|>", "<|im_start|>") if name == "chat" else ("<end>",)
    words = ("user", "\n\nUser:") if name == "chat" else ("\n\n", "assist", "<|im")
    tokenizer = fusing.bpe(*words, name=name, controls=controls).tokenizer
    tokenizer.chat_template = CHATML if name == "chat" else None
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))  # type: ignore[arg-type]


def speakers(answer: str, **settings: Any) -> Pack:
    """A base model and a chat model that both give this answer."""
    members = []
    for name in OPENINGS:
        own = vocabulary(name)
        members.append(HFMember(name, Speaker(own, lambda _: answer).eval(), own))
    return Pack(members, progress=False, **{"weighting": "uniform", **settings})


@pytest.mark.parametrize("reference", OPENINGS)
@pytest.mark.parametrize("mark", MARKS)
def test_no_answer_holds_another_turn(mark: str, reference: str) -> None:
    pack = speakers(f"It is 3.{mark} And 4 + 5?", reference=reference)
    alone = pack.generate(CHAT)
    chunks = list(pack.stream(CHAT))
    for answer in (alone, *pack.generate([CHAT, CHAT])):
        assert (answer.text, answer.record.finish_reason) == ("It is 3.", "stop")
        assert answer.record.stop is not None
        assert mark.startswith(answer.record.stop)
    assert "".join(chunk.text for chunk in chunks) == "It is 3."
    assert all("U" not in chunk.text and "<" not in chunk.text for chunk in chunks)
    last = chunks[-1].record
    assert last is not None
    assert (last.finish_reason, last.stop) == ("stop", alone.record.stop)
    assert last.usage == alone.record.usage


@pytest.mark.parametrize("reference", OPENINGS)
def test_parts_of_marks_end_nothing(reference: str) -> None:
    text = "User: me, <|im_start|> or <|im_end|>.\nUser: you\n\nuser: he\n\n User: she.\n\nUser"
    pack = speakers(text, reference=reference)
    answer = pack.generate(CHAT)
    assert answer.text == text == "".join(chunk.text for chunk in pack.stream(CHAT))
    assert answer.record.stop is None


def test_a_member_without_weight_ends_nothing() -> None:
    text = "It is 3.\n\nUser: And 4 + 5?"
    pack = speakers(text, reference="chat")
    assert pack.generate(CHAT, weights={"chat": 1, "base": 0}).text == text
    assert pack.generate(CHAT, weights={"chat": 0.9, "base": 0.1}).text == "It is 3."


def test_a_plain_prompt_has_no_turns() -> None:
    pack = speakers("x")
    prompt = f"{OPENINGS['chat'].decode()}{OPENINGS['base'].decode()}"
    assert pack.generate(prompt, max_new_tokens=3).record.stop is None


# The beginning of the answer.


@pytest.mark.parametrize("begun", ["It is", "It is ", " It  is\n", "", "It", "It is 3"])
@pytest.mark.parametrize("reference", OPENINGS)
def test_an_answer_continues_the_last_message(begun: str, reference: str) -> None:
    whole = f"{begun}|It is 3.|"
    pack = speakers(whole, reference=reference)
    chat = [*CHAT, {"role": "assistant", "content": begun}]
    answer = pack.generate(chat, continue_final_message=True)
    assert begun + answer.text == whole
    chunks = list(pack.stream(chat, continue_final_message=True))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    counted = pack.count_tokens(chat, continue_final_message=True)
    assert counted == max(answer.record.usage.prompt_tokens_by_member.values())


def test_an_answer_continues_only_the_assistant() -> None:
    pack = speakers("It is 3.")
    chat = [*CHAT, {"role": "assistant", "content": "It is"}]
    with pytest.raises(PromptError, match="role 'user'"):
        pack.generate(CHAT, continue_final_message=True)
    with pytest.raises(ConfigError, match="is for chats"):
        pack.generate("It is", continue_final_message=True)
    with pytest.raises(ConfigError, match="continue_final_message='yes'"):
        pack.generate(chat, continue_final_message="yes")
    assert pack.weigh(chat, continue_final_message=True).prompt_tokens
