"""What a scorer's win rates become when there is no judge to ask."""

from prefloop.artifacts.results import Estimate, PolicyResult
from prefloop.evaluation.win_rates import leads_of, of_scores, wins_of
from prefloop.pipeline.stages.compare import ScoredAnswers
from prefloop.records import ScoredResponse
from prefloop.stats.length_control import length_controlled_win_rate


def test_a_scorers_length_controlled_rate_counts_characters_and_names_the_scorer() -> None:
    words = [
        ("extraordinarily", "a"),
        ("a", "extraordinarily"),
        ("long answers", "my map"),
        ("no", "be"),
    ] * 5
    mine, base = (
        ScoredAnswers(
            {},
            {
                str(i): [ScoredResponse(texts[side], gold=float(len(texts[side]) + i % 2))]
                for i, texts in enumerate(words)
            },
        )
        for side in (0, 1)
    )
    wins = wins_of(mine.scores("gold"), base.scores("gold"))
    leads = {str(i): [float(len(a) - len(b))] for i, (a, b) in enumerate(words)}
    assert leads_of(mine.lengths, base.lengths) == leads
    expected = length_controlled_win_rate(wins, leads, resamples=50)
    found = of_scores(PolicyResult(), "gold", wins, leads, 50).at_equal_length
    assert found.judge == "gold scorer"
    assert found.win == Estimate(expected.rate, expected.low, expected.high)
    by_words = length_controlled_win_rate(wins, {i: [0.0] for i in wins}, resamples=50)
    assert (expected.low, expected.high) != (by_words.low, by_words.high)
