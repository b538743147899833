"""What must hold of any row, file and command that reads rows, whatever stands in them: used by the
tests and by the campaign.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mutated_rows import mutated, mutated_lines

from prefloop.cli import _main, guarded
from prefloop.commands.label import Push
from prefloop.data.check import BadRow, Checked, check_record, check_shown, check_strings
from prefloop.data.files import read_rows
from prefloop.data.layouts import LAYOUTS
from prefloop.data.layouts.choices import VERDICTS
from prefloop.data.layouts.rated import ScoredAnswer
from prefloop.data.row import Row
from prefloop.data.source import Source
from prefloop.data.sources import (
    load_best_of,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
    write_jsonl,
)
from prefloop.errors import PrefloopError
from prefloop.evaluation.benchmarks import domain
from prefloop.evaluation.reward_files import FileReading, evaluate_file
from prefloop.labeling.argilla.forms import to_rg
from prefloop.records import (
    BestOf,
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Rating,
    from_dict,
    to_dict,
)

LOADERS: dict[type, Any] = {
    Comparison: load_comparisons,
    Demonstration: load_demonstrations,
    Prompt: load_prompts,
    Rating: load_ratings,
    BestOf: load_best_of,
}
LONGEST = 4096
"""Characters of a message."""


# What the records say in their own words: who speaks, which answer won, which id the row has.
OWN_WORDS = {
    *VERDICTS,
    "role",
    "from",
    "speaker",
    "type",
    "id",
    "label",
    "kto_tag",
    "thumb",
    "desirable",
    "feedback",
    "is_good",
    "preferred",
    "preference",
    "rating",
    "winner",
    "human",
    "strength",
    "better_response_id",
    "labels",
    "overall_preference",
    "preference_strength",
    "score",
    "pm_score",
    "winner_model_a",
    "winner_model_b",
    "winner_tie",
    "weight",
    "loss",
    "train",
    "masked",
    "training",
}


def texts(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text within a value and the keys that lead there; texts that are JSON or Python lists
    and objects are looked into.
    """
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, (*at, str(key)))
    elif isinstance(value, str) and value.strip():
        held = None
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                held = held if isinstance(held, dict | list) else read(value.strip())
        if isinstance(held, dict | list):
            yield from texts(held, at)
        else:
            yield at, value.strip()


def vanished(row: Row, records: list[Any]) -> list[str]:
    """Texts of a row that stand in none of its records and that no note speaks of."""
    parts = [
        [each.prompt, each.prompt.tools, each.response, each.meta]
        if isinstance(each, ScoredAnswer)
        else each
        for each in records
    ]
    kept = "\n".join(
        text for _, text in texts(json.loads(json.dumps(parts, default=to_dict_or_list)))
    )
    noted = {*row.repeated, *(key.rpartition(".")[2] for key in row.message_keys)}
    said = OWN_WORDS | noted
    return [
        t for at, t in texts(dict(row)) if t not in kept and not {*at} & said and at != ("votes",)
    ]


def to_dict_or_list(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Message) else to_dict(value)


@dataclasses.dataclass
class Told:
    """How often what happened, and what should not have."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def within(self, what: str) -> Iterator[None]:
        """An exception of the block is a failure, told with ``what``, by which it can be had
        again.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            self.counts["failures"] += 1
            self.failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")


def read(layout: str, values: dict[str, Any]) -> list[Any]:
    """The records of one row, checked; ``BadRow`` is the one way out."""
    check_strings(values)
    row = Row(values, "row", "file:x")
    found = LAYOUTS[layout].read(row)  # type: ignore[misc]
    records = found if isinstance(found, list) else [found]
    if not any(
        word in said
        for said in row.done
        for word in (
            "taken off",
            "unwrapped",
            "parsed",
            "transcripts",
            "left out",
            "no comparison",
            "not compared",
        )
    ):
        assert vanished(row, records) == [] or layout in (
            "hh",
            "helpsteer2_preference",
            "argilla",
        ), (row.done, values)
    for record in records:
        if not isinstance(record, ScoredAnswer):
            if not isinstance(record, Prompt | Demonstration):
                check_shown(record.meta)
            check_record(record)
            assert (
                from_dict(type(record), json.loads(json.dumps(to_dict(record), allow_nan=False)))
                == record
            )
            if isinstance(record, Comparison):
                assert record.swap().swap() == record
    return records


def check_rows(number: int, seed: int, told: Told) -> None:
    """Read so many damaged rows, each by its own layout and by one that somebody may have named."""
    draw = random.Random(seed)
    readable = [name for name, layout in LAYOUTS.items() if layout.read is not None]
    for index, (own, row) in enumerate(islice(mutated(seed), number)):
        for layout in (own, draw.choice(readable)):
            with told.within(f"row {index} of seed {seed} as {layout}"):
                try:
                    read(layout, row)
                except BadRow as bad:
                    assert (
                        bad.problem
                        and isinstance(bad.field, str)
                        and len(bad.problem) + len(bad.field) < LONGEST
                    )
                    told.counts["rows named"] += 1
                else:
                    told.counts["rows accepted"] += 1


def check_files(
    number: int, seed: int, told: Told, then: Callable[[Path, str, Told], None] | None = None
) -> None:
    """Read so many damaged lines as files of one layout each by every loader, and by ``then``."""
    files: dict[str, list[bytes]] = defaultdict(list)
    for layout, line in islice(mutated_lines(seed), number):
        files[layout].append(line)
    with TemporaryDirectory() as folder:
        for layout, lines in files.items():
            path = Path(folder) / f"{layout}.jsonl"
            path.write_bytes(b"\n".join(lines))
            for kind in LAYOUTS[layout].kinds:
                for named in (layout, "auto"):
                    with told.within(f"{layout} of seed {seed} as {kind.__name__}, layout {named}"):
                        _check_file(path, kind, named, len(lines), told)
            with told.within(f"{layout} of seed {seed} as an array"):
                _check_array(Path(folder), lines, told)
            if then:
                then(path, layout, told)


def _check_file(path: Path, kind: type, named: str, number: int, told: Told) -> None:
    folder = path.parent
    try:
        checked: Checked[Any] = LOADERS[kind](
            path, layout=named, bad_rows="quarantine", quarantine_dir=folder
        )
    except PrefloopError as error:
        check_said(str(error))
        told.counts["files refused"] += 1
        return
    assert checked.rows_read == number
    told.counts["rows of files"] += number
    aside = (
        list(filter(None, checked.quarantine.read_text().split("\n"))) if checked.quarantine else []
    )
    assert [json.loads(line)["row"] for line in aside] == [
        finding.row for finding in checked.findings
    ]
    check_said(checked.describe())
    for finding in checked.findings:
        check_said(str(finding))
        assert len(finding.problem) + len(finding.field) < LONGEST
    for record in checked.records:
        check_record(record)
    write_jsonl(folder / "again.jsonl", checked.records)
    again = LOADERS[kind](folder / "again.jsonl", layout="prefloop")
    assert again.records == checked.records
    told.counts["files read"] += 1


def _check_array(folder: Path, lines: Sequence[bytes], told: Told) -> None:
    """Lines as elements of an array: the same rows, and where the array holds together the same
    problems.
    """
    lines = [
        line for line in lines if b'"open' not in line
    ]  # Where a text without end ends nobody knows.
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines))
    (folder / "array.json").write_bytes(b"[" + b",\n".join(lines) + b"]")
    elements = list(read_rows(folder / "array.json"))
    each = list(read_rows(folder / "lines.jsonl"))
    assert [row.problem is None for row in elements] == [row.problem is None for row in each]
    assert [row.value for row in elements if row.problem is None] == [
        row.value for row in each if row.problem is None
    ]
    told.counts["rows of arrays"] += len(elements)


def check_said(text: str) -> None:
    """A message is short and has no power over a terminal."""
    assert len(text) <= LONGEST, f"{len(text)} characters: {text[:200]}"
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in text), repr(
        text[:200]
    )


def run_command(arguments: Sequence[str], told: Told) -> int:
    """Run a command in this process: it ends with 0, or with 2 and a message."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = guarded(_main, list(arguments))
        except SystemExit as refused:  # a flag or a name that no file has
            code = refused.code
    assert code in (0, 2), f"exit {code}"
    assert (code == 2) == bool(err.getvalue()), err.getvalue()[:200]
    check_said(err.getvalue().removeprefix("error: "))
    told.counts[f"commands with exit {code}"] += 1
    return code


JUDGE = "def judge(prompt, response):\n    return float(len(response))\n"


def run_readers(path: Path, layout: str, told: Told, model: Path, reward: Any) -> None:
    """Every command and function that reads people's rows, on one file; ``model`` is a folder,
    ``reward`` a reward model on it.
    """
    folder = path.parent
    (folder / "judge.py").write_text(JUDGE)
    judge, cache = f"{folder}/judge.py:judge", str(folder / "verdicts.jsonl")
    aside = ["--quarantine", str(folder / "aside")]
    commands = [
        ["check", str(path)],
        ["check", str(path), *aside, "--show", "1", "--model", str(model)],
        ["check", str(path), "--layout", layout, *aside],
        ["label", "agree", str(path), "--bad-rows", "quarantine"],
        [
            "label",
            "next",
            str(path),
            "--count",
            "2",
            "--output",
            str(folder / "next.jsonl"),
            "--method",
            "length",
        ],
        [
            "judge",
            "calibrate",
            "--judge",
            judge,
            "--human",
            str(path),
            "--cache",
            cache,
            "--resamples",
            "20",
            *aside,
        ],
        [
            "judge",
            "--judge",
            judge,
            "--a",
            str(path),
            "--b",
            str(path) + "l",
            "--cache",
            cache,
            "--resamples",
            "20",
            *aside,
        ],
    ]
    (folder / f"{path.name}l").write_bytes(path.read_bytes())
    (folder / "aside").mkdir(exist_ok=True)
    for arguments in commands:
        with told.within(f"prefloop {' '.join(arguments)}"):
            run_command(arguments, told)
    with told.within(f"bench's questions of {path.name}"), contextlib.suppress(PrefloopError):
        for row in domain.read(path, quarantine=folder / "aside"):
            domain.references(row)
    with (
        told.within(f"reward eval of {path.name}"),
        TemporaryDirectory() as scratch,
        contextlib.suppress(PrefloopError),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        reading = FileReading(Path(scratch), folder / "aside", bad_rows="quarantine")
        json.dumps(evaluate_file(reward, path, reading), allow_nan=False)
    with told.within(f"label push of {path.name}"), contextlib.suppress(PrefloopError):
        with contextlib.redirect_stdout(io.StringIO()):
            pushed = Push(dataset="d", file=Source.of(path), bad_rows="quarantine")._records()
        for record in pushed:
            to_rg(record, "d")
