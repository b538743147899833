"""What a comparison cannot decide is said with the number of prompts that would, and what a program
judged is said to be one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import report_fixture
from report_fixture import estimate, level

from prefloop.artifacts.codec import read
from prefloop.evaluation.standing import programs
from prefloop.report.cautions import cautions
from prefloop.report.closing import show
from prefloop.report.headline import headline
from prefloop.report.summary import Summary
from prefloop.stats.intervals import win_rate
from prefloop.stats.undecided import MOST, POWER, prompts_to_tell, undecided


def test_as_many_prompts_as_are_named_show_a_true_rate_as_often_as_is_said() -> None:
    """Verdicts of one pair a prompt under a true rate of 60 %: the number comes from one sample,
    its promise from many of that size.
    """
    rng = np.random.default_rng(5)

    def verdicts(count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        won_P = rng.random(count) < 0.6
        return {str(i): [float(won)] for i, won in enumerate(won_P)}, {
            str(i): [0.5] for i in range(count)
        }

    half = 1.96 * (0.6 * 0.4 / 50) ** 0.5
    needed = prompts_to_tell(0.6, 0.6 - half, 0.6 + half, 50)
    assert needed == 189  # (1.96 + 0.842)² · 0.24 / 0.1², of the textbook's one-sample test
    shown = [win_rate(*verdicts(needed), resamples=300, seed=k).low > 0.5 for k in range(200)]
    assert np.mean(shown) == pytest.approx(POWER, abs=0.08)


def test_more_prompts_than_anybody_asks_are_not_counted() -> None:
    assert (
        prompts_to_tell(0.5, 0.4, 0.6, 80) is None and prompts_to_tell(0.501, 0.4, 0.6, 80) is None
    )
    assert "takes more than 20,000." in undecided("dpo", 0.501, 0.4, 0.602, 80) and MOST == 20_000


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.51, 0.7, False), (0.3, 0.49, False), (0.5, 0.5, False), (0.49, 0.63, True)],
)
def test_only_what_is_open_is_said(low: float, high: float, said: bool) -> None:
    told = undecided("dpo", 0.56, low, high, 80)
    assert bool(told) == said
    if said:
        assert (
            told
            == "80 prompts do not tell dpo from SFT: 56.0 % [49.0, 63.0]. If that rate is right,"
            " 223 would, four times in five."
        )


def test_a_comparison_of_cut_answers_with_whole_ones_is_said_to_be_one() -> None:
    def told(sft: float, ppo: float) -> list[str]:
        data = report_fixture.summary()
        for name, row in data["results"].items():
            row["finished_share"] = ppo if name == "ppo" else sft
        return [line for line in cautions(read(Summary, data), "gold") if "cut off" in line]

    (line,) = told(sft=0.844, ppo=0.031)
    assert line.startswith("3.1 % of the answers of PPO end by themselves, 84.4 % of SFT's")
    assert told(sft=0.2, ppo=0.9) and not told(sft=0.9, ppo=0.55) and not told(sft=0.2, ppo=0.3)


def compared(**base: Any) -> Summary:
    """The made-up run with the bare model in its comparison."""
    data = report_fixture.summary()
    row = data["results"]["dpo"] | {"kl": estimate(9.0)} | base
    data["results"] = {"base": row, **data["results"]}
    names = ["base", "sft", "ppo"]
    rates = [[None, 0.4, 0.2], [0.6, None, 0.3], [0.8, 0.7, None]]
    high = [[None if r is None else r + 0.05 for r in row] for row in rates]
    low = [[None if r is None else r - 0.05 for r in row] for row in rates]
    data["matrix"] = {
        "judge": "gold scorer",
        "policies": names,
        "rate": rates,
        "low": low,
        "high": high,
    }
    return read(Summary, data)


@pytest.mark.parametrize(
    ("low", "rate", "high", "clause"),
    [
        (
            0.25,
            0.30,
            0.36,
            "SFT beats the bare model, which wins <strong>30.0 % [25.0, 36.0]</strong>",
        ),
        (
            0.55,
            0.60,
            0.66,
            "SFT loses to the bare model, which wins <strong>60.0 % [55.0, 66.0]</strong>",
        ),
        (
            0.42,
            0.48,
            0.55,
            "SFT cannot be told apart from the bare model, which wins <strong>48.0 % [42.0, 55.0]",
        ),
    ],
)
def test_the_headline_says_what_sft_itself_has_changed(
    low: float, rate: float, high: float, clause: str
) -> None:
    found = headline(compared(wins={"gold": estimate(rate, low, high)}, length_mean=45.0))
    assert found is not None and clause in found.sentence and found.best == "ppo"
    assert found.sentence.startswith("PPO beats SFT in")
    warned = [note for note in found.cautions if note.startswith("The bare model beats SFT")]
    assert len(warned) == (low > 0.5)
    assert any(
        note.startswith("80 prompts do not tell the bare model from SFT") for note in found.cautions
    ) == (low < 0.5 < high)
    assert ("against the bare model, gold scorer", "80.0 %", "[75.0, 85.0]") in found.tiles


def test_a_longer_bare_model_is_read_at_equal_length_everywhere() -> None:
    plain = {"wins": {"gold": estimate(0.6, 0.55, 0.65)}, "length_mean": 90.0}
    found = headline(compared(**plain, **level("gold scorer", 0.38, 0.3, 0.46)))
    assert (
        found is not None
        and "SFT beats the bare model, which wins <strong>38.0 % [30.0, 46.0]</strong> at equal"
        in (found.sentence)
    )
    assert not any("bare model" in note for note in found.cautions)
    ahead = headline(
        compared(
            **plain | {"wins": {"gold": estimate(0.5, 0.4, 0.65)}},
            **level("gold scorer", 0.7, 0.6, 0.8),
        )
    )
    assert ahead is not None
    (told,) = [note for note in ahead.cautions if "bare model" in note]
    assert told.startswith("The bare model beats SFT, so") and told.endswith(
        "Against the bare model by the gold scorer PPO wins 80.0 % [75.0, 85.0]."
    )


def test_the_terminal_says_what_the_report_says(capsys: pytest.CaptureFixture[str]) -> None:
    data = report_fixture.summary() | {"adapter": "", "config": {"gold": "g.py:score"}}
    row = {"wins": {"gold": estimate(0.52, 0.45, 0.59)}, "length_mean": 90.0}
    data["results"]["dpo"] |= row | level("gold scorer", 0.35, 0.28, 0.42)
    summary = read(Summary, data)
    found = headline(summary)
    show(summary, None)
    said = " ".join(capsys.readouterr().out.split())
    assert found is not None and " ".join(found.sentence.striptags().split()) in said
    assert (
        all(" ".join(note.split()) in said for note in found.cautions) and "do not tell" not in said
    )


def test_the_bare_model_is_never_the_policy_that_a_run_is_judged_by() -> None:
    """It may win most, and lies where no policy was trained to."""
    found = headline(
        compared(wins={"gold": estimate(0.95, 0.9, 0.99), "reward": estimate(0.99, 0.9, 0.995)})
    )
    assert found is not None and found.best == "ppo"
    summary = compared(wins={"gold": estimate(0.4, 0.3, 0.49), "reward": estimate(0.9, 0.8, 0.95)})
    assert not any("over-optimization" in note for note in cautions(summary, "gold"))
    by_reward = compared(gold=None)
    assert not any(
        "bare model" in note
        for note in cautions(by_reward, "reward")
        if "trained to please" in note
    )


def test_programs_that_scored_and_voted_are_named_beside_the_headline() -> None:
    data = report_fixture.summary() | {"config": {"gold": "examples/demo/gold.py:score"}}
    found = headline(read(Summary, data))
    assert found is not None
    told = [
        note
        for note in found.cautions
        if "program (examples/demo/gold.py:score)" in note or "3 simulated" in note
    ]
    assert told == programs("examples/demo/gold.py:score", 3, 0)
    assert programs("", 0, 5) == [] and programs("", 1, 0)[0].startswith(
        "The votes are of 1 simulated annotator, drawn"
    )
    people = data | {"annotators": [{"name": "ann", "simulated": False, "votes": 3}]}
    assert not any("simulated" in note for note in cautions(read(Summary, people), "judge"))
