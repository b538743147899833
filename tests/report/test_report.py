"""The report says what the run measured, shows any text as text and needs nothing from outside."""

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import report_fixture
from report_fixture import estimate, level, without_gold
from report_page import HOSTILE, Page, part, report

from prefloop.artifacts.codec import read
from prefloop.errors import DataError
from prefloop.report import headline
from prefloop.report.html import write_report
from prefloop.report.summary import Summary


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("run"))


def sentence(data: dict[str, Any]) -> str:
    found = headline.headline(read(Summary, data))
    assert found is not None
    return str(found.sentence.striptags())


def cautions(data: dict[str, Any]) -> str:
    found = headline.headline(read(Summary, data))
    assert found is not None
    return " ".join(found.cautions)


def test_headline_quotes_win_rates_with_intervals_and_the_control(full: Page) -> None:
    assert (
        full.headings[0]
        == "PPO beats SFT in 78.1 % [72.0, 83.4] of comparisons under the gold scorer and DPO does"
        " so in 70.3 % [64.0, 76.1]; the A/A control reads 49.7 % [46.0, 53.0]."
    )


def test_headline_does_not_claim_a_win_whose_interval_contains_half() -> None:
    data = report_fixture.summary()
    data["results"]["ppo"]["wins"]["gold"] = estimate(0.53, 0.47, 0.59)
    data["results"]["dpo"]["wins"]["gold"] = estimate(0.41, 0.35, 0.47)
    said = sentence(data)
    assert "beats" not in said
    assert (
        "PPO cannot be told apart from SFT, winning 53.0 % [47.0, 59.0], which does not exclude"
        " 50 %" in said
    )
    assert "DPO loses to SFT, winning only 41.0 % [35.0, 47.0]" in said


def test_headline_and_caution_tell_when_the_control_is_biased() -> None:
    data = report_fixture.summary()
    data["control"]["gold"] = estimate(0.55, 0.52, 0.58)
    assert "but the A/A control reads 55.0 % [52.0, 58.0], which excludes the 50 %" in sentence(
        data
    )
    assert "biased" in cautions(data)
    data["control"] = None
    assert sentence(data).endswith("no A/A control was run.")


def test_headline_without_gold_names_the_reward_model_and_its_bias() -> None:
    data = without_gold(report_fixture.summary())
    assert "PPO beats SFT in 91.3 % [87.4, 94.5] of comparisons under the reward model" in sentence(
        data
    )
    assert "The judge is the reward model that PPO was trained to please" in cautions(data)
    assert "a reward model that learnt from the same votes as DPO" in cautions(data)
    assert "It never saw its scores" in cautions(data)


def test_a_policy_that_writes_much_more_is_led_by_its_rate_at_equal_length() -> None:
    data = report_fixture.summary()
    data["results"]["sft"]["length_mean"] = data["results"]["ppo"]["length_mean"] / 2
    assert (
        "PPO beats SFT in 78.1 % [72.0, 83.4] of comparisons under the gold scorer (its answers are"
        " 2.0 times as long as SFT's; no rate" in sentence(data)
    )
    data["results"]["ppo"] |= level("gold scorer", 0.52, 0.44, 0.6)
    assert (
        "PPO cannot be told apart from SFT, winning 52.0 % [44.0, 60.0] at equal length (its"
        " answers are 2.0 times as long as SFT's; 78.1 % as they are)" in sentence(data)
    )
    data["results"]["ppo"] |= level("another judge", 0.52, 0.44, 0.6)
    assert "PPO beats SFT in 78.1 %" in sentence(data)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.271, 0.79, "which does not exclude chance"), (0.1, 0.4, "worse than chance")],
)
def test_a_reward_model_at_chance_names_nobody_anywhere_in_the_report(
    low: float, high: float, said: str, tmp_path: Path
) -> None:
    data = without_gold(report_fixture.summary())
    for result in data["results"].values():
        result |= level("reward model", 0.612, 0.5, 0.7) | {"sign_test_p": 0.01}
    data["matrix"] = {
        "judge": "reward model",
        "policies": ["sft", "ppo"],
        "rate": [[None, 0.087], [0.913, None]],
    }
    data["reward_model"] |= {
        "accuracy": 0.533,
        "accuracy_low": low,
        "accuracy_high": high,
        "held_out_pairs": 15,
    }
    page = report(tmp_path, data)
    assert (
        page.headings[0].startswith("The reward model is right on 53.3 %")
        and said in page.headings[0]
    )
    assert "Nothing says which policy is better" in page.headings[0]
    for rate in ("91.3", "61.2", "beats", "loses", "A/A control"):
        assert rate not in re.sub(
            r"<svg.*?</svg>", "", page.source.partition("</style>")[2], flags=re.DOTALL
        ), rate
    data["reward_model"]["accuracy_low"] = 0.501
    data["reward_model"]["accuracy_high"] = 0.6
    (tmp_path / "sound").mkdir()
    assert "PPO beats SFT in 91.3 %" in report(tmp_path / "sound", data).headings[0]


def test_a_reward_model_that_gold_contradicts_is_called_over_optimization() -> None:
    data = report_fixture.summary()
    assert "over-optimization" not in cautions(data)
    data["results"]["ppo"]["wins"]["gold"] = estimate(0.40, 0.34, 0.46)
    assert (
        "prefers PPO (91.3 %, gold 40.0 %) to SFT and the gold scorer does not confirm it"
        in cautions(data)
    )


def test_every_section_of_a_complete_run_is_present(full: Page) -> None:
    assert full.headings[1:] == [
        "Results",
        "Pipeline",
        "Gold and proxy against KL",
        "PPO curves",
        "Training losses",
        "Labels",
        "Reward model",
        "Conversations",
        "Metrics and audit by stage",
        "What these numbers cannot see",
        "Environment",
    ]
    assert len(full.all("svg")) == 2 + 1 + 4 + 6 + 6


def test_results_table_prints_values_intervals_and_the_control_row(full: Page) -> None:
    rows = re.findall(
        r"<tr.*?</tr>",
        full.source.split('<table class="results">')[1].split("</table>")[0],
        re.DOTALL,
    )
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells[2] == [
        "0.681",
        "[0.655, 0.707]",
        "78.1",
        "[72.0, 83.4]",
        "91.3",
        "[87.4, 94.5]",
        "21.74",
        "[20.30, 23.20]",
        "58.6",
        "0.0",
        "94.1",
    ]
    assert "A/A control" in rows[4] and cells[4][2:4] == ["49.7", "[46.0, 53.0]"]
    assert "nats" in rows[0] and "words" in rows[0]


def test_figures_have_alt_text_own_ids_and_text_that_is_text(full: Page) -> None:
    for figure in full.all("svg"):
        assert figure["role"] == "img" and len(figure["aria-label"] or "") > 20
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for axis in (
        "step",
        "KL to reference (nats per response)",
        "win rate against SFT (%), judged by gold scorer",
    ):
        assert axis in full.text


def test_figures_use_theme_variables_only(full: Page) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", full.source, re.DOTALL))
    assert not re.search(r"(fill|stroke): (?!none|var\()", drawings)
    used = set(re.findall(r"var\((--[\w-]+)\)", full.source))
    assert used <= set(re.findall(r"(--[\w-]+):", full.source))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(report_fixture.write_run(tmp_path / "a")).read_bytes()
    assert write_report(report_fixture.write_run(tmp_path / "b")).read_bytes() == first


def test_nothing_is_loaded_from_outside_and_no_script_may_run_but_the_one_whose_hash_is_stated(
    full: Page,
) -> None:
    links = [
        (tag, name, value)
        for tag, attributes in full.tags
        for name, value in attributes.items()
        if name
        in (
            "src",
            "srcset",
            "href",
            "xlink:href",
            "data",
            "action",
            "poster",
            "background",
            "style",
        )
    ]
    for tag, name, value in links:
        if name != "style":
            assert (value or "").startswith("#") or value == "data:,", (tag, name, value)
    for target in re.findall(r"url\(([^)]*)\)", full.source):
        assert target.startswith("#")
    assert (
        "@import" not in full.source
        and "@font-face" not in full.source
        and "://" not in full.source
    )
    assert full.all("script") == [{}] and not [
        a for _, attrs in full.tags for a in attrs if a.startswith("on")
    ]
    policy = next(
        meta["content"]
        for meta in full.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    script = re.findall(r"<script>(.*?)</script>", full.source, re.DOTALL)[0]
    stated = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        policy is not None
        and "default-src 'none'" in policy
        and f"script-src 'sha256-{stated}';" in policy
    )
    assert "innerHTML" not in script and "eval" not in script and "document.write" not in script


def hostile(value: Any) -> Any:
    """The same structure with hostile text in every string, keys of free dictionaries included."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    return value


def test_text_from_data_is_shown_as_text_wherever_it_appears(tmp_path: Path) -> None:
    data = report_fixture.summary()
    rows = report_fixture.events()
    data = hostile(data)
    data["results"] = {"sft": data["results"]["sft"], HOSTILE: data["results"]["ppo"]}
    for sample in data["samples"]:
        sample["prompt"][0]["role"] = "user"
    data["samples"][0]["responses"] = {HOSTILE: {"text": HOSTILE}}
    data["environment"]["versions"] = {HOSTILE: HOSTILE}
    data["stages"][0]["metrics"] = {HOSTILE: HOSTILE, "audit": [HOSTILE]}
    data["stages"] += [{"name": name} for name in ("ppo", HOSTILE)]
    rows += [{"stage": HOSTILE, "event": "step", "step": i, "loss": 1.0 / i} for i in (1, 2)]
    shown = report(tmp_path, data, rows)
    assert shown.all("script") == [{}] and not shown.all("img")
    assert not [
        name for _, attributes in shown.tags for name in attributes if name.startswith("on")
    ]
    assert shown.text.count(HOSTILE) > 20
    assert len(shown.all("svg")) == 1 + 1 + 4 + 6 + 1 + 1


def test_a_lone_surrogate_or_control_character_does_not_cost_the_report(tmp_path: Path) -> None:
    data = report_fixture.summary()
    data["samples"][0]["responses"]["ppo"]["text"] = "before \ud800 \x00 after"
    assert "before ? " in report(tmp_path, data, []).text


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    bare = report(tmp_path, {"run": "bare"}, [])
    assert bare.headings == ["Run report: bare"]
    assert not bare.all("svg") and not bare.all("table")


def test_gold_disappears_everywhere_when_there_is_no_gold_scorer(tmp_path: Path) -> None:
    data = without_gold(report_fixture.summary())
    rows = [
        row | {"gold_mean": None} if "gold_mean" in row else row for row in report_fixture.events()
    ]
    without = report(tmp_path, data, rows)
    assert len(without.all("svg")) == 1 + 1 + 3 + 6 + 6
    assert "Gold score" not in without.text and "gold score (never" not in without.text


def test_numbers_that_diverged_count_as_missing(tmp_path: Path) -> None:
    data = report_fixture.summary()
    data["results"]["ppo"]["kl"]["value"] = float("nan")
    data["results"]["ppo"]["gold"]["high"] = float("inf")
    rows = report_fixture.events()
    rows[-2]["reward_mean"] = float("nan")
    text = report(tmp_path, data, rows).text
    assert "nan" not in text.lower().replace("\n", " ").split() and "inf" not in text.split()


def test_any_number_of_policies_with_any_name(tmp_path: Path) -> None:
    data = report_fixture.summary()
    for i in range(9):
        data["results"][f"my policy {i} with a name that is far too long for an axis"] = data[
            "results"
        ]["dpo"]
    many = report(tmp_path, data, [])
    assert "my policy 8 with a name that is far too long for an axis" in many.text
    assert "8 more in the table" in many.headings[0]


def test_simulated_annotators_are_marked(tmp_path: Path) -> None:
    data = report_fixture.summary()
    data["annotators"][0]["simulated"] = False
    assert report(tmp_path, data, []).source.count("badge simulated") == len(data["annotators"]) - 1


def test_a_failed_report_leaves_the_previous_one_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_report(report_fixture.write_run(tmp_path, rows=[]))
    before = target.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"cannot write .*no space"):
        write_report(tmp_path)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "events.jsonl",
        "report.html",
        "summary.json",
    ]


def test_later_rounds_have_curves_of_their_own_with_their_round(tmp_path: Path) -> None:
    data, rows = report_fixture.summary(), report_fixture.events()
    for name in ("reward", "ppo"):
        first = next(stage for stage in data["stages"] if stage["name"] == name)
        data["stages"].append(first | {"name": f"{name}-2", "key": "f" * 64})
        rows += [row | {"stage": f"{name}-2"} for row in rows if row["stage"] == name]
    page = report(tmp_path, data, rows)
    assert "PPO, round 2 curves" in page.headings
    assert (
        page.source.count("ln 2</text>") == report(tmp_path / "one").source.count("ln 2</text>") + 1
    )


def test_held_out_loss_is_drawn_beside_training_loss_with_its_best_step(tmp_path: Path) -> None:
    data, rows = report_fixture.summary(), report_fixture.events()
    data["stages"][0]["metrics"] |= {"held_out": 12, "held_out_loss": 1.95, "best_step": 80}
    looks = {40: 2.2, 80: 1.95, 120: 2.1}
    for step, loss in looks.items():  # as it is written: just before the step
        at = next(
            i for i, row in enumerate(rows) if row.get("step") == step and row["stage"] == "sft"
        )
        rows.insert(at, {"stage": "sft", "event": "held_out", "step": step, "loss": loss})
    page = report(tmp_path / "looked", data, rows)
    [drawn] = [a["aria-label"] for a in page.all("svg") if "held out" in str(a["aria-label"])]
    assert (
        drawn == "SFT: loss (nats) against step, held out from 2.20 to 2.10, best 1.95 at step 80"
    )
    losses = part(page, "losses")
    assert all(f">{word}</text>" in losses for word in ("training", "held out", "best"))
    assert "1.95 nats held-out loss" in part(page, "pipeline") and "best step" in page.text.replace(
        "_", " "
    )
    assert "held out" not in part(report(tmp_path / "plain"), "losses")
