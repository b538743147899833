"""Which code is in a stage's key: what it runs, no table and no page; and what is said when a stage
is built again.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked
from loop_run import ROOT, environment, finish, statuses, write_config

import prefloop
from prefloop.pipeline.code import SETTINGS, SPEAKS, bare, closure, code_of, imported

STAGES = (
    "SFT",
    "Sample",
    "Label",
    "RewardModel",
    "Reference",
    "Preference",
    "KTO",
    "PPO",
    "Evaluate",
)


def test_prose_is_no_code() -> None:
    source = (
        '"""What it does."""\n\nx = 1  # why\n\n\ndef f(text="# no comment"):\n    """Says ä."""\n '
        '   return """kept"""\n'
    )
    expected = 'x = 1\ndef f(text="# no comment"):\n    return """kept"""\n'
    assert bare(source) == expected == bare(expected + "\n\n# a last word\n")
    assert bare(source.replace("x = 1", "x = 2")) != expected
    assert bare("s = 'ä'  # ä\nf(s)  # ö\n") == "s = 'ä'\nf(s)\n"
    assert (
        bare('class A:\n    x: int = 1\n    """A field: ä."""  # why\n')
        == "class A:\n    x: int = 1\n"
    )
    text = 'x = """one\n\n  two  \n"""\n'
    assert bare(text) == text


@pytest.mark.parametrize(
    "file", sorted((ROOT / "src" / "prefloop").rglob("*.py")), ids=lambda f: f.name
)
def test_what_is_left_of_a_file_still_is_its_code(file: Path) -> None:
    """The trees are equal but for expressions that are texts alone, and for bodies of nothing
    else.
    """

    def code(source: str) -> str:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            for name in ("body", "orelse", "finalbody"):
                if isinstance(parts := getattr(node, name, None), list):
                    kept = [
                        p
                        for p in parts
                        if not (isinstance(p, ast.Expr) and isinstance(p.value, ast.Constant))
                    ]
                    setattr(node, name, kept)
        return ast.dump(tree)

    source = file.read_text(encoding="utf-8")
    left = bare(source)
    if any(
        isinstance(n, ast.ClassDef | ast.FunctionDef) and len(n.body) == 1
        for n in ast.walk(ast.parse(source))
    ):
        return  # a body that is a docstring alone leaves no Python, and a hash needs none
    assert code(left) == code(source)


@pytest.mark.parametrize("name", STAGES)
def test_no_stages_key_holds_what_only_shows_or_plans(name: str) -> None:
    kind = getattr(prefloop, name)
    rooms = {module.split(".")[1] for module in code_of(kind, kind.uses)}
    assert not rooms & {"report", "planning", "export", "chat", "commands", "cli", "errors"}
    assert not SPEAKS & set(code_of(kind, kind.uses))


def test_a_stage_has_the_code_that_it_runs_and_not_that_of_others() -> None:
    def of(name: str) -> set[str]:
        kind = getattr(prefloop, name)
        return set(code_of(kind, kind.uses))

    assert "prefloop.objectives.preference" in of("Preference") - of("SFT") - of(
        "RewardModel"
    ) - of("PPO")
    assert "prefloop.objectives.ppo" in of("PPO") - of("Preference") - of("SFT")
    assert "prefloop.rollouts.vllm" in of("Sample") - of("SFT")
    assert {
        "prefloop.models.fused.layer",
        "prefloop.training.loop",
        "prefloop.data.rendering",
    } <= of("SFT")
    assert not any(
        module.startswith(("prefloop.labeling", "prefloop.evaluation")) for module in of("SFT")
    )


@pytest.mark.parametrize("name", ["Preference", "KTO", "Reference"])
def test_what_learns_from_votes_alone_asks_of_the_sampler_its_temperature(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """A longer answer in the comparison trains nothing again; log-probs are divided by the
    temperature.
    """
    stage = getattr(prefloop, name)()

    def identity(**generation: float) -> dict:
        backbone = prefloop.BackboneConfig(model=str(tiny_folder), precision="fp32", compute="fp32")
        runtime = prefloop.Runtime(
            backbone, prefloop.GenerationConfig(**generation), "transformers", output=tmp_path
        )
        return stage.identity(runtime)

    assert identity(max_new_tokens=8) == identity(max_new_tokens=9)
    assert identity(temperature=0.7) != identity(temperature=0.8)
    assert not any(
        module.startswith("prefloop.rollouts") for module in code_of(type(stage), stage.uses)
    )


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
import torch
from prefloop import Stage
if TYPE_CHECKING:
    from prefloop.report import page
def f():
    from prefloop.objectives import ppo as math
    import prefloop.data.packing
"""
    assert imported(source) == {
        "prefloop.pipeline.stage",
        "prefloop.objectives.ppo",
        "prefloop.data.packing",
    }
    assert imported("import prefloop as p\nx = p.load_comparisons('f')\nx.Stage\n") == {
        "prefloop.data.sources"
    }
    assert "prefloop.pipeline.stages.ppo" in imported("from prefloop import *\n")
    assert (
        imported("from prefloop.stage import Stage\nimport prefloop.gone\n") == set()
    )  # of another version
    assert "prefloop.data.tokens" in closure({"prefloop.data.packing"})
    assert not closure({"prefloop.data.packing"}) & SETTINGS


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, to edit."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", folder / "src")
    return folder


@pytest.fixture(scope="module")
def go(
    checkout: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], tuple[dict, str]]:
    """Run DPO with the copy as it is now: statuses by stage, and the output."""
    config = write_config(tmp_path_factory.mktemp("run"), tiny_folder, algo="dpo")

    def start() -> tuple[dict[str, str], str]:
        where = environment() | {"PYTHONPATH": str(checkout / "src")}
        process = Forked("pipelines/rlhf.py", ["--config", str(config)], ROOT, where)
        code, output = finish(process)
        assert code == 0, output
        return statuses(config), output

    start()
    return start


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file} no longer says {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.slow
def test_what_shows_or_plans_builds_nothing_again(
    checkout: Path, go: Callable[[], tuple[dict, str]]
) -> None:
    package = checkout / "src" / "prefloop"
    for room, name in (
        ("planning", "time"),
        ("report", "page"),
        ("export", "card"),
        ("commands", "plan"),
    ):
        file = package / room / f"{name}.py"
        file.write_text(file.read_text(encoding="utf-8") + "\n\nADDED = 1\n", encoding="utf-8")
    for file in (package / "training" / "loop.py", package / "objectives" / "preference.py"):
        file.write_text("# A comment.\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    found, _ = go()
    assert set(found.values()) == {"reused"}, found


@pytest.mark.slow
def test_an_edited_loss_runs_what_learns_by_it_and_says_so(
    checkout: Path, go: Callable[[], tuple[dict, str]]
) -> None:
    file = checkout / "src" / "prefloop" / "objectives" / "preference.py"
    edit(file, "-> Tensor:", "-> 'Tensor':")
    found, output = go()
    again = {name for name, status in found.items() if status != "reused"}
    assert {"dpo", "respond-dpo", "judge"} <= again, found
    assert not again & {"sft", "sample", "label", "reward", "respond-sft"}, found
    assert "(changed: code of objectives/preference.py)" in output
    edit(file, "-> 'Tensor':", "-> Tensor:")
    assert set(go()[0].values()) == {"reused"}, "the code of before finds what it made"
