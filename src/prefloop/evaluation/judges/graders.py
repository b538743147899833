"""A user's Python function as a grader."""

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
from typing import Any

from prefloop.data.replies import Reply, text_of, turns_of
from prefloop.errors import ConfigError, JudgeError, nearest
from prefloop.evaluation.judges.assessor import Grader, OnAnswer, Single, one_by_one
from prefloop.evaluation.judges.verdict import Grade
from prefloop.records import Prompt


class FunctionGrader(Grader):
    """A user's Python function, named ``path/to/file.py:function``:
    ``(prompt: Prompt, response: str) -> float``.

    A function with a parameter called ``turns`` is given the response's messages too: its thoughts,
    tool calls and their results. The file is imported from its path and runs with the rights of
    this process. It should import nothing of the user's own, since the fingerprint covers this one
    file. Raises ``ConfigError``
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
        """The function's score of ``response``."""
        where = f"function {self.path}:{self.name} on prompt '{prompt.id}'"
        try:
            more = {"turns": turns_of(response)} if self._takes_turns else {}
            value = self._call(prompt, text_of(response), **more)
        except Exception as error:  # the user's code may raise anything, and they need the prompt
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

    def ask(
        self, questions: Sequence[Single], on_answer: OnAnswer[Grade] | None = None
    ) -> list[Grade]:
        """Grades in the order of ``questions``. Raises ``JudgeError`` as ``grade`` does."""
        return one_by_one(
            lambda prompt, response: Grade(self.grade(prompt, response)), questions, on_answer
        )

    def fingerprint(self) -> str:
        """sha256 of the file's bytes as they were loaded and of the function's name."""
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
                for name, value in vars(module).items()  # its own functions, not imported ones
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
    except (TypeError, ValueError):  # some built-in functions have no signature
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
