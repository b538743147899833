"""What the policies answered: every evaluation prompt side by side, and the same prompts over the
steps of training.

The page holds all of it as text that the template escapes; its script only shows, hides and sorts
what is there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from prefloop.artifacts.codec import finite
from prefloop.artifacts.results import BASELINE, RESPONSES, SCORES, GoldScores, rivals
from prefloop.config.algorithms import POLICIES
from prefloop.data.readable import Part, parts, prompt_parts
from prefloop.records import (
    Conversation,
    Message,
    SampledConversation,
    SampledPrompt,
    ScoredResponse,
    TrainingSample,
)
from prefloop.report.inputs import artifact_file, read_rows
from prefloop.report.page import label
from prefloop.report.summary import Summary

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
    sampled, per_prompt, total = _from_artifacts(run_dir, summary, notes) if run_dir else ([], 1, 0)
    if not sampled:
        sampled, total = summary.samples[:MOST_PROMPTS], len(summary.samples)
    if not sampled:
        return None
    shown = [_shown(conversation) for conversation in sampled]
    answers = [answer for row in shown for answer in row.answers]
    policies = list(dict.fromkeys(answer.policy for answer in answers))
    others = [(name, label(name)) for name in rivals(policies) if BASELINE in policies]
    scores = [
        (name, text)
        for name, text in _SCORES.items()
        if any(getattr(a, name) is not None for a in answers)
    ]
    return ConversationSection(shown, total, per_prompt, others, scores)


def _from_artifacts(
    run_dir: Path, summary: Summary, notes: list[str]
) -> tuple[list[SampledConversation], int, int]:
    """Conversations, responses a prompt, prompts in all; policies without responses of this very
    run are left out.
    """
    scores = artifact_file(run_dir, summary, "judge", SCORES, notes)
    gold = {row.id: row.gold for row in read_rows(scores, GoldScores, notes)}
    sampled = {}
    for policy in summary.results:
        file = artifact_file(run_dir, summary, f"respond-{policy}", RESPONSES, notes)
        sampled[policy] = {row.id: row for row in read_rows(file, SampledPrompt, notes)}
    prompts = next((rows for rows in sampled.values() if rows), {})

    def first(policy: str, row: SampledPrompt) -> ScoredResponse:
        score, *_ = gold[row.id].get(policy) or [None] if row.id in gold else [None]
        return dataclasses.replace(row.responses[0], gold=score)

    found = [
        SampledConversation(
            id,
            prompt.prompt,
            {
                policy: first(policy, rows[id])
                for policy, rows in sampled.items()
                if id in rows and rows[id].responses
            },
        )
        for id, prompt in list(prompts.items())[:MOST_PROMPTS]
    ]
    return found, max((len(row.responses) for row in prompts.values()), default=1), len(prompts)


def _shown(conversation: SampledConversation) -> ShownConversation:
    turns = _turns(conversation.prompt)
    answers = [_answer(policy, response) for policy, response in conversation.responses.items()]
    return ShownConversation(conversation.id, turns, _asked(turns), answers)


def _answer(policy: str, response: ScoredResponse) -> ShownResponse:
    text, cut = _short(response.text)
    said, left = _said(response.turns)
    return ShownResponse(
        policy,
        text,
        said,
        left if said else cut,
        finite(response.gold),
        finite(response.reward),
        len(response.text.split()),
        response.finished,
    )


def _short(text: str) -> tuple[str, int]:
    return text[:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)


def _said(turns: list[Message]) -> tuple[list[Part], int]:
    """The parts of an answer that has turns, and how many characters are left out at its end."""
    room, shown = MOST_CHARACTERS, []
    for part in parts(turns):
        if room > 0:
            shown.append(Part(part.who, part.text[:room]))
        room -= len(part.text)
    return shown, max(0, -room)


def _turns(prompt: Conversation) -> list[Part]:
    """The tools and turns of a prompt."""
    return [Part(part.who, _short(part.text)[0]) for part in prompt_parts(prompt)]


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
            file = artifact_file(run_dir, summary, slot, "samples.jsonl", notes, stage.name)
            rows = list(read_rows(file, TrainingSample, notes))
            grown = _by_prompt(rows) or _by_step(rows)
            found += [(stage.name, grown)] if grown else []
    return found


def _by_prompt(rows: list[TrainingSample]) -> list[Growth]:
    """Prompts that training sampled more than once, those seen most first."""
    grouped: dict[str, list[TrainingSample]] = {}
    for row in rows:
        grouped.setdefault(row.id, []).append(row)
    repeated = sorted((rows for rows in grouped.values() if len(rows) > 1), key=len, reverse=True)
    return [
        Growth(
            _last_turn(rows[0]),
            *_whole(rows[0]),
            [_step(row, "") for row in _spread(rows, _MOST_STEPS)],
        )
        for rows in repeated[:_MOST_GROWN]
    ]


def _by_step(rows: list[TrainingSample]) -> list[Growth]:
    grouped: dict[int, list[TrainingSample]] = {}
    for row in rows:
        grouped.setdefault(row.step, []).append(row)
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


def _last_turn(row: TrainingSample) -> str:
    turns = _turns(row.prompt)
    return turns[_asked(turns)].text if turns else ""


def _whole(row: TrainingSample) -> tuple[list[Part], int]:
    turns = _turns(row.prompt)
    return (turns, _asked(turns)) if len(turns) > 1 else ([], 0)


def _step(row: TrainingSample, prompt: str) -> Step:
    response, _ = _short(row.response)
    return Step(row.step, prompt, response, finite(row.reward), finite(row.kl), row.finished)
