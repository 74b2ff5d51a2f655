"""Writes tests/data/chat_templates.json: templates of the families that the engine knows, conversations, and what Jinja makes of them as
Transformers calls it.

    python tests/engine/make_chat_fixture.py SMOLLM2.gguf tests/data/chat_templates.json

Needs transformers, jinja2 and gguf, which `scripts/venv.sh` installs; seconds. SmolLM2's template is that of the file; the others were
written for this test with the layout of their families.
"""

import json
import sys

import gguf
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a careful clerk. You answer briefly.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
THINKING = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- set before = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set before = messages[0]['content'] + '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
    {{ '<start_of_turn>' + role + '\\n' + (before if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
GEMMA_WITHOUT_SYSTEM = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
LLAMA3 = """\
{%- for message in messages -%}
    {{ bos_token if loop.first else '' }}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
"""
LLAMA31 = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' }}
{{- system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

USER, ASSISTANT = "user", "assistant"
QUESTIONS = [
    [(USER, "Why is the sky blue?")],
    [(USER, "  spaces\n\n"), (ASSISTANT, "\n one\ttwo \n"), (USER, "\u00a0again\u3000")],
    [(USER, "1+1"), (ASSISTANT, "<think>\nadd them\n</think>\n\n2"), (USER, "2+2"), (ASSISTANT, "4"), (USER, "and 3+3?")],
    [(USER, "")],
    [(USER, "It's 5 o'clock; \u00fcber 12 \U0001f98a \u6c34"), (ASSISTANT, "{% raw %} {{ x }}"), (USER, "\n\nnewlines first")],
]


def conversations(with_system):
    for turns in QUESTIONS:
        yield turns
        if with_system:
            yield [("system", " Speak like a pirate. "), *turns]


def main(model, out):
    smollm2 = gguf.GGUFReader(model).fields["tokenizer.chat_template"].contents()
    templates = {
        "smollm2": smollm2, "chatml": CHATML, "thinking": THINKING, "gemma": GEMMA, "gemma-without-system": GEMMA_WITHOUT_SYSTEM,
        "llama3": LLAMA3, "llama3.1": LLAMA31,
    }  # fmt: skip
    families = {"smollm2": "ChatML", "chatml": "ChatML", "thinking": "ChatML", "gemma": "Gemma", "gemma-without-system": "Gemma"}
    fixture = []
    for name, template in templates.items():
        cases = []
        for turns in conversations(name != "gemma-without-system"):
            messages = [{"role": role, "content": content} for role, content in turns]
            made = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, bos_token="<bos>")
            cases.append({"messages": turns, "text": made[0][0]})
        fixture.append({"name": name, "family": families.get(name, "Llama 3"), "template": template, "cases": cases})
    with open(out, "w", encoding="ascii") as target:
        json.dump(fixture, target, indent=0)
        target.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
