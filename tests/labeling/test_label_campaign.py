"""A small size of benchmarks/reliability/labels.py."""

import runpy

import pytest
from labeling_server import ROOT, environment


@pytest.mark.slow
def test_kills_copies_and_backups_lose_no_acknowledged_vote(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment()
    main = runpy.run_path(str(ROOT / "benchmarks" / "reliability" / "labels.py"))["main"]
    assert main(["--seed", "1", "--size", "40"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "| kills | 1 |" in said and "| backups | 1 |" in said and "| missing | 0 |" in said
