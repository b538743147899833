"""Verdicts on disk: a JSON line each, flushed as it is given, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict
from pathlib import Path

from prefloop.errors import DataError
from prefloop.judging.verdict import Verdict
from prefloop.records import Message

_LINE_START = b'{"key": "'


def verdict_key(judge: str, prompt: list[Message], a: str, b: str) -> str:
    """sha256 of everything that determines a verdict: the judge's fingerprint, the conversation and both responses."""
    what = [judge, [[turn.role, turn.content] for turn in prompt], a, b]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


class VerdictCache:
    """A JSONL file of verdicts by key, used by one process at a time.

    Every ``put`` appends one line and flushes it. A last line torn by a kill is dropped when the file is opened. A
    file that holds anything else is left untouched and raises ``DataError`` naming the line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._load(self.path.read_bytes() if self.path.exists() else b"")
        except OSError as error:
            raise DataError(f"verdict cache {self.path}: {error.strerror}; give a file that can be written") from None

    def __contains__(self, key: str) -> bool:
        return key in self._verdicts

    def __getitem__(self, key: str) -> Verdict:
        return self._verdicts[key]

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: str) -> Verdict | None:
        """The stored verdict, or ``None``."""
        return self._verdicts.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Store a verdict; it has reached the operating system when this returns."""
        line = json.dumps({"key": key, **asdict(verdict)}).encode() + b"\n"
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
            except OSError as error:
                raise DataError(f"verdict cache {self.path}: cannot be written ({error.strerror})") from None
            self._verdicts[key] = verdict

    def _load(self, content: bytes) -> None:
        lines = content.split(b"\n")
        torn = lines.pop()
        for number, line in enumerate(lines, start=1):
            key, verdict = self._parse(line, number)
            self._verdicts[key] = verdict
        if torn:
            # Only what can be the start of a line of ours is cut off: a file passed by mistake keeps its last line.
            if not torn.startswith(_LINE_START[: len(torn)]):
                raise self._foreign(len(lines) + 1)
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def _parse(self, line: bytes, number: int) -> tuple[str, Verdict]:
        try:
            row = json.loads(line)
            verdict = Verdict(float(row["score"]), row["orders_agree"], tuple(row["raw"]), int(row["unparsable"]))
            return str(row["key"]), verdict
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"verdict cache {self.path}, line {number}: not a stored verdict; "
            "delete that line, or name another file for the cache"
        )
