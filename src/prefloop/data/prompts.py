"""Read the prompt of a row from the column that holds it, and compare the other columns that may
hold it.

An ``instruction`` is followed by its ``input`` or ``context``. Two columns that both hold a prompt
(``instruction`` and ``question``) refuse the row, unless one repeats the other. ``surroundings``
reads the columns around a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefloop.base.console import listed
from prefloop.data.check import BadRow, check_prompt, check_text
from prefloop.data.messages import is_messages, messages_of
from prefloop.data.row import Row
from prefloop.data.surroundings import around, says
from prefloop.data.transcripts import transcript_of
from prefloop.records import Conversation, Message

TEXTS = ("prompt", "question", "instruction", "query")
"""Columns that hold a prompt, the clearest names first."""
CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "trajectory")
"""Columns that hold turns."""
ANSWERS = ("response", "completion", "output", "answer")
"""Columns that hold an answer."""
_INPUTS = ("input", "context")
"""Columns that follow the instruction."""
_NO_INPUT = ("<noinput>", "<no input>")
"""Alpaca's mark of an instruction without an input."""


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds a row's prompt, as a text or as turns."""
    key = next(
        (key for key in TEXTS if row.get(key) is not None and not written_out(row, key)), None
    )
    key = key or next((key for key in CONVERSATIONS if row.get(key) not in (None, [], "")), None)
    if key is None and is_messages(row.get("context")):
        return "context"
    return key or ("input" if row.get("input") is not None else None)


def written_out(row: Mapping[str, Any], key: str) -> bool:
    """Whether a column is the other columns put together, with the answer at its end: the text that
    a trainer once read, and no prompt.
    """
    whole = row.get(key)
    if not isinstance(whole, str):
        return False
    asked = [
        words
        for name in TEXTS
        if name != key and isinstance(words := row.get(name), str) and words.strip()
    ]
    for answer in (row[name].strip() for name in ANSWERS if isinstance(row.get(name), str)):
        before = whole.rstrip().removesuffix(answer).rstrip()
        # A heading or a marker stands before the answer. Without that check, a question may just
        # end in a word that is its answer.
        ends = answer and whole.rstrip().endswith(answer) and before.endswith((":", "]", ">"))
        if ends and any(words.strip() in before for words in asked):
            return True
    return False


def prompt_of(row: Row, key: str | None = None) -> Conversation:
    """The conversation that a row's answers answer, with its system text, history and tools."""
    key = key or prompt_column(row) or "prompt"
    given = row.take(key)
    if key == "input" and isinstance(given, dict):
        return _openai_input(row, given)
    turns = turns_at(row, key, given)
    if key in TEXTS:
        turns = _with_input(row, key, turns)
        turns = _fuller(row, turns)
    prompt = around(row, turns)
    leave_prompts(row, key, prompt)
    check_prompt(prompt, key)
    return prompt


def leave_prompts(row: Row, key: str, turns: Sequence[Message]) -> None:
    """Leave out the other columns of a prompt that repeat it. Raises ``BadRow`` for one that asks
    something else.
    """
    for other in TEXTS:
        if other == key or not row.left(other):
            continue
        if not written_out(row, other) and not says(turns, row[other]):
            raise BadRow(
                other,
                f"is a second prompt next to '{key}', and nothing says how the two make one: write"
                " them into one column, name one 'system' where it stands in front, or rename it"
                f" (to '{other}_note') where it is no part of the prompt",
            )
        row.repeats(other)


def turns_at(row: Row, key: str, given: Any) -> list[Message]:
    """The turns of a prompt given as text (one user message, or the turns of a transcript) or as
    messages.
    """
    if isinstance(given, list):
        if (
            len(given) == 1
            and isinstance(given[0], dict)
            and isinstance(given[0].get("content"), str)
        ):
            # The only message may hold a whole templated conversation.
            transcript = transcript_of(given[0]["content"], f"{key}.0.content", row)
            if transcript is not None and (transcript.open or len(transcript.turns) > 1):
                return transcript.turns
        return messages_of(given, key, row)
    if isinstance(given, dict) and is_messages([given]):
        return messages_of([given], key, row)
    text = row.check_cell(check_text(given, key), key)
    transcript = transcript_of(text, key, row)
    if transcript is not None:
        return transcript.turns
    return [Message("user", check_text(row.without_begin(text), key))]


def raw_text(row: Row) -> str | None:
    """The text of the prompt's column, to see whether an answer repeats it."""
    key = prompt_column(row)
    value = row.get(key) if key else None
    return value if isinstance(value, str) else None


def conversation_of(row: Row, key: str) -> Conversation:
    """The turns of a column that holds a whole conversation, with system text, history and
    tools.
    """
    given = row.take(key)
    if isinstance(given, str):
        transcript = transcript_of(check_text(given, key), key, row, whole=True)
        if transcript is None:
            raise BadRow(key, "is text, expected a list of messages")
        if transcript.open:
            raise BadRow(key, "ends where the assistant should answer")
        return around(row, transcript.turns)
    return around(row, messages_of(given, key, row))


def _with_input(row: Row, key: str, turns: list[Message]) -> list[Message]:
    """The instruction with its input on a new line, as in LLaMA-Factory."""
    if key != "instruction":
        return turns
    for other in _INPUTS:
        if other in row and not is_messages(row[other]):
            text = row.optional(other)
            if text is not None and text.strip().casefold() in _NO_INPUT:
                row.say("inputs that say <noinput> read as none")
            elif text is not None:
                last = replace(turns[-1], content=f"{turns[-1].content}\n{text}")
                turns = [*turns[:-1], last]
    return turns


def _fuller(row: Row, turns: list[Message]) -> list[Message]:
    """The conversation of another column up to this prompt, where the prompt is its last question.
    It says more than the prompt alone.
    """
    for key in CONVERSATIONS:
        value = row.get(key)
        if is_messages(value):
            whole = messages_of(value, key, row)
            end = max(
                (i for i, turn in enumerate(whole, start=1) if turn.role == "user"), default=0
            )
            if end > len(turns) and same(whole[end - len(turns) : end], turns):
                if end == len(whole):
                    row.use(key)
                return whole[:end]
    return turns


def same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether turns say the same. Blanks at their ends do not count, nor which turns are learnt."""
    return len(some) == len(others) and all(
        _content(one) == _content(other) for one, other in zip(some, others, strict=True)
    )


def last_answer(turns: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Split off the assistant's turns at the end of a conversation. The second part is empty where
    somebody else speaks last.
    """
    start = len(turns)
    while start and turns[start - 1].role == "assistant":
        start -= 1
    return list(turns[:start]), list(turns[start:])


def _content(turn: Message) -> tuple[Any, ...]:
    calls = [(call.name, call.arguments) for call in turn.tool_calls]
    return turn.role, turn.content.strip(), (turn.reasoning_content or "").strip(), calls


def _openai_input(row: Row, given: dict[str, Any]) -> Conversation:
    """``{"messages": […], "tools": […]}`` of OpenAI's preference files."""
    if given.get("messages") is None:
        raise BadRow("input.messages", f"is missing (found: {listed(given) or 'nothing'})")
    prompt = around(row, messages_of(given["messages"], "input.messages", row), given.get("tools"))
    row.message_keys |= dict.fromkeys(
        f"input.{key}" for key in given if key not in ("messages", "tools")
    )
    check_prompt(prompt, "input.messages")
    return prompt


def context(prompt: Sequence[Message]) -> Conversation:
    """The prompt with assistant turns that are read and not imitated, since the file says that they
    are part of the prompt.
    """
    turns = [replace(turn, learn=False) if turn.role == "assistant" else turn for turn in prompt]
    return Conversation(turns, Conversation.of(prompt).tools)
