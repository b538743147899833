"""The locks: every package exact and with hashes, everything asked for locked, every install
checking.
"""

import re
import tomllib
from pathlib import Path

import pytest
from labeling_server import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS, LABELING = ROOT / "requirements", ROOT / "labeling"
LOCKS = [REQUIREMENTS / name for name in ("torch.txt", "triton.txt", "build.txt", "cpu.txt")]
LOCKS += [LABELING / name for name in ("requirements.txt", "requirements-test.txt")]


def lines(path: Path) -> list[str]:
    """The lines of a requirements file with continued lines joined and comments gone."""
    joined = re.sub(r"\\\n", "", path.read_text())
    return [line for raw in joined.splitlines() if (line := re.sub(r"(^|\s)#.*", "", raw).strip())]


def locked(*paths: Path) -> dict[str, str]:
    """The version of each package in these locks."""
    pins = [Requirement(line.split(" --hash", 1)[0]) for path in paths for line in lines(path)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def asked_for(path: Path) -> list[Requirement]:
    return [Requirement(line) for line in lines(path)]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_line_of_a_lock_is_one_exact_version_with_hashes(path: Path) -> None:
    for line in lines(path):
        assert re.fullmatch(
            r"[\w.-]+==[\w.+!-]+( ; [^;]+?)?( +--hash=sha256:[0-9a-f]{64})+", line
        ), line
    assert len(locked(path)) == len(lines(path)), "each package once"
    assert "://" not in path.read_text(), "a lock names no index"


def test_torch_and_triton_are_locked() -> None:
    assert locked(REQUIREMENTS / "torch.txt").keys() == {"torch"}
    assert locked(REQUIREMENTS / "triton.txt").keys() == {"triton"}


def test_the_training_lock_holds_all_that_is_asked_for_and_nothing_that_is_excluded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        *project["optional-dependencies"]["bench"],
        *project["optional-dependencies"]["trackers"],
    ]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras]]
    wanted += map(Requirement, project["optional-dependencies"]["dev"])
    wanted += [
        one
        for name in ("build.in", "cpu.in", "cpu-overrides.txt")
        for one in asked_for(REQUIREMENTS / name)
    ]
    pins = locked(REQUIREMENTS / "build.txt", REQUIREMENTS / "cpu.txt", REQUIREMENTS / "torch.txt")
    for one in wanted:
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), one
    excluded = {canonicalize_name(one.name) for one in asked_for(REQUIREMENTS / "cpu-excludes.txt")}
    assert not excluded & locked(REQUIREMENTS / "cpu.txt").keys()
    assert {"torch", "torchvision", "triton"} <= excluded, (
        "a CUDA build would break the CPU build of torch"
    )


def test_the_labeling_lock_holds_all_that_is_asked_for_and_the_overrides() -> None:
    pins = locked(LABELING / "requirements.txt", LABELING / "requirements-test.txt")
    named = tomllib.loads((LABELING / "pyproject.toml").read_text())["project"]["dependencies"]
    inputs = ("requirements.in", "requirements-test.in", "overrides.txt")
    wanted = [
        *map(Requirement, named),
        *(one for name in inputs for one in asked_for(LABELING / name)),
    ]
    for one in wanted:
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), one
    named_by_code = {(one.name, str(one.specifier)) for one in map(Requirement, named)}
    assert named_by_code == {
        (one.name, str(one.specifier)) for one in asked_for(LABELING / "requirements.in")
    }


def test_locks_that_are_installed_together_agree() -> None:
    for one, other in (
        (REQUIREMENTS / "build.txt", REQUIREMENTS / "cpu.txt"),
        (LABELING / "requirements.txt", LABELING / "requirements-test.txt"),
    ):
        first, second = locked(one), locked(other)
        assert {name: first[name] for name in first.keys() & second} == {
            name: second[name] for name in first.keys() & second
        }


def test_every_install_of_the_makefile_checks_hashes() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.sub(r"\\\n\s*", " ", makefile)
    options = re.search(r"^LOCKED := (.*)$", recipe, re.M)
    assert options and {"--require-hashes", "--no-deps"} <= set(options[1].split())
    installs = re.findall(
        r"(?:bin/|\$\(BIN\)/|-m )pip (?!\$\(LOCKED\))([^\n;|]*)", recipe.replace(options[0], "")
    )
    assert [" ".join(one.split()) for one in installs if "^torch==" not in one] == [
        "install -q --disable-pip-version-check --no-deps --no-build-isolation -e ."
    ], "only prefloop itself is installed without a hash"
    assert "--no-build-isolation -r requirements/cpu.txt" in recipe, (
        "a build must fetch nothing unlocked"
    )


def test_the_hooks_before_a_commit_run_the_ruff_of_the_lock() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    ruff = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)
    assert ruff and ruff[1] == locked(REQUIREMENTS / "cpu.txt")["ruff"]
