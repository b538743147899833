"""What a judge is, and judges made from other things: a Python function, a score, both orders, a cache.

They compose: ``BothOrders(CachedJudge(OpenAIJudge(...), VerdictCache(path)))`` asks a model in both orders and never
asks the same thing twice. Caching sits inside the two orders, so a killed run loses only the answers on their way and
exchanging the sides costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Protocol

from prefloop.errors import ConfigError, JudgeError, nearest
from prefloop.judging.cache import VerdictCache, verdict_key
from prefloop.judging.verdict import Verdict
from prefloop.records import Message, Prompt

Item = tuple[list[Message], str, str]
"""One question to a judge: prompt, response a, response b."""
OnVerdict = Callable[[int, Verdict], None]

__all__ = [
    "BothOrders",
    "CachedJudge",
    "FunctionGrader",
    "Grader",
    "Item",
    "Judge",
    "ScoreJudge",
    "Verdict",
    "VerdictCache",
    "compare_many",
    "judge_fingerprint",
]


class Judge(Protocol):
    """Says which of two responses is better. It may have ``compare_many(items, on_verdict)``, ``fingerprint()``."""

    name: str

    def compare(self, prompt: list[Message], a: str, b: str) -> Verdict:
        """Verdict on response ``a`` against response ``b``."""
        ...


class Grader(Protocol):
    """Gives one response a score; higher is better."""

    name: str

    def grade(self, prompt: Prompt, response: str) -> float:
        """Score of ``response``."""
        ...


class FunctionGrader:
    """A user's Python function, named ``path/to/file.py:function``: ``(prompt: Prompt, response: str) -> float``.

    The file is imported from its path and runs with the rights of this process. It should stand alone: the
    fingerprint covers this one file. Raises ``ConfigError`` when file or function cannot be loaded, ``JudgeError``
    naming the prompt when a call raises or does not return a finite number.
    """

    def __init__(self, spec: str) -> None:
        path, colon, function = spec.rpartition(":")
        if not colon or not path or not function.isidentifier():
            raise ConfigError(f"scorer '{spec}': expected path/to/file.py:function")
        self.path, self.name = Path(path), function
        try:
            self._source = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"scorer '{spec}': cannot read {path} ({error.strerror}); the path is relative to the current folder"
            ) from None
        self._call = self._load(spec)

    def grade(self, prompt: Prompt, response: str) -> float:
        """Score of ``response`` by the user's function."""
        where = f"grader {self.path}:{self.name} on prompt '{prompt.id}'"
        try:
            value = self._call(prompt, response)
        except Exception as error:  # the user's code may raise anything; the prompt is what they need to find it
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise JudgeError(
                f"{where} raised {type(error).__name__}: {error} ({Path(line.filename).name}, line {line.lineno})"
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

    def _load(self, spec: str) -> Callable[[Prompt, str], Any]:
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
            raise ConfigError(f"scorer '{spec}': importing the file raised {type(error).__name__}: {error}") from error
        call: Callable[[Prompt, str], Any] | None = getattr(module, self.name, None)
        if call is None or not callable(call):
            functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            hint = nearest(self.name, functions) if functions else "the file defines no function"
            raise ConfigError(f"scorer '{spec}': no function '{self.name}' in {self.path}; {hint}")
        return call


class _HashedBytesLoader(importlib.machinery.SourceFileLoader):
    """Loads the bytes that were fingerprinted: the bytecode cache can be stale after two edits within one second."""

    def __init__(self, module_name: str, path: str, source: bytes) -> None:
        super().__init__(module_name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, self.path)


class ScoreJudge:
    """A judge from a grader: the higher score wins, scores within ``tie_margin`` tie. Its verdict has no order to swap.

    ``prompts`` gives the grader the ids and ``meta`` of known prompts; any other reaches it with a hash for an id and
    no meta.
    """

    symmetric = True

    def __init__(self, grader: Grader, *, tie_margin: float = 0.0, prompts: Iterable[Prompt] = ()) -> None:
        if not tie_margin >= 0:
            raise ConfigError(f"tie_margin must be 0 or more, found {tie_margin}")
        self.grader, self.tie_margin, self.name = grader, tie_margin, grader.name
        self._known: Mapping[str, Prompt] = {_conversation_key(prompt.prompt): prompt for prompt in prompts}

    def compare(self, prompt: list[Message], a: str, b: str) -> Verdict:
        """Verdict from the two scores, which ``raw`` keeps."""
        key = _conversation_key(prompt)
        record = self._known.get(key) or Prompt(id=key[:16], prompt=prompt)
        score_a, score_b = self.grader.grade(record, a), self.grader.grade(record, b)
        lead = score_a - score_b
        score = 0.5 if abs(lead) <= self.tie_margin else float(lead > 0)
        return Verdict(score, raw=(repr(score_a), repr(score_b)))

    def fingerprint(self) -> str:
        """The grader's fingerprint and the tie margin."""
        return f"{judge_fingerprint(self.grader)}|tie_margin={self.tie_margin}"


class BothOrders:
    """Asks a judge (a, b) and (b, a). Where the two answers differ the verdict is a tie, and it is counted.

    ``n_asked`` counts comparisons (two questions each) and ``n_disagreed`` those whose orders disagreed.
    """

    symmetric = True

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name = judge, judge.name
        self.n_asked = self.n_disagreed = 0
        self._lock = threading.Lock()

    def compare(self, prompt: list[Message], a: str, b: str) -> Verdict:
        """Verdict that survives an order swap, or a tie."""
        return self._combine(self.judge.compare(prompt, a, b), self.judge.compare(prompt, b, a))

    def compare_many(self, items: Sequence[Item], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """Verdicts in the order of ``items``; both orders of all of them go to the judge in one batch."""
        both = [ordered for prompt, a, b in items for ordered in ((prompt, a, b), (prompt, b, a))]
        answers = compare_many(self.judge, both)
        verdicts = [self._combine(*pair) for pair in zip(answers[::2], answers[1::2], strict=True)]
        if on_verdict:
            for index, verdict in enumerate(verdicts):
                on_verdict(index, verdict)
        return verdicts

    def fingerprint(self) -> str:
        """The judge's fingerprint, marked as asked in both orders."""
        return f"{judge_fingerprint(self.judge)}|both-orders"

    def _combine(self, forward: Verdict, backward: Verdict) -> Verdict:
        agree = forward.score == 1 - backward.score
        with self._lock:
            self.n_asked += 1
            self.n_disagreed += not agree
        return Verdict(
            forward.score if agree else 0.5,
            orders_agree=agree,
            raw=forward.raw + backward.raw,
            unparsable=forward.unparsable + backward.unparsable,
        )


class CachedJudge:
    """A judge that looks in a ``VerdictCache`` first; ``n_asked`` and ``n_cached`` count where verdicts came from."""

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.judge, self.cache, self.name = judge, cache, judge.name
        self.n_asked = self.n_cached = 0

    def compare(self, prompt: list[Message], a: str, b: str) -> Verdict:
        """The stored verdict, or the judge's, which is stored."""
        return self.compare_many([(prompt, a, b)])[0]

    def compare_many(self, items: Sequence[Item], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """Verdicts in the order of ``items``. Each new one is stored as it arrives; repeats are asked once."""
        identity = judge_fingerprint(self.judge)
        keys = [verdict_key(identity, *item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.cache}
        new_keys = list(missing)
        compare_many(
            self.judge, list(missing.values()), lambda index, verdict: self.cache.put(new_keys[index], verdict)
        )
        self.n_asked += len(missing)
        self.n_cached += len(items) - len(missing)
        verdicts = [self.cache[key] for key in keys]
        if on_verdict:
            for index, verdict in enumerate(verdicts):
                on_verdict(index, verdict)
        return verdicts

    def fingerprint(self) -> str:
        """The judge's own: a cache changes no verdict."""
        return judge_fingerprint(self.judge)


def compare_many(judge: Judge, items: Sequence[Item], on_verdict: OnVerdict | None = None) -> list[Verdict]:
    """Verdicts in the order of ``items``, through the judge's own ``compare_many`` where it has one.

    ``on_verdict(index, verdict)`` is called once for each, in the calling thread, as verdicts arrive.
    """
    batched: Callable[[Sequence[Item], OnVerdict | None], list[Verdict]] | None = getattr(judge, "compare_many", None)
    if batched is not None:
        return batched(items, on_verdict)
    verdicts = []
    for index, (prompt, a, b) in enumerate(items):
        verdicts.append(judge.compare(prompt, a, b))
        if on_verdict:
            on_verdict(index, verdicts[-1])
    return verdicts


def judge_fingerprint(judge: Judge | Grader) -> str:
    """What determines a judge's verdicts: its ``fingerprint()`` where it has one, else its name."""
    own = getattr(judge, "fingerprint", None)
    return own() if own is not None else judge.name


def _conversation_key(prompt: list[Message]) -> str:
    return hashlib.sha256(json.dumps([[turn.role, turn.content] for turn in prompt]).encode()).hexdigest()
