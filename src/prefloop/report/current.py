"""Numbers that other commands left beside a run, as far as they are of what the run's adapters are
now.
"""

import re
from pathlib import Path

from prefloop.artifacts.manifest import read_manifest
from prefloop.errors import StoreError
from prefloop.report.evaluations import BenchFile, PairTest
from prefloop.report.inputs import read_bench, read_reward_eval
from prefloop.report.page import label
from prefloop.report.summary import Summary


def bench_of(run_dir: Path, summary: Summary) -> tuple[BenchFile | None, list[str]]:
    """``bench.json`` without the adapters that the run has trained anew since, and a note of
    them.
    """
    found = read_bench(run_dir / "bench.json")
    if found is None:
        return None, []
    now = {slot: _key(run_dir, summary, slot) for slot in found.adapters}
    stale = [slot for slot, key in found.adapters.items() if now[slot] not in (None, key)]
    if not stale:
        return found, []
    note = (
        f"bench.json was measured on another {_names(stale)} than this run's: left out. Run"
        " prefloop bench again."
    )
    known = [slot for slot, key in now.items() if key is not None]
    # The bare model has no key of its own: where nothing vouches for the file, its numbers may be
    # of another model.
    return (None if set(known) == set(stale) else found.without(stale)), [note]


def reward_tests_of(run_dir: Path, summary: Summary) -> tuple[dict[str, PairTest], list[str]]:
    """``reward-eval.json`` without the files on which another reward model was measured, and a note
    of them.
    """
    found = read_reward_eval(run_dir / "reward-eval.json")
    now = _key(run_dir, summary, "reward")
    stale = [name for name, test in found.items() if test.reward and now not in (None, test.reward)]
    if not stale:
        return found, []
    note = (
        f"reward-eval.json holds {', '.join(stale)} of another reward model than this run's: left"
        " out. Run prefloop reward eval again."
    )
    return {name: test for name, test in found.items() if name not in stale}, [note]


def _names(slots: list[str]) -> str:
    return " and ".join(label(slot) for slot in slots)


def _key(run_dir: Path, summary: Summary, slot: str) -> str | None:
    """The key of what fills a slot: that of the summary's last round, else of the artifact that the
    run links.
    """
    keys = [
        s.key
        for s in summary.stages
        if re.fullmatch(rf"{re.escape(slot)}(-\d+)?", s.name) and s.key
    ]
    if keys:
        return keys[-1]
    try:
        return read_manifest(run_dir / "artifacts" / slot, required=False).key
    except StoreError:
        return None
