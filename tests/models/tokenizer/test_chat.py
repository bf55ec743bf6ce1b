"""Chat templates: what they may use, and that none can hang or escape."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.chat import TemplateRenderer
from bitsmith.system.limited import LimitedProcess

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi <b> & 'ü'"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "more"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}}}]

CHATML = (
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim }}\n"
    "    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
RICH = (
    "{%- macro item(name, n=2) -%}{{ name|upper }}:{{ '%03d'|format(n) }}{%- endmacro -%}\n"
    "{%- set ns = namespace(seen=0, parts=[]) -%}\n{%- for m in messages if m.role != 'system' -%}\n"
    "  {%- set ns.seen = ns.seen + 1 -%}{%- if loop.last -%}{%- break -%}{%- endif -%}\n"
    "  {%- generation -%}{{ item(m.role, loop.index) }}{%- endgeneration %}\n{% endfor -%}\n"
    "{{ ns.seen }} {{ tools|tojson(indent=2) }} {{ messages|map(attribute='role')|unique|join(', ') }}\n"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages[-1].content.split('o')|first }}\n"
    "{{ messages[0].items()|list|tojson }} {{ 'a,b'.replace(',', ';') }} {{ none is none }} {{ x|default('d') }}\n"
    "{{ '{:>5}'.format('r') }}|{{ 7 // 2 * 3 - 1 }}|{{ messages|length }}|{{ bos_token in 'a<s>' }}|{{ [1, 2] + [3] }}"
)

render = TemplateRenderer().render


@pytest.mark.parametrize("template", [CHATML, LLAMA2, RICH], ids=["chatml", "llama2", "rich"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_equals_transformers(template: str, tools: list[dict[str, Any]] | None) -> None:
    expected = _compile_jinja_template(template).render(
        messages=MESSAGES, tools=tools, documents=None, add_generation_prompt=True, **SPECIAL
    )
    assert render(template, MESSAGES, special=SPECIAL, tools=tools) == expected
    assert len(expected) > 40


def test_generation_prompt_and_reference_template() -> None:
    tokenizer = Tokenizer.from_folder(Path(str(files("bitsmith") / "reference")))
    opened = tokenizer.chat(MESSAGES[1:2])
    assert opened == "<|user|>\nhi <b> & 'ü'\n<|assistant|>\n"
    assert tokenizer.chat(MESSAGES[1:2], add_generation_prompt=False) == "<|user|>\nhi <b> & 'ü'\n"
    ids = tokenizer.encode_chat(MESSAGES[1:2])
    assert ids[0] == 2
    assert tokenizer.decode(ids, special=True) == opened
    assert tokenizer.chat(MESSAGES, template="{{ eos_token }}{{ messages|length }}") == "<|endoftext|>4"


def test_date() -> None:
    assert render("{{ strftime_now('%Y') }}", [], special={}).isdecimal()


def test_refusal_names_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="refuses this conversation: roles must alternate"):
        render(LLAMA2, MESSAGES[2:], special=SPECIAL)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "not valid Jinja in line 2"),
        ("{{ messages|nonsense }}", "not valid Jinja in line 1: No filter named 'nonsense'"),
        ("{{ absent.attribute }}", "'absent' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'other' %}", "no loader"),
        ("{{ [1, 2][5].x }}", "no element 5"),
        ("{{ messages|tojson(indent='x'|list) }}", "fails on this conversation"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ render.__globals__ }}", "fails on this conversation"),
        ("{{ messages.append(1) }}", "fails on this conversation"),
        ("x" * 1_000_001, "has 1,000,001 characters"),
    ],
)
def test_broken_or_curious_templates(template: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        render(template, MESSAGES, special=SPECIAL)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HASTY = TemplateRenderer(seconds=1)
_DOUBLE = "{% set ns = namespace(v=START) %}{% for i in range(80) %}{% set ns.v = STEP %}{% endfor %}{{ ns.v }}"


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% set ns = namespace(v=(1,), w=(1,)) %}{% for i in range(80) %}{% set ns.v = (ns.v, ns.v) %}"
        "{% set ns.w = (ns.w, ns.w) %}{% endfor %}{{ ns.v in [ns.w] }}",
        _DOUBLE.replace("START", "'ab'").replace("STEP", "ns.v.translate({97: ns.v, 98: ns.v})"),
        _DOUBLE.replace("START", "'a\nb'").replace("STEP", "(ns.v ~ '\n' ~ ns.v)|indent(999)"),
        _DOUBLE.replace("START", "(1, 2)").replace("STEP", "ns.v[:] + ns.v[::-1]"),
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999)|select('none')|list }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        _DOUBLE.replace("START", "'a'").replace("STEP", "ns.v ~ ns.v"),
        _DOUBLE.replace("START", "'a'").replace("STEP", "ns.v + ns.v"),
        _DOUBLE.replace("START", "'a'").replace("STEP", "'%s%s'|format(ns.v, ns.v)"),
        _DOUBLE.replace("START", "'a'").replace("STEP", "'{0}{0}'.format(ns.v)"),
        _DOUBLE.replace("START", "[1]").replace("STEP", "[ns.v, ns.v]"),
        _DOUBLE.replace("START", "[1]").replace("STEP", "[ns.v, ns.v]").replace("{{ ns.v }}", "{{ ns.v|tojson }}"),
        _DOUBLE.replace("START", "[1]").replace("STEP", "[ns.v, ns.v]").replace("{{ ns.v }}", "{{ ns.v|string }}"),
        _DOUBLE.replace("START", "9").replace("STEP", "ns.v * ns.v"),
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ 'a'|center(9999999999) }}",
        "{{ 'a'.ljust(9999999999) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d'|format(9999999999, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ range(100000)|map('string')|join('a' * 1000000) }}",
        "{{ range(10000000000)|list }}",
        "{{ lipsum(99999999) }}",
        "{% for a in range(20) %}{{ 'a' * 1000000 }}{% endfor %}",
    ],
)
def test_no_template_runs_away(template: str) -> None:
    with pytest.raises(BitsmithError, match="give another one"):
        HASTY.render(template, MESSAGES, special=SPECIAL)


def test_a_stopped_template_leaves_the_next_one_alone() -> None:
    renderer = TemplateRenderer(seconds=1)
    with pytest.raises(FileError, match="takes more than 1 s, and was stopped"):
        renderer.render(ENDLESS, MESSAGES, special=SPECIAL)
    assert renderer.render("{{ messages|length }}", MESSAGES, special=SPECIAL) == "4"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 'hello, user %s' % 'x' }}", "hello, user x"),
        ("{{ '{:>1200}'.format('r')|length }}", "1200"),
        ("{{ ('ab' * 3000).replace('a', 'c' * 2000)|length }}", str(3000 * 2001)),
        ("{{ '%*d'|format(1500, 1)|length }} {{ ('a' * 5)|center(1500)|length }}", "1500 1500"),
    ],
)
def test_legal_templates_are_not_refused_by_guess(template: str, expected: str) -> None:
    assert render(template, MESSAGES, special=SPECIAL) == expected


def test_the_process_has_no_files_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    task = tmp_path / "task.py"
    task.write_text(
        "import os\n"
        "def answer(request):\n"
        "    try:\n        opened = open('/etc/passwd').read()\n"
        "    except OSError as error:\n        opened = type(error).__name__\n"
        "    return {'opened': opened, 'environment': dict(os.environ)}\n"
    )
    reply = LimitedProcess(task).ask({})
    assert reply["opened"] == "OSError"
    assert reply["environment"] == {}


def test_interrupting_ends_the_process(tmp_path: Path) -> None:
    """SIGTERM in the middle of an endless template: the command ends at once and leaves no process."""
    code = (
        "import signal, sys\n"
        "from bitsmith.models.tokenizer.chat import TemplateRenderer\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "renderer = TemplateRenderer(seconds=100)\n"
        "renderer.render('ready', [], special={})\n"
        "print(renderer._process._running[0].pid, flush=True)\n"
        f"renderer.render({ENDLESS!r}, [], special={{}})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.terminate()
        assert parent.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_long_conversations_fit_the_bounds() -> None:
    template = (
        "{% for m in messages %}{% if loop.index0 == messages|length - 1 %}last{% endif %}"
        "{% if messages[loop.index0 - 1].role == m.role %}{{ m.content|trim|length }}{% endif %}"
        "{{ m.role ~ '\n' }}{% endfor %}"
    )
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    long = MESSAGES * 500
    assert render(template, long, special={}) == plain.render(messages=long)


def test_no_template(tmp_path: Path) -> None:
    reference = Path(str(files("bitsmith") / "reference"))
    (tmp_path / "tokenizer.json").write_bytes((reference / "tokenizer.json").read_bytes())
    with pytest.raises(UnsupportedError, match="no chat template"):
        Tokenizer.from_folder(tmp_path).chat(MESSAGES)
