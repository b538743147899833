"""The modes of judging: two responses against each other, one response from 1 to 10, one response
by the criteria of a rubric.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.replies import Reply
from prefloop.evaluation.judges.prompts import (
    PREFERENCE,
    QUALITY,
    Question,
    question,
    reply_object,
    spoken,
)
from prefloop.evaluation.judges.rubric import Criterion
from prefloop.records import Message

LOW, HIGH = 1, 10
_SCALE = (
    f"Grades are whole numbers from {LOW} to {HIGH}: {LOW} is useless, wrong or harmful, 5 is"
    f" usable with clear faults, {HIGH} leaves nothing to wish for. Use the whole range."
)
_WHOLE = {"type": "integer", "enum": list(range(LOW, HIGH + 1))}
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_GRADE = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_NAMED = re.compile(r"\[\[\s*([^\[\]:]+?)\s*:\s*([^\[\]]*?)\s*\]\]")
_VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
_CHOICES = {"A": 1.0, "B": 0.0, "tie": 0.5}


def _schema(**answer: Any) -> dict[str, Any]:
    """Schema of an object with the reasons first and then the answer."""
    properties = {"reasons": {"type": "string"}, **answer}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Pairwise:
    """Which of two responses is better. In a reply as text the last marker counts: a judge may
    quote the format before it decides.
    """

    criteria: str = PREFERENCE
    schema = _schema(verdict={"type": "string", "enum": list(_CHOICES)})
    valid = (
        '{"reasons": "…", "verdict": "A"} with A, B or tie, or a text that ends in [[A]], [[B]] or'
        " [[C]] (a tie)"
    )
    """Example of a reply that can be read, for messages."""

    def question(
        self, prompt: Sequence[Message], a: Reply, b: Reply, reference: str = ""
    ) -> Question[float]:
        """Asks whether ``a``, shown first, or ``b`` is the better response to ``prompt``."""
        task = (
            "You are an impartial judge. You are shown a conversation and two candidate responses"
            " to its last turn."
        )
        fair = (
            f"{self.criteria}\nThe order of the two responses is random and must not influence you."
        )
        return question(self, task, fair, prompt, [("RESPONSE A", a), ("RESPONSE B", b)], reference)

    def instruction(self, structured: bool) -> str:
        if structured:
            return (
                'Answer with a JSON object of two fields: "reasons", your comparison in a few'
                ' sentences, and then "verdict": "A" if response A is better, "B" if response B is'
                ' better, "tie" if neither is.'
            )
        return (
            "First explain your comparison in a few sentences. Then give your verdict on the last"
            " line, in exactly this form: [[A]] if response A is better, [[B]] if response B is"
            " better, [[C]] for a tie."
        )

    def reask(self, structured: bool) -> str:
        if structured:
            return (
                'Your reply held no verdict. Reply with the JSON object alone, "reasons" in one'
                ' sentence and "verdict".'
            )
        return (
            "Your reply held no verdict. Reply with exactly one of [[A]], [[B]] or [[C]] (a tie)"
            " and nothing else, according to your comparison."
        )

    def parse(self, reply: str) -> float | None:
        """1 for A, 0 for B, 0.5 for a tie."""
        answer = reply_object(reply)
        if answer is not None:
            choice = answer.get("verdict")
            return _CHOICES.get(choice) if isinstance(choice, str) else None
        markers = _VERDICT.findall(spoken(reply))
        return _VERDICTS[markers[-1]] if markers else None


@dataclass(frozen=True)
class Grading:
    """One grade from 1 to 10 for one response."""

    criteria: str = QUALITY
    schema = _schema(grade=_WHOLE)
    valid = '{"reasons": "…", "grade": 7}, or a text that ends in [[7]]'

    def question(
        self, prompt: Sequence[Message], response: Reply, reference: str = ""
    ) -> Question[dict[str, float]]:
        """Asks how good ``response`` to ``prompt`` is."""
        task = (
            "You are an impartial judge. You are shown a conversation and a response to its last"
            " turn."
        )
        return question(
            self, task, f"{self.criteria}\n{_SCALE}", prompt, [("RESPONSE", response)], reference
        )

    def instruction(self, structured: bool) -> str:
        if structured:
            return (
                'Answer with a JSON object of two fields: "reasons", your assessment in a few'
                ' sentences, and then "grade", a whole number.'
            )
        return (
            "First explain your assessment in a few sentences. Then give the grade on the last"
            " line, in exactly this form: [[7]]"
        )

    def reask(self, structured: bool) -> str:
        if structured:
            return (
                'Your reply held no grade. Reply with the JSON object alone, "reasons" in one'
                f' sentence and "grade", a whole number from {LOW} to {HIGH}.'
            )
        return (
            f"Your reply held no grade. Reply with one whole number from {LOW} to {HIGH} in double"
            " square brackets and nothing else."
        )

    def parse(self, reply: str) -> dict[str, float] | None:
        """The grade under the name ``grade``."""
        answer = reply_object(reply)
        if answer is not None:
            grade = answer.get("grade")
        else:
            markers = _GRADE.findall(spoken(reply))
            grade = _number(markers[-1]) if markers else None
        return {"grade": float(grade)} if grade is not None and _on_scale(grade) else None

    def total(self, parts: dict[str, float]) -> float:
        """The grade itself."""
        return parts["grade"]


@dataclass(frozen=True)
class Rubric:
    """A score from 1 to 10 for each criterion; the total is their mean by weight."""

    rubric: tuple[Criterion, ...]
    criteria: str = QUALITY

    @property
    def valid(self) -> str:
        scores = json.dumps({criterion.name: 7 for criterion in self.rubric}, ensure_ascii=False)
        return (
            f'{{"reasons": "…", "scores": {scores}}}, or a text that ends in'
            f" {' '.join(self._lines().split(chr(10)))}"
        )

    @property
    def schema(self) -> dict[str, Any]:
        names = [criterion.name for criterion in self.rubric]
        scores = {
            "type": "object",
            "properties": dict.fromkeys(names, _WHOLE),
            "required": names,
            "additionalProperties": False,
        }
        return _schema(scores=scores)

    def question(
        self, prompt: Sequence[Message], response: Reply, reference: str = ""
    ) -> Question[dict[str, float]]:
        """Asks how good ``response`` to ``prompt`` is by each criterion."""
        task = (
            "You are an impartial judge. You are shown a conversation and a response to its last"
            " turn."
        )
        lines = [
            f"- {c.name}: {c.description}" if c.description else f"- {c.name}" for c in self.rubric
        ]
        criteria = "\n".join(
            [self.criteria, "Score the response by each of these criteria alone:", *lines, _SCALE]
        )
        return question(self, task, criteria, prompt, [("RESPONSE", response)], reference)

    def instruction(self, structured: bool) -> str:
        if structured:
            return (
                'Answer with a JSON object of two fields: "reasons", your assessment in a few'
                ' sentences, and then "scores", an object with a whole number for each of'
                f" {self._names()}."
            )
        return (
            "First explain your assessment in a few sentences. Then give one line for each"
            f" criterion, in exactly this form:\n{self._lines()}\nwith the score in place of 7."
        )

    def reask(self, structured: bool) -> str:
        if structured:
            return (
                "Your reply held no full set of scores. Reply with the JSON object alone,"
                f' "reasons" in one sentence and "scores" with a whole number from {LOW} to {HIGH}'
                f" for each of {self._names()}."
            )
        return (
            "Your reply held no full set of scores. Reply with these lines and nothing else, with"
            " your scores in place of 7:\n" + self._lines()
        )

    def parse(self, reply: str) -> dict[str, float] | None:
        """The score of every criterion, by name; ``None`` where one is missing, unknown or off the
        scale.
        """
        names = {criterion.name.lower(): criterion.name for criterion in self.rubric}
        answer = reply_object(reply)
        scores: dict[Any, Any]
        if answer is not None:
            scores = answer["scores"] if isinstance(answer.get("scores"), dict) else {}
        else:
            scores = {name: _number(text) for name, text in _NAMED.findall(spoken(reply))}
        read = {names.get(name.lower(), ""): score for name, score in scores.items()}
        if read.keys() != set(names.values()) or not all(
            _on_scale(score) for score in read.values()
        ):
            return None
        return {name: float(read[name]) for name in names.values()}

    def total(self, parts: dict[str, float]) -> float:
        """Σ weight * score / Σ weight, from 1 to 10."""
        return sum(c.weight * parts[c.name] for c in self.rubric) / sum(
            c.weight for c in self.rubric
        )

    def _names(self) -> str:
        return ", ".join(
            json.dumps(criterion.name, ensure_ascii=False) for criterion in self.rubric
        )

    def _lines(self) -> str:
        return "\n".join(f"[[{criterion.name}: 7]]" for criterion in self.rubric)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else None


def _on_scale(value: Any) -> bool:
    """Whether ``value`` is a whole number on the scale; ``True`` is not one."""
    return type(value) is int and LOW <= value <= HIGH
