"""The documentation's code works as it is printed: every block of Python runs, every command line
is understood.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documents
import pytest
import torch
from made_run import make_run
from turns import asked, looked

from prefloop import cli
from prefloop.commands.plan import Plan
from prefloop.config import AdapterConfig, BackboneConfig, GenerationConfig
from prefloop.config.flags import flags
from prefloop.config.load import parse
from prefloop.evaluation.answers import read_answers
from prefloop.records import Prompt
from prefloop.runs.runtime import Runtime
from prefloop.training.dpo import PAIR_LOSSES
from prefloop.training.pair_batch import Pairs
from prefloop.training.rewards import FunctionSource

ELSEWHERE = {("docs/extending.md", "A stage"): "tests/pipeline/test_own_stage.py"}
"""Sections whose blocks another module runs."""
RUN: dict[tuple[str, str], Callable[..., None]] = {}
"""Sections whose blocks run here, and by what."""

Test = Callable[..., None]


def of(page: str, heading: str) -> Callable[[Test], Test]:
    """Say that a test runs all blocks of a section."""

    def register(test: Test) -> Test:
        RUN[page, heading] = test
        return test

    return register


def run(page: str, heading: str) -> dict[str, Any]:
    """The names that the blocks of a section leave, each going on where the one before it ended."""
    names: dict[str, Any] = {"__name__": "documented"}
    texts = documents.python_in(page, heading)
    assert texts, f"{page} has no Python under '{heading}' any more"
    for text in texts:
        exec(compile(text, f"{page}: {heading}", "exec"), names)
    return names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the documentation names."""
    pairs = [
        {
            "prompt": f"What is {n} and {n}?",
            "chosen": f"It is {2 * n}.",
            "rejected": "I do not know that at all.",
        }
        for n in range(12)
    ]
    for name, rows in (
        ("pairs", pairs),
        ("test", pairs[:4]),
        ("prompts", [{"prompt": p["prompt"]} for p in pairs[:3]]),
    ):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_of_python_is_run_by_a_test() -> None:
    sections = {(b.page, b.heading) for b in documents.blocks() if b.language in documents.PYTHON}
    assert sections == {*RUN, *ELSEWHERE}, (
        "a section gained or lost its Python: write or take away its test"
    )
    for (_, heading), module in ELSEWHERE.items():
        text = (documents.ROOT / module).read_text(encoding="utf-8")
        assert f'"{heading}"' in text and "python_in" in text


def test_no_block_is_passed_over() -> None:
    """What looks like a fence of Python is read as one, however it is indented."""
    fences = sum(
        line.strip().lower().startswith(("```py", "~~~py", "``` py"))
        for page in documents.PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
    )
    assert fences == sum(b.language in documents.PYTHON for b in documents.blocks()) >= 8


@of("README.md", "From Python")
@pytest.mark.slow
def test_the_pipeline_of_the_readme_runs(
    here: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=256,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    small = Runtime(backbone, GenerationConfig(max_new_tokens=8), "transformers")
    monkeypatch.setattr("prefloop.pipeline.pipeline.Runtime", lambda: small)
    run("README.md", "From Python")
    summary = json.loads((here / "runs" / "first" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]][:4] == ["sft", "label", "reward", "ppo"]
    assert (
        set(summary["results"]) >= {"sft", "ppo"}
        and (here / "runs" / "first" / "report.html").is_file()
    )


@of("docs/results.md", "Names")
@pytest.mark.slow
def test_policies_are_opened_and_asked_as_documented(here: Path, tiny_folder: Path) -> None:
    make_run(here / "runs", "demo", tiny_folder)
    names = run("docs/results.md", "Names")
    assert list(names["answers"]) == ["runs/demo:sft", "runs/demo:ppo"]
    for source in names["answers"].values():
        assert [len(replies) for _, replies in read_answers(source).values()] == [2, 2, 2]
    assert names["opened"].runtime.backbone and set(names["opened"].roles) == {
        "runs/demo:sft",
        "runs/demo:ppo",
    }


@of("docs/extending.md", "A preference loss")
def test_the_documented_loss_joins_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, loss in PAIR_LOSSES.items():  # what the block adds goes with the test
        monkeypatch.setitem(PAIR_LOSSES, name, loss)
    monkeypatch.setitem(PAIR_LOSSES, "mine", PAIR_LOSSES["dpo"])
    run("docs/extending.md", "A preference loss")
    mine, dpo = PAIR_LOSSES["mine"], PAIR_LOSSES["dpo"]
    assert mine is not dpo
    from prefloop.config import PreferenceConfig

    config, zero, one = PreferenceConfig(), torch.zeros(3), torch.ones(3)
    label = torch.tensor([1.0, 0.0, 0.5])
    same = Pairs(zero, zero, zero, zero, one, one, label, one)
    apart = Pairs(zero, zero, torch.tensor([2.0, -1.0, 0.5]), one, one, one, label, one)
    assert mine.at_start is not None
    torch.testing.assert_close(mine.loss(same, config), torch.full((3,), mine.at_start(config)))
    torch.testing.assert_close(mine.loss(apart, config), dpo.loss(apart, config))
    assert mine.at_start(config) == math.log(2)


@of("docs/extending.md", "A judge")
def test_the_documented_judge_judges(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, answer in (("mine", "Four, I think."), ("theirs", "4")):
        rows = [{"prompt": f"What is 2 and {n}?", "response": answer} for n in range(6)]
        (here / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    names = run("docs/extending.md", "A judge")
    assert names["comparison"].duels[0].win_rate.rate == 1.0 and "1.0" in capsys.readouterr().out
    judge = names["Longer"]()
    assert [
        judge.compare([], a, b).score for a, b in (("long", "so"), ("so", "long"), ("so", "no"))
    ] == [1.0, 0.0, 0.5]


@of("docs/extending.md", "A reward")
def test_the_documented_reward_scores_turns(here: Path) -> None:
    [text] = documents.python_in("docs/extending.md", "A reward")
    (here / "mine.py").write_text(text, encoding="utf-8")
    prompts, replies = [Prompt("p", asked())] * 2, [looked(), "It is warm."]
    assert FunctionSource("mine.py:asks").scores(prompts, replies, ["p/0", "p/1"]) == [1.0, 0.0]


@of("docs/labeling.md", "From Python")
def test_argilla_is_used_from_python_as_documented(
    here: Path, labeling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argilla as rg

    monkeypatch.setenv("ARGILLA_API_URL", labeling.url)
    monkeypatch.setenv("ARGILLA_API_KEY", labeling.connection.api_key)
    client = rg.Argilla(api_url=labeling.url, api_key=labeling.connection.api_key)

    def clear() -> None:  # other tests of the session may have used these names, or will
        for dataset in client.datasets.list():
            if dataset.name in ("apples", "bread", "pears"):
                dataset.delete()

    clear()
    fields = [rg.TextField(name) for name in ("instruction", "response1", "response2")]
    elsewhere = rg.Settings(
        fields=fields, questions=[rg.LabelQuestion("which", ["l", "r", "same"])]
    )
    bread = rg.Dataset("bread", workspace="default", settings=elsewhere, client=client)
    bread.create()
    texts = {"instruction": "Which bread?", "response1": "Rye.", "response2": "None."}
    bread.records.log([rg.Record(id="b", fields=texts)])
    person = labeling.user()
    [record] = person.queue(str(bread.id))
    assert person.answer(record["id"], which="r").status_code == 201
    names = run("docs/labeling.md", "From Python")
    argilla, first = names["argilla"], names["comparisons"][0]
    [voted] = argilla.pull("apples").records
    assert (voted.id, [(v.annotator, v.choice) for v in voted.votes]) == (
        first.id,
        [("simulated-1", 0)],
    )
    assert [
        v.choice
        for v in argilla.pull("bread", questions=("preferred=which:l,r,same",)).records[0].votes
    ] == [1]
    assert (
        argilla.progress("apples").total
        == len(names["comparisons"])
        == len(list(names["dataset"].records))
    )
    clear()


class _Nothing:
    def run(self) -> None:
        """Stands for a command that was understood."""


def _understood(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if program != "prefloop":
        module = importlib.import_module(f"pipelines.{program.removesuffix('.py')}")
        parse(arguments, prog=program, description=module.__doc__ or "")
        return
    seen: list[Any] = []

    def parsed(kind: Any, words: list[str], **options: Any) -> _Nothing:
        seen.append(flags(kind, words, **options))
        return _Nothing()

    monkeypatch.setattr(cli, "flags", parsed)
    cli._main(arguments)
    [command] = seen
    if isinstance(command, Plan):
        # The configuration and the flags over it are read when the command runs.
        config = next(word for word in arguments[1:] if word.endswith(".yaml"))
        parse(["--config", config, *cli.split(arguments)[1]], prog="plan", description="")


COMMANDS = documents.commands()


@pytest.mark.parametrize(
    ("page", "program", "arguments"),
    [
        pytest.param(*each, id=f"{each[0]}: {' '.join(each[1:2] + tuple(each[2]))}"[:90])
        for each in COMMANDS
    ],
)
def test_every_command_line_of_the_documentation_is_understood(
    page: str,
    program: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(documents.ROOT)
    with contextlib.suppress(SystemExit):  # of --help, and of what is refused
        _understood(program, arguments, monkeypatch)
        return
    said = capsys.readouterr()
    assert "--help" in arguments and said.out.startswith("usage: "), (
        f"{page}: {said.err or said.out}"
    )


def test_command_lines_are_found_on_the_pages_that_have_them() -> None:
    pages = {
        "README.md",
        "docs/guide.md",
        "docs/gpu.md",
        "docs/labeling.md",
        "docs/planner.md",
        "docs/results.md",
    }
    assert {page for page, *_ in COMMANDS} >= pages
    assert ["label", "agree", "pairs.jsonl"] in [arguments for _, _, arguments in COMMANDS]
    assert ["chat", "runs/demo", "--seed", "1"] in [
        arguments for _, _, arguments in COMMANDS
    ]  # behind a pipe
    assert any(
        "--data.eval-prompts" in arguments for _, _, arguments in COMMANDS
    )  # on a second line
