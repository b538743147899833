"""Verdicts on disk: a JSON line each, flushed as it is given, so that a killed evaluation goes on
where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from prefloop.base.sealed import DIGEST, digest
from prefloop.data.replies import Reply, same_as
from prefloop.errors import DataError
from prefloop.evaluation.judges.tally import Tally
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message, Prompt, identity

_LINE_START = b'{"key": "'
A = TypeVar("A", Verdict, Grade)
OnAnswer = Callable[[int, A], None]


def verdict_key(
    judge: str, prompt: Sequence[Message], a: Reply, b: Reply, reference: str = ""
) -> str:
    """sha256 of everything that determines a verdict: the judge's fingerprint, the conversation,
    both responses in this order, a reference.
    """
    return _sha256(
        [judge, identity(prompt), same_as(a), same_as(b), *([reference] if reference else [])]
    )


def grade_key(grader: str, prompt: Prompt, response: Reply) -> str:
    """sha256 of everything that determines a grade: the grader's fingerprint, the prompt with its
    id and ``meta``, the response.
    """
    return _sha256([grader, prompt.id, identity(prompt.prompt), prompt.meta, same_as(response)])


def _sha256(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """A JSONL file of verdicts and grades by key, used by one process at a time; without a path
    they are kept in memory.

    Every ``put`` appends one line and flushes it. A last line torn by a kill is dropped when the
    file is opened. A file that holds anything else is left untouched and raises ``DataError``
    naming the line.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._answers: dict[str, Verdict | Grade] = {}
        self._lock = threading.Lock()
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._load(self.path)
        except OSError as error:
            raise DataError(
                f"verdict cache {self.path}: {error.strerror}; give a file that can be written"
            ) from None

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Verdict | Grade:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Verdict | Grade | None:
        """The stored answer, or ``None``."""
        return self._answers.get(key)

    def put(self, key: str, answer: Verdict | Grade) -> None:
        """Store an answer; it has reached the operating system when this returns."""
        if answer.failed:
            raise ValueError("a failed question has no answer to keep")
        with self._lock:
            if self.path is not None:
                self._append(self.path, key, answer)
            self._answers[key] = answer

    def _append(self, path: Path, key: str, answer: Verdict | Grade) -> None:
        row = {"key": key, **asdict(answer)}
        del row["failed"]
        row.pop("grades", None)  # grades have lines of their own
        if answer.score != answer.score:  # JSON has no NaN
            row["score"] = None
        row = json.loads(json.dumps(row))  # as it will be read
        row[DIGEST] = digest(row)
        try:
            with path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise DataError(f"verdict cache {path}: cannot be written ({error.strerror})") from None

    def _load(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        lines = content.split(b"\n")
        torn = lines.pop()
        written = torn.rstrip(b"\0")  # a power cut may leave a file longer than what had reached it
        for number, line in enumerate(lines, start=1):
            key, verdict = self._parse(line, number)
            self._answers[key] = verdict
        if torn:
            # Only what can be the start of a line of ours is cut off: a file passed by mistake
            # keeps its last line.
            if not written.startswith(_LINE_START[: len(written)]):
                raise self._foreign(len(lines) + 1)
            with path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def _parse(self, line: bytes, number: int) -> tuple[str, Verdict | Grade]:
        try:
            row = json.loads(line)
            if row.pop(DIGEST, None) not in (
                None,
                digest(row),
            ):  # those of earlier versions have none
                raise self._foreign(number)
            score = float("nan") if row["score"] is None else float(row["score"])
            known: dict[str, Any] = {
                "raw": tuple(row["raw"]),
                "unparsable": int(row["unparsable"]),
                "prompt_tokens": int(row.get("prompt_tokens", 0)),
                "completion_tokens": int(row.get("completion_tokens", 0)),
            }
            if "orders_agree" in row:
                by_order = tuple(map(float, row.get("by_order", ())))
                return str(row["key"]), Verdict(
                    score, row["orders_agree"], by_order=by_order, **known
                )
            return str(row["key"]), Grade(
                score, {name: float(part) for name, part in row["parts"].items()}, **known
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"verdict cache {self.path}, line {number}: not a stored verdict, or damaged; "
            "delete that line, or name another file for the cache"
        )


def through_cache(
    cache: VerdictCache,
    tally: Tally,
    keys: Sequence[str],
    ask: Callable[[list[int], OnAnswer[A]], object],
    on_answer: OnAnswer[A] | None = None,
) -> list[A]:
    """Answers to the questions called ``keys``, from the cache or from ``ask(indices, on_answer)``;
    repeated questions are asked once.

    Each new answer is stored as it arrives, before it is counted. One that failed is passed on and
    not stored.
    """
    places: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    out: dict[str, A] = {}

    def arrived(key: str, answer: A) -> None:
        out[key] = answer
        for index in places[key] if on_answer else ():
            on_answer(index, answer)  # type: ignore[misc]

    known: list[tuple[str, A]] = [(key, cache[key]) for key in places if key in cache]  # type: ignore[misc]
    new = [key for key in places if key not in cache]
    tally.remembered(known, repeats=len(keys) - len(places))
    for key, answer in known:
        arrived(key, answer)

    def answered(index: int, answer: A) -> None:
        if not answer.failed:
            cache.put(new[index], answer)
        arrived(new[index], answer)
        tally.asked(new[index], answer)

    ask([places[key][0] for key in new], answered)
    tally.finished()
    return [out[key] for key in keys]
