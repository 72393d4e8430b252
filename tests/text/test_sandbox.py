"""Chat templates render as in transformers, and hostile ones end after a bounded amount of work."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from packfuse.errors import PromptError
from packfuse.text.chats.chat_template import render_chat
from packfuse.text.chats.sandbox import TemplateRefusalError, render_template
from packfuse.text.chats.work_limit import WorkLimitError
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.templates import TEMPLATES

GROW = "{%% set ns = namespace(s='ab', l=['ab'], n=3) %%}{%% for i in range(80) %%}%s{%% endfor %%}"
LONG = "{% set s = 'a' * 90000 %}"
BOMBS = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro f() %}{% for a in range(9999) %}x{% endfor %}{% endmacro %}"
    "{% for a in range(9999) %}{{ f() }}{% endfor %}",
    "text in loops": f"{{% for a in range(99999) %}}{'x' * 90000}{{% endfor %}}",
    "a text times a number": "{{ 'a' * 10**9 }}",
    "a list times a number": "{{ ['a'] * 10**9 }}",
    "a number times a text": "{{ 10**9 * 'a' }}",
    "doubling by +": GROW % "{% set ns.s = ns.s + ns.s %}",
    "doubling by ~": GROW % "{% set ns.s = ns.s ~ ns.s %}",
    "doubling by output": GROW % "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}",
    "doubling by join": GROW % "{% set ns.s = [ns.s, ns.s]|join %}",
    "doubling by format": GROW % "{% set ns.s = '{0}{0}'.format(ns.s) %}",
    "doubling by %": GROW % "{% set ns.s = '%s%s' % (ns.s, ns.s) %}",
    "doubling by replace": GROW % "{% set ns.s = ns.s.replace('a', 'aa') %}",
    "a list of itself, written": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l }}",
    "a list of itself as JSON": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l|tojson }}",
    "a list of itself as text": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l|string|length }}",
    "a list of itself, joined": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l ~ '' }}",
    "a list of itself, compared": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l == [1] }}",
    "a large number": "{{ 9**(9**9) }}",
    "squares": GROW % "{% set ns.n = ns.n * ns.n %}",
    "a width": "{{ 'a'|center(10**9) }}",
    "a width of a method": "{{ 'a'.ljust(1000000000) }}",
    "a width of a format": "{{ '{:1000000000d}'.format(1) }}",
    "a width of %": "{{ '%1000000000d' % 1 }}",
    "a width beside %": "{{ '%*d' % (1000000000, 1) }}",
    "a width of indent": "{{ ('\n' * 9000)|indent(9000) }}",
    "a width of tabs": "{{ ('\t' * 9000).expandtabs(99999) }}",
    "bytes of a number": "{{ (5).to_bytes(1000000000, 'big') }}",
    "replacing": LONG + "{{ s.replace('a', s)|length }}",
    "replacing nothing": LONG + "{{ s|replace('', s)|length }}",
    "joining": LONG + "{{ s.join(s)|length }}",
    "joining by a filter": LONG + "{{ s|join(s)|length }}",
    "translating": LONG + "{{ s.translate({97: s})|length }}",
    "formatting": LONG + "{{ ('{0}' * 9000).format(s)|length }}",
    "sums of lists": "{{ ([[1] * 9000] * 9000)|sum(start=[])|length }}",
    "slices": LONG + "{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "comparisons": LONG + "{% for i in range(99999) %}{% if s in s %}{% endif %}{% endfor %}",
    "filters": LONG + "{% for i in range(99999) %}{% set t = s|upper %}{% endfor %}",
    "lists of ranges": "{% for i in range(99999) %}{% set t = range(9999)|list %}{% endfor %}",
    "sums of ranges": "{% for i in range(99999) %}{% set t = range(9999)|sum %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive loops": "{% for x in range(99) recursive %}{% if loop.depth < 9 %}"
    "{{ loop(range(99)) }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_ends_soon(name: str) -> None:
    with pytest.raises((WorkLimitError, TemplateRefusalError)):
        render_template(BOMBS[name], {"messages": []})


FAILURES = {
    "TypeError": "{{ 1 + 'a' }}",
    "RecursionError": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in parsing": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "syntax": "{% if %}",
    "unknown filter": "{{ 1|nothing }}",
    "undefined": "{{ nothing.at.all }}",
    "private attribute": "{{ ''.__class__.__mro__ }}",
    "no loader": "{% include 'a' %}",
    "ZeroDivisionError": "{{ 1 / 0 }}",
    "own": "{{ raise_exception('not me') }}",
}


@pytest.mark.parametrize("name", [*FAILURES, "nested loops", "doubling by +"])
def test_errors_of_templates_name_the_member(name: str) -> None:
    tokenizer = fusing.bpe(name="faulty").tokenizer
    tokenizer.chat_template = {**FAILURES, **BOMBS}[name]
    own = Vocabulary(tokenizer)
    with pytest.raises(PromptError, match="chat template of faulty"):
        render_chat([{"role": "user", "content": "Hi"}], [own], 0)


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": 'Hi, <b>you</b> & me\'s "quotes" – é 日本'}],
    [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": " What is 1 + 2?\n"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Sure?"},
    ],
    [{"role": "user", "content": "word " * 20_000}],
    [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(999)],
]


@pytest.mark.parametrize("chat", CHATS, ids=len)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str, chat: list[dict[str, Any]]) -> None:
    tokenizer = copy.deepcopy(pico.real_tokenizer("deepseek"))
    tokenizer.chat_template = TEMPLATES[name]
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
    try:
        want = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception:
        pytest.skip("the template refuses this chat")
    found = render_template(
        TEMPLATES[name], {**variables, "messages": chat, "add_generation_prompt": True}
    )
    assert found == want


def test_the_helpers_of_transformers_are_there() -> None:
    source = (
        "{% generation %}{{ {'a': '<é>'}|tojson }}{% endgeneration %}"
        "{% set ns = namespace(a=1, **dict(b=2)) %}{% set ns.a = 5 %}{{ ns.a ~ ns.b }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ strftime_now('%Y')|length }}{{ [3, 1]|tojson(indent=1) }}"
    )
    assert render_template(source, {}) == '{"a": "<é>"}52014[\n 3,\n 1\n]'
