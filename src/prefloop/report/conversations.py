"""What the policies answered: every evaluation prompt side by side, and the same prompts over the
steps of training.

The page holds all of it as text that the template escapes; its script only shows, hides and sorts
what is there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from prefloop.config.algorithms import POLICIES
from prefloop.data.readable import Part, parts, prompt_parts
from prefloop.records import Prompt, Response, from_dict
from prefloop.report.inputs import artifact_file, number, read_rows
from prefloop.report.page import label
from prefloop.report.schema import BASELINE, Summary, rivals

MOST_PROMPTS = 1000
MOST_CHARACTERS = 4000
OPEN = 8
"""Conversations that are open from the start; the rest is one click away."""
_MOST_GROWN = 8
_MOST_STEPS = 6
_Item = TypeVar("_Item")
_SCORES = {"gold": "gold score", "reward": "reward"}


class ShownResponse(NamedTuple):
    """One response with what is known about it."""

    policy: str
    text: str
    said: list[Part]
    """Thoughts, calls, their results and texts, where the answer is more than its text."""
    cut: int
    """Characters left out at its end."""
    gold: float | None
    reward: float | None
    words: int
    finished: bool | None


class ShownConversation(NamedTuple):
    """One prompt and the first response of every policy."""

    id: str
    turns: list[Part]
    asked: int
    """Which of the turns the answers are about: the last one of the user."""
    answers: list[ShownResponse]


class ConversationSection(NamedTuple):
    """All conversations, how many there were, and what they can be sorted by."""

    shown: list[ShownConversation]
    total: int
    per_prompt: int
    rivals: list[tuple[str, str]]
    scores: list[tuple[str, str]]


class Step(NamedTuple):
    """A response at one step of training; its prompt where the group is not about one prompt."""

    step: int
    prompt: str
    text: str
    reward: float | None
    kl: float | None
    finished: bool | None


class Growth(NamedTuple):
    """Responses to one prompt over the steps of training, or of one step where no prompt came
    twice.
    """

    title: str
    turns: list[Part]
    """Of a prompt with more than the turn in the title, all of it."""
    asked: int
    """Which of them the title is."""
    steps: list[Step]


def section(run_dir: Path | None, summary: Summary, notes: list[str]) -> ConversationSection | None:
    """Every evaluation prompt from the artifacts of the run; the few in the summary where those are
    gone.
    """
    found, per_prompt, total = _from_artifacts(run_dir, summary, notes) if run_dir else ([], 1, 0)
    if not found:
        found, total = _from_summary(summary), len(summary.samples)
    if not found:
        return None
    policies = list(dict.fromkeys(answer.policy for row in found for answer in row.answers))
    others = [(name, label(name)) for name in rivals(policies) if BASELINE in policies]
    answers = [answer for row in found for answer in row.answers]
    scores = [
        (name, text)
        for name, text in _SCORES.items()
        if any(getattr(a, name) is not None for a in answers)
    ]
    return ConversationSection(found, total, per_prompt, others, scores)


def _from_artifacts(
    run_dir: Path, summary: Summary, notes: list[str]
) -> tuple[list[ShownConversation], int, int]:
    """Conversations, responses a prompt, prompts in all; policies without responses of this very
    run are left out.
    """
    gold = {
        str(row.get("id")): row.get("gold")
        for row in read_rows(artifact_file(run_dir, summary, "judge", "scores.jsonl", notes))
    }
    files = {
        policy: artifact_file(run_dir, summary, f"respond-{policy}", "responses.jsonl", notes)
        for policy in summary.results
    }
    rows = {
        policy: {str(row.get("id")): row for row in read_rows(file)}
        for policy, file in files.items()
    }
    prompts = next((known for known in rows.values() if known), {})
    found = [
        ShownConversation(
            id,
            turns := _turns(row),
            _asked(turns),
            [
                _answer(policy, _first(_item(gold.get(id), policy), "gold") | responses[0])
                for policy, known in rows.items()
                if (responses := _responses(known.get(id)))
            ],
        )
        for id, row in list(prompts.items())[:MOST_PROMPTS]
    ]
    return found, max((len(_responses(row)) for row in prompts.values()), default=1), len(prompts)


def _responses(row: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = _item(row, "responses")
    return (
        [response for response in found if isinstance(response, dict)]
        if isinstance(found, list)
        else []
    )


def _item(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, Mapping) else None


def _first(values: Any, name: str) -> dict[str, Any]:
    """The score of the first response under its name, where there is one."""
    return {name: values[0]} if isinstance(values, list) and values else {}


def _from_summary(summary: Summary) -> list[ShownConversation]:
    return [
        ShownConversation(
            sample.id,
            turns := _turns(sample.model_dump()),
            _asked(turns),
            [
                _answer(policy, response.model_dump())
                for policy, response in sample.responses.items()
            ],
        )
        for sample in summary.samples[:MOST_PROMPTS]
    ]


def _answer(policy: str, response: Mapping[str, Any]) -> ShownResponse:
    text = str(response.get("text") or "")
    shown, cut = _short(text)
    said, left = _said(text, response.get("turns"))
    finished = response.get("finished")
    return ShownResponse(
        policy,
        shown,
        said,
        left if said else cut,
        number(response, "gold"),
        number(response, "reward"),
        len(text.split()),
        None if finished is None else bool(finished),
    )


def _short(text: str) -> tuple[str, int]:
    return text[:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)


def _said(text: str, turns: Any) -> tuple[list[Part], int]:
    """The parts of an answer that has turns, and how many characters are left out at its end."""
    if not turns:
        return [], 0
    try:
        found = parts(from_dict(Response, {"text": text, "turns": turns}).turns)
    except ValueError:
        return [], 0
    room, shown = MOST_CHARACTERS, []
    for part in found:
        if room > 0:
            shown.append(Part(part.who, part.text[:room]))
        room -= len(part.text)
    return shown, max(0, -room)


def _turns(row: Mapping[str, Any]) -> list[Part]:
    """The tools and turns of a row's prompt; a prompt that is plain text is one turn of the
    user.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        return [Part("user", _short(str(prompt or ""))[0])]
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    try:
        found = prompt_parts(from_dict(Prompt, {"id": "", "prompt": prompt, **tools}).prompt)
    except ValueError:  # written by another version: what can be read of it
        messages = [message for message in prompt if isinstance(message, dict)]
        found = [Part(str(m.get("role", "user")), str(m.get("content") or "")) for m in messages]
    return [Part(part.who, _short(part.text)[0]) for part in found]


def _asked(turns: Sequence[Part]) -> int:
    """Where the last turn of the user stands; the last one of all where there is none."""
    users = [i for i, part in enumerate(turns) if part.who.partition(" ")[0] == "user"]
    return users[-1] if users else len(turns) - 1


def over_training(
    run_dir: Path | None, summary: Summary, notes: list[str]
) -> list[tuple[str, list[Growth]]]:
    """By stage, what training sampled of the same prompts over its steps, or step by step where
    none came twice.
    """
    if run_dir is None:
        return []
    found = []
    for stage in summary.stages:
        slot = stage.name.partition("-")[0]
        if slot in POLICIES:
            rows = [
                row
                for row in read_rows(
                    artifact_file(run_dir, summary, slot, "samples.jsonl", notes, stage.name)
                )
                if "step" in row
            ]
            grown = _by_prompt(rows) or _by_step(rows)
            found += [(stage.name, grown)] if grown else []
    return found


def _by_prompt(rows: list[dict[str, Any]]) -> list[Growth]:
    """Prompts that training sampled more than once, those seen most first."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row.get("id")), []).append(row)
    repeated = sorted((rows for rows in grouped.values() if len(rows) > 1), key=len, reverse=True)
    return [
        Growth(
            _last_turn(rows[0]),
            *_whole(rows[0]),
            [_step(row, "") for row in _spread(rows, _MOST_STEPS)],
        )
        for rows in repeated[:_MOST_GROWN]
    ]


def _by_step(rows: list[dict[str, Any]]) -> list[Growth]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(int(number(row, "step") or 0), []).append(row)
    return [
        Growth(
            f"Step {step}",
            [],
            0,
            [_step(row, _last_turn(row)) for row in grouped[step][:_MOST_STEPS]],
        )
        for step in _spread(sorted(grouped), _MOST_GROWN)
    ]


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most ``most`` items evenly spaced, the first and the last among them."""
    last = min(len(items), most) - 1
    return [items[round(i * (len(items) - 1) / max(1, last))] for i in range(last + 1)]


def _last_turn(row: Mapping[str, Any]) -> str:
    turns = _turns(row)
    return turns[_asked(turns)].text if turns else ""


def _whole(row: Mapping[str, Any]) -> tuple[list[Part], int]:
    turns = _turns(row)
    return (turns, _asked(turns)) if len(turns) > 1 else ([], 0)


def _step(row: Mapping[str, Any], prompt: str) -> Step:
    finished = row.get("finished")
    return Step(
        int(number(row, "step") or 0),
        prompt,
        _short(str(row.get("response") or ""))[0],
        number(row, "reward"),
        number(row, "kl"),
        None if finished is None else bool(finished),
    )
