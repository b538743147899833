"""What a report says of the run itself: the picture of its stages, its settings, links to every
part.
"""

from pathlib import Path

import report_extras
import report_fixture
import yaml
from report_page import Page, full_fixture, part, report  # noqa: F401

from prefloop.artifacts.codec import read
from prefloop.report import stages
from prefloop.report.summary import Summary


def test_every_link_of_the_bar_leads_to_a_section_of_the_page(full: Page) -> None:
    ids = {attributes.get("id") for attributes in full.all("section")}
    links = [attributes["href"] for attributes in full.all("a")]
    assert len(links) == 13 - 1 and {str(link)[1:] for link in links} <= ids


def test_what_runs_side_by_side_stands_in_one_column_of_the_picture() -> None:
    names = [
        "sft",
        "sample",
        "label",
        "reward",
        "reference",
        "dpo",
        "ppo",
        "sample-2",
        "ppo-2",
        "respond-sft",
        "respond-sft-again",
        "respond-ppo",
        "judge",
    ]
    summary = read(Summary, {"stages": [{"name": name, "seconds": 61} for name in names]})
    assert [[box.name for box in column] for column in stages.picture(summary)] == [
        ["SFT"],
        ["Sample"],
        ["Label"],
        ["Reward model"],
        ["Reference"],
        ["DPO", "PPO"],
        ["Sample, round 2"],
        ["PPO, round 2"],
        ["SFT answers", "SFT answers, again", "PPO answers"],
        ["Judge"],
    ]


def test_a_box_says_what_came_out_and_what_reuse_spared() -> None:
    stage = {
        "name": "label",
        "status": "reused",
        "seconds": 0.0,
        "saved_seconds": 71.2,
        "metrics": {"comparisons": 1720},
    }
    [[box]] = stages.picture(read(Summary, {"stages": [stage]}))
    assert (box.figure, box.status, box.time) == (
        "1,720 comparisons",
        "reused",
        "saved\xa01\xa0min\xa011\xa0s",
    )


def test_settings_are_printed_as_yaml_and_older_summaries_show_what_artifacts_were_made_from(
    full: Page, tmp_path: Path
) -> None:
    code = part(full, "settings").split("<code>")[2].split("</code>")[0]
    assert yaml.safe_load(code) == report_extras.judged()["config"]
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    shown = report(tmp_path, data, [])
    assert "The summary holds no settings" in shown.text and "samples: 2" in shown.text


def test_a_summary_of_an_older_version_with_null_for_new_parts_still_renders(
    tmp_path: Path,
) -> None:
    data = report_fixture.summary() | dict.fromkeys(
        ("matrix", "judging", "contamination", "config")
    )
    assert "All against all" not in report(tmp_path, data, []).headings
