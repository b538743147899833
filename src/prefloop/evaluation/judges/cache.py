"""Verdicts and grades on disk: a JSON line each, flushed as it arrives, so that a killed evaluation
goes on where it stopped.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Generic

from prefloop.base.sealed import DIGEST, digest
from prefloop.errors import DataError
from prefloop.evaluation.judges.assessor import A, Assessor, OnAnswer, Q
from prefloop.evaluation.judges.tally import Tally
from prefloop.evaluation.judges.verdict import Grade, Verdict

_LINE_START = b'{"key": "'


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
        row = json.loads(json.dumps(row))  # as it is read: tuples are lists
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
        written = torn.rstrip(b"\0")  # a power cut may leave zeros after the last written byte
        for number, line in enumerate(lines, start=1):
            key, verdict = self._parse(line, number)
            self._answers[key] = verdict
        if torn:
            # Only what can be the start of a stored line is cut off: another file that was named by
            # mistake keeps its last line.
            if not written.startswith(_LINE_START[: len(written)]):
                raise self._foreign(len(lines) + 1)
            with path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def _parse(self, line: bytes, number: int) -> tuple[str, Verdict | Grade]:
        try:
            row = json.loads(line)
            if row.pop(DIGEST, None) not in (None, digest(row)):  # earlier versions wrote none
                raise self._foreign(number)
            score = float("nan") if row["score"] is None else float(row["score"])
            answer: Verdict | Grade
            if "orders_agree" in row:
                by_order = tuple(map(float, row.get("by_order", ())))
                answer = Verdict(score, row["orders_agree"], by_order=by_order)
            else:
                answer = Grade(score, {name: float(part) for name, part in row["parts"].items()})
            return str(row["key"]), replace(
                answer,
                raw=tuple(row["raw"]),
                unparsable=int(row["unparsable"]),
                prompt_tokens=int(row.get("prompt_tokens", 0)),
                completion_tokens=int(row.get("completion_tokens", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"verdict cache {self.path}, line {number}: not a stored verdict, or damaged; "
            "delete that line, or name another file for the cache"
        )


class Cached(Generic[Q, A]):
    """A judge or a grader that is asked only what the cache does not hold; ``tally`` counts where
    the answers came from and stops one that cannot be used.
    """

    def __init__(self, assessor: Assessor[Q, A], cache: VerdictCache) -> None:
        self.assessor: Assessor[Q, A] = assessor
        self.cache = cache
        self.tally = Tally(assessor.name, assessor.prices, cache.path, assessor.valid)

    def ask(self, questions: Sequence[Q], on_answer: OnAnswer[A] | None = None) -> list[A]:
        """Answers in the order of ``questions``; repeated questions are asked once.

        Each new answer is stored as it arrives, before it is counted. One that failed is passed on
        and not stored.
        """
        keys = self.assessor.keys(questions)
        indices: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            indices.setdefault(key, []).append(index)
        answers: dict[str, A] = {
            key: answer  # type: ignore[misc]  # a key tells verdicts from grades
            for key in indices
            if (answer := self.cache.get(key)) is not None
        }
        self.tally.remembered(answers.items(), repeats=len(keys) - len(indices))

        def report(key: str) -> None:
            for index in indices[key] if on_answer else ():
                on_answer(index, answers[key])  # type: ignore[misc]

        for key in answers:
            report(key)
        new = [key for key in indices if key not in answers]

        def arrived(index: int, answer: A) -> None:
            key = new[index]
            answers[key] = answer
            if not answer.failed:
                self.cache.put(key, answer)
            report(key)
            self.tally.asked(key, answer)

        self.assessor.ask([questions[indices[key][0]] for key in new], arrived)
        self.tally.finished()
        return [answers[key] for key in keys]
