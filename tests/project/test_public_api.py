"""``import prefloop`` gives the public names and no heavy library; old paths are answered with the
new ones.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest
from documents import ROOT

import prefloop
from prefloop.moved import NEW


@pytest.mark.parametrize("name", prefloop.__all__)
def test_every_public_name_loads(name: str) -> None:
    found = getattr(prefloop, name)
    assert callable(found) and found.__module__.startswith("prefloop.")
    assert getattr(importlib.import_module(str(prefloop.where(name))), found.__name__) is found


def test_importing_the_package_brings_no_heavy_library() -> None:
    code = (
        "import prefloop, sys; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_are_none_are_no_attributes() -> None:
    assert not hasattr(prefloop, "Pipelin") and prefloop.where("Pipelin") is None
    assert {"Pipeline", "SFT", "run"} <= set(dir(prefloop))


@pytest.mark.parametrize("old", NEW)
def test_an_old_path_is_answered_with_the_new_one(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="has moved: ") as found:
        importlib.import_module(old)
    answer = str(found.value).partition("has moved: ")[2]
    for part in answer.replace(";", ",").split(", "):
        if part.startswith("from prefloop import "):
            assert part.removeprefix("from prefloop import ") in prefloop.__all__
        elif (word := part.split()[-1]).startswith("prefloop"):
            assert find_spec(word) is not None, word


def test_no_two_classes_of_the_package_share_a_name() -> None:
    """Classes that others meet; one that begins with _ is its module's own."""
    places: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src" / "prefloop").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(file.name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
