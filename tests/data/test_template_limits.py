"""Chat templates of other people: what they may take, and that those within the limits write what
transformers writes without any.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
import trl
from tiny import tiny_tokenizer
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from prefloop.data import rendering, template_costs
from prefloop.data.chat import CHATML, ChatFormat
from prefloop.data.encode import Encoder
from prefloop.data.template_limits import LimitedEnvironment
from prefloop.errors import DataError, ModelError
from prefloop.records import Message

NEEDS, PADS, NUMBER = (
    "far more than a conversation of this length needs",
    "it pads a text",
    "a thousand digits",
)
HUNGRY = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": NEEDS,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": (
        NEEDS
    ),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% block a %}{{ self.a() }}{% endblock %}": "recursion",
    "{{ 'a' * 2000000000 }}": NEEDS,
    "{{ [1] * 2000000000 }}": NEEDS,
    "{{ 10 ** 1000000000 }}": NUMBER,
    "{{ ('f' * 100000)|int(0, 16) }}": NUMBER,
    "{{ 5|round(-1000000000) }}": NUMBER,
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}": (  # noqa: E501
        NEEDS
    ),
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}": (  # noqa: E501
        NEEDS
    ),
    "{% set a %}aaaa{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40: NEEDS,
    "{% set a = [1] %}" + "{% set a = [a, a, a] %}" * 40 + "{{ a }}": NEEDS,
    "{% set a = {'x': 1} %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a|tojson }}": NEEDS,
    "{% set a = namespace(x=1) %}" + "{% set a = namespace(x=a, y=a) %}" * 60 + "{{ a }}": (
        "writes a namespace"
    ),
    "{% macro m(n) %}{{ m(n - 1, varargs, varargs) if n else varargs }}{% endmacro %}{{ m(60, 1, 1) }}": (  # noqa: E501
        NEEDS
    ),
    "{{ '%2000000000d' % 1 }}": PADS,
    "{{ '%*d' % (2000000000, 1) }}": PADS,
    "{{ '%2000000000d'|format(1) }}": PADS,
    "{{ '{:2000000000}'.format(1) }}": PADS,
    "{{ '{:{}}'.format(1, 2000000000) }}": PADS,
    "{{ ('{0}' * 9999).format('a' * 99999) }}": NEEDS,
    "{{ 'a'.ljust(2000000000) }}": NEEDS,
    "{{ 'a'|center(2000000000) }}": NEEDS,
    "{{ ('a' * 99999).replace('a', 'a' * 99999) }}": NEEDS,
    "{{ ('a' * 99999)|replace('a', 'a' * 99999) }}": NEEDS,
    "{{ ('a' * 99999).join(range(99999)|map('string')) }}": NEEDS,
    "{{ range(99999)|map('center', 99999)|join }}": NEEDS,
    "{{ range(99999)|map(attribute='no', default='a' * 99999)|sort }}": NEEDS,
    "{{ dict.fromkeys(range(99999), 'a' * 99999) }}": NEEDS,
    "{{ [[1], [2]]|sum(start=[]) }}": "something else than numbers",
    "{{ [1]|batch(2000000000, 0)|list }}": NEEDS,
    "{{ [1]|slice(2000000000)|list }}": NEEDS,
    "{{ ('\n' * 99999)|indent(99999) }}": NEEDS,
    "{{ [1]|tojson(indent=2000000000) }}": NEEDS,
    "{{ (1).to_bytes(2000000000, 'big') }}": "int.to_bytes",
    "{{ '\t'.expandtabs(2000000000) }}": "str.expandtabs",
    "{{ lipsum(99999) }}": "undefined",
    "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}": NEEDS,
    "{% macro m() %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endmacro %}{% set y = m() %}": NEEDS,
    "x" * 300_000: "300,000 characters",
}
Talk = list[dict[str, Any]]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "One of them."}},
        },
    },
}
TALKS: tuple[Talk, ...] = (
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ],
    [
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Add.",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "3"},
    ],
)


def long_talk(calls: int) -> Talk:
    """A question that is answered after so many calls of a tool."""
    question, call, result, answer = TALKS[-1]
    return [question, *[call, result] * calls, answer]


def made(template: str) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path, tokenizer.chat_template = "hungry", template
    return ChatFormat.load(tokenizer)


@pytest.mark.parametrize("template", HUNGRY, ids=range(len(HUNGRY)))
def test_a_template_that_takes_without_measure_is_refused_when_it_is_loaded(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_costs, "BUDGET", 1 << 22)
    with pytest.raises(
        ModelError, match=f"^hungry: the model's chat template refuses it: .*{HUNGRY[template]}"
    ):
        made(template)


@pytest.mark.parametrize("template", [t for t in HUNGRY if len(t) < 5000][::4])
def test_a_row_that_such_a_template_is_hungry_on_is_named(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_costs, "BUDGET", 1 << 22)
    chat = made(
        "{% if messages[0].content == 'bad' %}" + template + "{% else %}" + CHATML + "{% endif %}"
    )
    encoder = Encoder(chat, 500)
    with pytest.raises(DataError, match=r"row '7' .*the model's chat template refuses it"):
        encoder.prompt("7", [Message("user", "bad")])
    assert encoder.prompt("8", [Message("user", "good")])


def test_marked_turns_are_rendered_within_the_limits_too() -> None:
    chat = made(
        CHATML
        + "{% if messages|length > 2 %}{% generation %}{{ 'a' * 2000000000 }}{% endgeneration %}{%"
        " endif %}"
    )
    with pytest.raises(DataError, match=NEEDS):
        chat.renderer.render_marked(
            [Message("user", "a"), Message("assistant", "b"), Message("user", "c")], []
        )


@pytest.mark.parametrize("call", ["render", "render_marked", "ids"])
def test_a_machine_that_is_out_of_memory_is_no_fault_of_the_template(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    renderer = made(CHATML).renderer
    monkeypatch.setattr(rendering, "render_jinja_template", full)
    monkeypatch.setattr(type(renderer.tokenizer), "apply_chat_template", full)
    monkeypatch.setattr(type(renderer.tokenizer), "__call__", full)
    with pytest.raises(MemoryError):
        {
            "render": lambda: renderer.render([Message("user", "a")], [], generate=True),
            "render_marked": lambda: renderer.render_marked([Message("user", "a")], []),
            "ids": lambda: renderer.ids("a"),
        }[call]()


def test_what_a_template_may_take_grows_with_the_conversation() -> None:
    chat = made(
        "{% for m in messages %}" + "{% set x = m.content ~ '' %}" * 20 + "{% endfor %}" + CHATML
    )
    long = Message("user", "A question. " * 500_000)
    assert long.content in chat.renderer.prompt([long], [])


def test_the_sandbox_of_transformers_is_the_limited_one() -> None:
    """Also where a library renders by itself, as lm-eval does."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'a' * 2000000000 }}"
    with pytest.raises(jinja2.TemplateRuntimeError, match=NEEDS):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


PUBLISHED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
OF_PARTS = ("llava_next.jinja", "llava_next_training.jinja")
"""Those that take contents made of parts alone, which no conversation here has."""


def written(
    kind: type, source: str, talks: Iterable[Talk], monkeypatch: pytest.MonkeyPatch
) -> list[str | None]:
    """What a template writes of each talk in the sandbox ``kind``; ``None`` where the template
    itself, or Python, refuses it.
    """
    monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", kind)
    chat_template_utils._compile_jinja_template.cache_clear()
    found: list[str | None] = []
    for talk in talks:
        try:
            texts, spans = render_jinja_template(
                [talk],
                tools=[TOOL] if len(talk) > 3 else None,
                chat_template=source,
                return_assistant_tokens_mask="{% generation" in source,
                bos_token="<s>",
                eos_token="</s>",
            )
            found.append(f"{texts} {spans}")
        except template_costs.OverLimit:
            raise
        except Exception:  # Gemma's want no system turn, others no arguments that are no text
            found.append(None)
    chat_template_utils._compile_jinja_template.cache_clear()
    return found


@pytest.mark.slow
def test_published_templates_write_what_they_write_without_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(PUBLISHED) > 40
    for path in PUBLISHED:
        source, talks = path.read_text(), (*TALKS, long_talk(20))
        known = written(jinja2.sandbox.ImmutableSandboxedEnvironment, source, talks, monkeypatch)
        assert written(LimitedEnvironment, source, talks, monkeypatch) == known, path.name
        assert any(known) or path.name in OF_PARTS, path.name


def test_a_thousand_calls_of_a_template_that_slices_the_turns_at_each_are_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = next(path for path in PUBLISHED if path.name == "gptoss.jinja").read_text()
    (text,) = written(LimitedEnvironment, source, [long_talk(1000)], monkeypatch)
    assert text is not None and text.count("to=functions.add") == 1000
