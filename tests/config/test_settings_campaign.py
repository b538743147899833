"""The campaign over mutated configurations, a small part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_run import ROOT


@pytest.mark.slow
def test_mutated_configurations_are_accepted_or_refused_in_a_few_words(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("pipelines", "benchmarks/reliability"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import settings

    counts, failures = settings.mutations(tmp_path, tiny_folder, seed=1, size=40)
    assert not failures and sum(counts.values()) == 40
