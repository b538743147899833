"""What training saw is what its stages read: no row beyond a limit, no file that nothing learnt
from.
"""

from __future__ import annotations

import json
from pathlib import Path

from prefloop.data.source import Source
from prefloop.data.trained import ROLES, roles_read, trained_prompts


def test_a_limit_counts_records_of_the_kind_that_was_learnt_from(tmp_path: Path) -> None:
    """A prompt that stands in two rows is one prompt and two pairs: read as prompts, four of these
    reach one row further.
    """
    names = ["a", "a", "b", "c", "d", "e"]
    rows = [
        {"prompt": f"Why {name}?", "chosen": f"yes {i}", "rejected": f"no {i}"}
        for i, name in enumerate(names)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def seen(*roles: str) -> list[str]:
        files = dict.fromkeys(roles, Source.of(path))
        return [
            record.prompt[-1].content[4:-1]
            for record in trained_prompts(files, "auto", 4, tmp_path)
        ]

    assert seen("comparisons") == seen("demonstrations") == ["a", "a", "b", "c"]
    assert seen("prompts") == ["a", "b", "c", "d"]
    assert seen("demonstrations", "prompts") == ["a", "a", "b", "c", "a", "b", "c", "d"]
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_thumbs_count_one_by_one_and_as_the_pairs_that_they_form(tmp_path: Path) -> None:
    """A limit of 3 takes three thumbs for KTO, and three pairs for DPO: they reach further."""
    rows = [
        {"prompt": f"Why {i // 2}?", "completion": f"because {i}", "label": i % 2 == 0}
        for i in range(8)
    ]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = trained_prompts({"comparisons": Source.of(path)}, "auto", 3, tmp_path)
    expected = ["Why 0?", "Why 0?", "Why 1?", "Why 0?", "Why 1?", "Why 2?"]
    assert [record.prompt[-1].content for record in found] == expected
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows[::2]), encoding="utf-8"
    )  # none of them down
    found = trained_prompts({"comparisons": Source.of(path)}, "auto", 3, tmp_path)
    assert [record.prompt[-1].content for record in found] == ["Why 0?", "Why 1?", "Why 2?"]


def test_only_files_that_something_learnt_from_count() -> None:
    assert roles_read({"demonstrations", "comparisons", "config"}) == (
        "demonstrations",
        "comparisons",
    )
    assert roles_read({"x"}) == ROLES
