"""A stage that somebody writes: the documented one runs as it is printed, and an edited one is
never taken for the one before.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import python_in

from prefloop.artifacts.store import Artifact
from prefloop.base.jsonl import write_rows
from prefloop.errors import ConfigError
from prefloop.pipeline import stage as stage_module
from prefloop.pipeline.code import code_of
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.stage import Stage, own_code
from prefloop.pipeline.stages.comparisons import has_pairs
from prefloop.pipeline.stages.sft import SFT
from prefloop.records import Comparison, Message, Response, Vote, to_dict
from prefloop.report.summary import StageRun
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work


class Comparisons(Stage):
    """Two comparisons with three votes."""

    name = produces = "comparisons"

    def parts(self) -> dict[str, Any]:
        return {}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        said = [Response("yes"), Response("no")]
        made = [
            Comparison(f"c{n}", [Message("user", "q?")], said, [Vote(f"a{k}", 0) for k in range(n)])
            for n in (1, 2)
        ]
        write_rows(work.folder / "comparisons.jsonl", map(to_dict, made))
        return {}


def module(path: Path, text: str) -> ModuleType:
    """A file of the user's, imported as a script would."""
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


def run(stage: Stage, folder: Path) -> StageRun:
    """The last stage of a run of two."""
    summary = Pipeline([Comparisons(), stage], Runtime(output=folder / "runs")).run(
        folder / "runs" / "own"
    )
    return summary.stages[-1]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # a second version within a second would be taken for the first
    monkeypatch.setitem(sys.modules, "counting", None)


def test_the_stage_of_the_documentation_runs_and_an_edited_build_runs_again(tmp_path: Path) -> None:
    [text] = python_in("docs/extending.md", "A stage")
    first = run(module(tmp_path / "counting.py", text).Count(), tmp_path)
    assert (first.status, first.metrics["votes"]) == ("ran", 3)
    assert run(module(tmp_path / "counting.py", text).Count(), tmp_path).status == "reused"
    edited = text.replace('{"votes": sum(', '{"votes": 1 + sum(')
    again = run(module(tmp_path / "counting.py", edited).Count(), tmp_path)
    assert (again.status, again.metrics["votes"]) == ("ran", 4)


def test_a_metric_that_means_something_else_than_prefloops_own_is_named(tmp_path: Path) -> None:
    class Many(Comparisons):
        def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
            return super().build(work, inputs) | {"votes": "many"}

    runtime = Runtime(output=tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"slot comparisons returned a metric .*votes"):
        Pipeline([Many()], runtime).run(tmp_path / "runs" / "own")
    made = Many().run(runtime)
    with pytest.raises(ConfigError, match=r"slot comparisons returned a metric .*votes"):
        has_pairs(made)


def test_a_stage_that_no_file_defines_counts_by_its_methods(tmp_path: Path) -> None:
    [text] = python_in("docs/extending.md", "A stage")

    def typed(more: str) -> Stage:
        names: dict[str, Any] = {"__name__": "console"}
        exec(
            compile(text.replace('{"votes": sum(', f'{{"votes": {more}sum('), "<console>", "exec"),
            names,
        )
        return names["Count"]()

    assert run(typed(""), tmp_path).metrics["votes"] == 3
    assert run(typed(""), tmp_path).status == "reused"
    assert run(typed("1 + "), tmp_path).metrics["votes"] == 4


def test_stages_of_the_package_have_no_code_of_their_own() -> None:
    assert own_code(SFT) == {}


def test_why_a_stage_is_built_again_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [text] = python_in("docs/extending.md", "A stage")

    def said(source: str) -> str:
        run(module(tmp_path / "counting.py", source).Count(), tmp_path)
        [line] = [
            line
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("running count")
        ]
        return line.partition("(")[2].rstrip(")")

    with monkeypatch.context() as before:
        before.setattr(
            stage_module, "code_of", lambda *_: {}
        )  # as versions before this wrote: no files by name
        assert said(text) == ""
    assert said(text) == "changed: another comparisons; another version of prefloop"
    other = text.replace('{"what": "votes"}', '{"what": "all"}')
    assert said(other) == "changed: what 'votes' → 'all'; the file that defines it"
    assert said(other.replace("sum(", "1 + sum(")) == "changed: the file that defines it"
    for what in ("a", "b"):
        hashed = other.replace('{"what": "all"}', f'{{"what": "{64 * what}"}}')
        expected = (
            "what 'all' → " if what == "a" else "the content of what; the file that defines it"
        )
        assert expected in said(hashed)
    with monkeypatch.context() as another:
        another.setattr(
            stage_module, "code_of", lambda *of: code_of(*of) | {"prefloop.objectives.ppo": "x"}
        )
        assert "code of objectives/ppo.py" in said(text)
