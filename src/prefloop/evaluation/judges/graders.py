"""What gives a single response a score: a user's Python function, or anything else with ``grade``;
and a cache around it.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Protocol

from prefloop.data.replies import Reply, text_of, turns_of
from prefloop.errors import ConfigError, JudgeError, nearest
from prefloop.evaluation.judges.cache import VerdictCache, grade_key, through_cache
from prefloop.evaluation.judges.tally import Tally, valid_of
from prefloop.evaluation.judges.usage import Usage
from prefloop.evaluation.judges.verdict import Grade
from prefloop.records import Prompt

Graded = tuple[Prompt, Reply]
"""One question to a grader: prompt and response."""
OnGrade = Callable[[int, Grade], None]


class Grader(Protocol):
    """Gives one response a score; higher is better. It may have ``grade_many(items, on_grade)``,
    ``fingerprint()``.
    """

    name: str

    def grade(self, prompt: Prompt, response: Reply) -> float:
        """Score of ``response``: its text, or the ``Response`` where it has turns."""
        ...


def grade_many(
    grader: Grader, items: Sequence[Graded], on_grade: OnGrade | None = None
) -> list[Grade]:
    """Grades in the order of ``items``, through the grader's own ``grade_many`` where it has one.

    ``on_grade(index, grade)`` is called once for each, in the calling thread, as grades arrive.
    """
    batched: Callable[[Sequence[Graded], OnGrade | None], list[Grade]] | None = getattr(
        grader, "grade_many", None
    )
    if batched is not None:
        return batched(items, on_grade)
    grades = []
    for index, (prompt, response) in enumerate(items):
        grades.append(Grade(grader.grade(prompt, response)))
        if on_grade:
            on_grade(index, grades[-1])
    return grades


class CachedGrader:
    """A grader that looks in a ``VerdictCache`` first; ``tally`` counts where grades came from and
    stops a judge that cannot be used.
    """

    def __init__(self, grader: Grader, cache: VerdictCache) -> None:
        self.grader, self.cache, self.name = grader, cache, grader.name
        self.tally = Tally(
            grader.name, getattr(grader, "prices", None), cache.path, valid_of(grader)
        )

    def grade(self, prompt: Prompt, response: Reply) -> float:
        """The stored score, or the grader's, which is stored. Raises ``JudgeError`` when there is
        none.
        """
        grade = self.grade_many([(prompt, response)])[0]
        if not math.isfinite(grade.score):
            raise JudgeError(
                grade.failed
                or f"judge {self.name}: its reply on prompt '{prompt.id}' held no grade"
            )
        return grade.score

    def grade_many(self, items: Sequence[Graded], on_grade: OnGrade | None = None) -> list[Grade]:
        """Grades in the order of ``items``. Each new one is stored as it arrives; repeats are asked
        once.
        """
        identity = fingerprint_of(self.grader)
        keys = [grade_key(identity, *item) for item in items]

        def ask(indices: list[int], arrived: OnGrade) -> None:
            grade_many(self.grader, [items[index] for index in indices], arrived)

        return through_cache(self.cache, self.tally, keys, ask, on_grade)

    def fingerprint(self) -> str:
        """The grader's own: a cache changes no grade."""
        return fingerprint_of(self.grader)

    @property
    def usage(self) -> Usage:
        """What the grader has used so far."""
        return getattr(self.grader, "usage", Usage())


def fingerprint_of(judge: Any) -> str:
    """What determines a judge's or a grader's answers: its ``fingerprint()`` where it has one, else
    its name.
    """
    own = getattr(judge, "fingerprint", None)
    return str(own() if own is not None else judge.name)


class FunctionGrader:
    """A user's Python function, named ``path/to/file.py:function``:
    ``(prompt: Prompt, response: str) -> float``.

    One with a parameter called ``turns`` is given the response's messages too: its thoughts, tool
    calls and their results. The file is imported from its path and runs with the rights of this
    process. It should stand alone: the fingerprint covers this one file. Raises ``ConfigError``
    when file or function cannot be loaded, ``JudgeError`` naming the prompt when a call raises or
    does not return a finite number.
    """

    def __init__(self, spec: str) -> None:
        path, colon, function = spec.rpartition(":")
        if not colon or not path or not function.isidentifier():
            raise ConfigError(f"function '{spec}': expected path/to/file.py:function")
        self.path, self.name = Path(path), function
        try:
            self._source = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"function '{spec}': cannot read {path} ({error.strerror}); the path is relative to"
                " the current folder"
            ) from None
        self._call = self._load(spec)
        self._takes_turns = _takes(self._call, "turns")

    def grade(self, prompt: Prompt, response: Reply) -> float:
        """Score of ``response`` by the user's function."""
        where = f"function {self.path}:{self.name} on prompt '{prompt.id}'"
        try:
            more = {"turns": turns_of(response)} if self._takes_turns else {}
            value = self._call(prompt, text_of(response), **more)
        except (
            Exception
        ) as error:  # the user's code may raise anything; the prompt is what they need to find it
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise JudgeError(
                f"{where} raised {type(error).__name__}: {error} ({Path(line.filename).name}, line"
                f" {line.lineno})"
            ) from error
        try:
            score = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise JudgeError(f"{where} returned {value!r:.80}: expected a finite number")
        return score

    def fingerprint(self) -> str:
        """sha256 of the file's bytes, as they were loaded, and the function's name."""
        return hashlib.sha256(self._source + b"\0" + self.name.encode()).hexdigest()

    def _load(self, spec: str) -> Callable[..., Any]:
        module_name = f"prefloop_grader_{self.fingerprint()[:16]}"
        loader = _HashedBytesLoader(module_name, str(self.path), self._source)
        module = importlib.util.module_from_spec(
            importlib.machinery.ModuleSpec(module_name, loader, origin=str(self.path))
        )
        sys.modules[module_name] = module  # dataclasses in the file look their module up by name
        try:
            loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(
                f"function '{spec}': importing the file raised {type(error).__name__}: {error}"
            ) from error
        call: Callable[..., Any] | None = getattr(module, self.name, None)
        if call is None or not callable(call):
            functions = [
                name
                for name, value in vars(module).items()  # its own, not what it imports
                if callable(value)
                and not name.startswith("_")
                and getattr(value, "__module__", "") == module_name
            ]
            hint = nearest(self.name, functions) if functions else "the file defines no function"
            raise ConfigError(
                f"function '{spec}': no function '{self.name}' in {self.path}; {hint}"
            )
        return call


def _takes(call: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter called ``name``."""
    try:
        return name in inspect.signature(call).parameters
    except (TypeError, ValueError):  # some built-in ones do not say
        return False


class _HashedBytesLoader(importlib.machinery.SourceFileLoader):
    """Loads the bytes that were fingerprinted: the bytecode cache can be stale after two edits
    within one second.
    """

    def __init__(self, module_name: str, path: str, source: bytes) -> None:
        super().__init__(module_name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, self.path)
