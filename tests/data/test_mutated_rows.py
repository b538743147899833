"""Whatever stands in a row, it is read into a record or named: no traceback, no row lost, nothing
accepted that cannot be kept.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from by_words import ByWords
from mutated_rows import LAYOUT_ROWS
from reliability.rows import files
from rows_checked import Told, check_files, check_rows, run_readers

from prefloop.data.layouts import LAYOUTS

SOME = ("prefloop", "trl_explicit", "judgments", "best_of", "answers")
"""Layouts whose files every command reads here; the campaign takes all."""


def test_the_generator_damages_rows_of_every_layout_that_can_be_read() -> None:
    assert {layout for layout, _ in LAYOUT_ROWS} == {
        name for name, of in LAYOUTS.items() if of.read
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_damaged_row_is_read_or_named_and_never_a_traceback(seed: int) -> None:
    told = Told()
    check_rows(400, seed, told)
    check_files(400, seed, told)
    assert told.failures == []
    assert (
        told.counts["rows accepted"] > 100
        and told.counts["rows named"] > 100
        and told.counts["files read"] > 20
    )


@pytest.mark.slow
def test_every_command_that_reads_rows_takes_or_names_damaged_ones(tiny_folder: Path) -> None:
    told, reward = Told(), ByWords(tiny_folder)
    check_files(
        200,
        3,
        told,
        lambda path, layout, told: (
            layout in SOME and run_readers(path, layout, told, tiny_folder, reward)
        ),
    )
    assert told.failures == []
    assert told.counts["commands with exit 0"] > 5 and told.counts["commands with exit 2"] > 5


def test_files_that_are_damaged_as_a_whole_end_in_one_message() -> None:
    told = Told()
    files(1, 0, told, heavy=False)
    assert told.failures == [] and told.counts["commands with exit 2"] > 20
