"""Agreement of annotators: published values, an independent kappa, planted habits, what the table,
the report and the stage say.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import report_fixture
from counted import calls
from sklearn.metrics import cohen_kappa_score

from prefloop.cli import guarded
from prefloop.config import DataConfig, LabelConfig
from prefloop.data.sources import write_jsonl
from prefloop.pipeline.stages.label import Label
from prefloop.records import Comparison, Message, Rating, Response, Thumb, Vote
from prefloop.report.html import write_report
from prefloop.runs.runtime import Runtime
from prefloop.stats.annotator_agreement import AnnotatorAgreement, alpha, measure, position
from prefloop.stats.vote_speed import too_fast
from prefloop.stats.votes import THUMBS, Votes, collect, collect_thumbs, seconds

# Krippendorff 2011, section C: 4 observers, 12 units, 0 is a missing value.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def comparison(id: str, votes: list[Vote], **meta: object) -> Comparison:
    return Comparison(
        id, [Message("user", f"q {id}")], [Response("one"), Response("two")], votes, dict(meta)
    )


def people(seed: int, items: int, **habits: float) -> list[Comparison]:
    """Random comparisons on which each person takes the better response, shown first or second,
    with the given probability.
    """
    draw = random.Random(seed)
    rows = []
    for i in range(items):
        best = draw.randrange(2)
        votes = [
            Vote(name, 0 if how == 9 else best if draw.random() < how else 1 - best)
            for name, how in habits.items()
        ]
        rows.append(comparison(str(i), votes))
    return rows


def of(found: AnnotatorAgreement, name: str):
    return next(person for person in found.people if person.name == name)


def test_alpha_is_krippendorffs_published_743_and_its_binary_095() -> None:
    counts = np.stack([(np.array(PUBLISHED) == c).sum(0) for c in range(1, 6)], axis=1)
    found = alpha(counts)
    assert found.value == pytest.approx(0.743, abs=5e-4) and found.items == 11
    assert (
        found.low is not None
        and found.high is not None
        and 0 < found.low < found.value < found.high <= 1
    )
    # Section A of the same paper: two observers, ten units, binary.
    a, b = np.array([0, 1, 0, 0, 0, 0, 0, 0, 1, 0]), np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    assert alpha(np.stack([2 - a - b, a + b], axis=1)).value == pytest.approx(0.095, abs=5e-4)


def test_alpha_interval_covers_what_a_larger_sample_shows() -> None:
    truth = measure(collect(people(0, 20_000, a=0.8, b=0.8, c=0.8)), resamples=10).alpha.value
    inside = 0
    for seed in range(40):
        found = measure(collect(people(1 + seed, 150, a=0.8, b=0.8, c=0.8)), resamples=400).alpha
        assert truth and found.low is not None and found.high is not None
        inside += found.low <= truth <= found.high
    assert inside >= 34


def test_nothing_to_agree_on_is_no_alpha_rather_than_a_number() -> None:
    assert (
        measure(
            collect([comparison("1", [Vote("a", 0)]), comparison("2", [Vote("b", 1)])])
        ).alpha.items
        == 0
    )
    same = measure(collect([comparison(str(i), [Vote("a", 0), Vote("b", 0)]) for i in range(3)]))
    assert same.alpha.value is None and same.alpha.items == 3 and same.pairs[0].value is None
    empty = measure(collect([comparison("1", [])]))
    assert empty.alpha.value is None and empty.people == [] and empty.pairs == []


def test_kappa_is_scikit_learns() -> None:
    draw = random.Random(0)
    rows = [
        comparison(
            str(i), [Vote(n, draw.choice([0, 1, "tie", 0])) for n in "abc" if draw.random() < 0.7]
        )
        for i in range(200)
    ]
    for pair in measure(collect(rows)).pairs:
        both = [
            (
                {v.annotator: v.choice for v in r.votes}[pair.a],
                {v.annotator: v.choice for v in r.votes}[pair.b],
            )
            for r in rows
            if {pair.a, pair.b} <= {v.annotator for v in r.votes}
        ]
        one, other = ([str(vote[k]) for vote in both] for k in (0, 1))
        assert pair.items == len(both)
        assert pair.value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


def test_the_later_vote_of_a_person_counts_and_the_earlier_is_reported() -> None:
    found = measure(collect([comparison("1", [Vote("a", 0), Vote("b", 1), Vote("a", 1)])]))
    assert found.repeated == 1 and found.votes == 2 and found.pairs[0].agree == 1.0


def test_who_always_takes_the_first_shown_is_flagged_and_others_are_not() -> None:
    found = measure(collect(people(0, 200, good=0.85, fair=0.7, lazy=9)))
    assert of(found, "lazy").position.biased and not of(found, "good").position.biased
    assert not of(found, "fair").position.biased
    # By the order shown, not by the order in the record: this lazy person took whatever stood first
    # on the page.
    turned = [
        comparison(str(i), [Vote("lazy", i % 2)], shown=[i % 2, 1 - i % 2]) for i in range(40)
    ]
    assert of(measure(collect(turned)), "lazy").position.share == 1.0
    assert of(measure(collect([row.swap() for row in turned])), "lazy").position.share == 1.0


def test_position_test_is_the_exact_binomial_one_and_corrected_for_many_people() -> None:
    found = position(15, 20)
    assert found.p == pytest.approx(0.0413895, abs=1e-6)  # 2 * P(X >= 15), X ~ B(20, 1/2)
    assert (found.low, found.high) == pytest.approx((0.508954, 0.913429), abs=1e-5)
    assert position(0, 0).share is None
    flagged = 0
    for seed in range(20):
        flagged += any(
            p.position.biased
            for p in measure(collect(people(seed, 60, **{f"p{k}": 0.5 for k in range(20)}))).people
        )
    assert flagged <= 3


def test_a_files_own_choices_are_no_habit() -> None:
    rows = [
        comparison(str(i), [Vote("file:pairs.jsonl", 0), Vote("ann", i % 2)]) for i in range(30)
    ]
    found = measure(collect(rows))
    assert of(found, "file:pairs.jsonl").position is None and of(found, "ann").position is not None
    assert found.position is not None and not found.position.biased


def test_votes_too_fast_to_be_read_are_found_against_a_persons_own_pace() -> None:
    steady = np.array([20.0, 25, 30, 22, 27, 24, 6, 26, 23, 28])
    assert too_fast(steady).tolist() == [False] * 6 + [True] + [False] * 3
    assert too_fast(np.array([1.0, 2.9, 3.1])).tolist() == [True, True, False]
    assert not too_fast(np.array([8.0, 8, 8, 9])).any() and not len(too_fast(np.array([])))
    start = seconds("2026-01-01T10:00:00Z")
    rows = []
    for i in range(12):
        quick, slow = start + 2 * i, start + 40 * i + (4000 if i > 5 else 0)
        at = [
            f"2026-01-01T{int(t - start) // 3600 + 10:02}:{int(t - start) // 60 % 60:02}:{int(t - start) % 60:02}+00:00"  # noqa: E501
            for t in (quick, slow)
        ]
        rows.append(comparison(str(i), [Vote("quick", 0, at=at[0]), Vote("slow", 1, at=at[1])]))
    found = measure(collect(rows))
    assert of(found, "quick").speed.flagged and of(found, "quick").speed.fast == 11
    assert (
        of(found, "slow").speed.fast == 0 and of(found, "slow").speed.timed == 10
    )  # the break counts for nothing
    assert of(found, "slow").speed.median == 40.0
    assert np.isnan(seconds("yesterday")) and np.isnan(seconds(None))


def test_the_most_disputed_items_come_first() -> None:
    rows = [
        comparison("agreed", [Vote(n, 0) for n in "abcd"]),
        comparison("split", [Vote("a", 0), Vote("b", 1), Vote("c", 0), Vote("d", 1)]),
        comparison("one against", [Vote("a", 1), Vote("b", 0), Vote("c", 0), Vote("d", 0)]),
        comparison("lone", [Vote("a", 0)]),
    ]
    found = measure(collect(rows)).disputed
    assert [item.id for item in found] == ["split", "one against"]
    assert found[0].counts == {"first shown": 2, "second shown": 2, "tie": 0}
    assert found[0].disagreement == pytest.approx(2 / 3)


def test_thumbs_have_agreement_too() -> None:
    rows = [
        Rating(
            str(i),
            [Message("user", "q")],
            Response("r"),
            [Thumb("a", "up"), Thumb("b", "up" if i % 4 else "down")],
        )
        for i in range(40)
    ]
    votes = collect_thumbs(rows)
    found = measure(votes)
    assert (
        votes.categories == THUMBS
        and found.position is None
        and of(found, "b").shares["down"] == 0.25
    )
    assert found.pairs[0].agree == 0.75 and found.disputed[0].counts == {"up": 1, "down": 1}


def test_more_items_and_votes_cost_no_loop_over_them() -> None:
    """Ten times the items and votes of as many people cost a few calls more: the work is
    numpy's.
    """

    def drawn(items: int, cast: int) -> Votes:
        draw = np.random.default_rng(0)
        cells = np.unique(draw.integers(items * 20, size=cast))
        return Votes(
            ("first shown", "second shown", "tie"),
            [str(i) for i in range(items)],
            [f"p{i:02}" for i in range(20)],
            cells // 20,
            cells % 20,
            draw.integers(3, size=len(cells)),
            draw.random(len(cells)) * 1e6,
            np.zeros(items, bool),
        )

    few, many = drawn(200, 2000), drawn(2000, 20_000)
    assert calls(lambda: measure(many)) < 1.5 * calls(lambda: measure(few))


def test_the_table_has_ties_of_pairs_and_ups_of_thumbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain pairs carry one vote of the file itself, which has no order of showing: they are pairs
    all the same.
    """
    from prefloop.cli import _main

    pairs, thumbs = tmp_path / "pairs.jsonl", tmp_path / "thumbs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"q {i}", "chosen": "yes", "rejected": "no"}) + "\n"
            for i in range(3)
        )
    )
    thumbs.write_text(
        "".join(
            json.dumps({"prompt": f"q {i}", "completion": "a", "label": i > 0}) + "\n"
            for i in range(4)
        )
    )
    for path, column, share in ((pairs, "ties", "0.0%"), (thumbs, "up", "75.0%")):
        assert guarded(_main, ["label", "agree", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["annotator", "votes"])
        head, row = lines[at : at + 2]
        assert head.split()[2] == column and row.split()[2] == share
        assert set(head.split()) & {"ties", "up"} == {column}


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefloop.cli import _main

    write_jsonl(tmp_path / "v.jsonl", people(0, 60, good=0.9, lazy=9))
    assert (
        guarded(
            _main,
            ["label", "agree", str(tmp_path / "v.jsonl"), "--output", str(tmp_path / "a.json")],
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        "Krippendorff's alpha" in shown
        and "takes the first shown too often" in shown
        and "Cohen's kappa" in shown
    )
    assert json.loads((tmp_path / "a.json").read_text())["alpha"]["items"] == 60
    write_jsonl(tmp_path / "none.jsonl", [comparison("1", [])])
    assert guarded(_main, ["label", "agree", str(tmp_path / "none.jsonl")]) == 2
    assert "none of 1 records has a vote" in capsys.readouterr().err


def test_the_label_stage_measures_agreement_and_the_report_shows_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "v.jsonl", people(0, 60, **{"good <b>": 0.9, "lazy": 9}))
    stage = Label(LabelConfig(source="file"), DataConfig(comparisons=tmp_path / "v.jsonl"))
    artifact = stage.run(Runtime(output=tmp_path / "runs"))
    assert artifact.metrics["agreement"]["alpha"]["items"] == 60
    assert (
        artifact.metrics["votes"] == 120 and artifact.metrics["thumbs"] == 0
    )  # comparisons are not taken for thumbs
    data = report_fixture.summary() | {"stages": [{"name": "label", "metrics": artifact.metrics}]}
    page = write_report(report_fixture.write_run(tmp_path / "report", data)).read_text(
        encoding="utf-8"
    )
    part = page.split('id="agreement"')[1].split("</section>")[0]
    assert (
        "takes the first shown too often" in part and "good &lt;b&gt;" in part and "alpha" in part
    )
    data["stages"][0]["metrics"] = {"agreement": {"alpha": "high"}}
    page = write_report(report_fixture.write_run(tmp_path / "other", data)).read_text(
        encoding="utf-8"
    )
    assert 'id="agreement"' not in page


def test_a_file_of_chosen_and_rejected_has_no_agreement(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    stage = Label(LabelConfig(source="file"), DataConfig(comparisons=tmp_path / "p.jsonl"))
    assert "agreement" not in stage.run(Runtime(output=tmp_path / "runs")).metrics


def test_the_command_reads_thumbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefloop.cli import _main

    rows = [
        Rating(
            str(i),
            [Message("user", f"q {i}")],
            Response("r"),
            [Thumb("a", "up"), Thumb("b", "down" if i else "up")],
        )
        for i in range(6)
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert guarded(_main, ["label", "agree", str(tmp_path / "t.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert (
        "6 items, 12 votes of 2 annotators" in shown
        and "first" not in shown.split("most disputed")[1]
    )
