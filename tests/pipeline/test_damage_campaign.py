"""A small size of ``benchmarks/reliability/damage.py``: whatever is damaged, the same command ends
alike or says why not.
"""

import importlib.util
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "reliability" / "damage.py"


@pytest.mark.slow
def test_damaged_runs_end_alike_or_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("damage", CAMPAIGN)
    assert spec is not None and spec.loader is not None
    damage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(damage)
    assert damage.main(["--seed", "0", "--size", "6"]) == 0, capsys.readouterr().out
