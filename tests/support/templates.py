"""Chat templates in the shapes of the known model families, written for the tests."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MODEL = """\
{%- if messages[0].role == 'system' -%}
    {%- set prefix = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {{- (prefix if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
HEADINGS = (
    "{% for m in messages %}{{ '### ' + m.role.capitalize() + ':\n' + m.content + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
BARE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "model": MODEL,
    "brackets": BRACKETS,
    "channels": CHANNELS,
    "headings": HEADINGS,
    "bare": BARE,
}
MARKS = {
    "chatml": "<|im_start|>user",
    "headers": "<|start_header_id|>user<|end_header_id|>",
    "model": "<start_of_turn>user",
    "brackets": "[INST]",
    "channels": "<|start|>user<|message|>",
    "headings": "\n\n### User:",
}
"""The text that opens a turn of the user after an answer; none for `bare`."""
