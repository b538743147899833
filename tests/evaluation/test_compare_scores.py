"""What a scorer's win rates become when there is no judge to ask."""

from prefloop.evaluation.win_rates import of_scores
from prefloop.stats.length_control import length_controlled_win_rate


def test_a_scorers_length_controlled_rate_counts_characters_and_names_the_scorer() -> None:
    words = [
        ("extraordinarily", "a"),
        ("a", "extraordinarily"),
        ("long answers", "my map"),
        ("no", "be"),
    ] * 5
    mine = {"gold": {}, "text": {}, "words": {}}
    base = {"gold": {}, "text": {}, "words": {}}
    for i, texts in enumerate(words):
        for side, text in zip((mine, base), texts, strict=True):
            side["gold"][str(i)] = [float(len(text) + i % 2)]
            side["text"][str(i)], side["words"][str(i)] = [text], [len(text.split())]
    wins = {
        i: [0.5 if (a := mine["gold"][i]) == (b := base["gold"][i]) else float(a > b)]
        for i in mine["gold"]
    }
    leads = {str(i): [float(len(a) - len(b))] for i, (a, b) in enumerate(words)}
    expected = length_controlled_win_rate(wins, leads, resamples=50)
    found = of_scores(mine, base, "gold", 50)
    assert found["lc_judge"] == "gold scorer"
    assert (found["lc_win_rate"], found["lc_ci_low"], found["lc_ci_high"]) == (
        expected.rate,
        expected.low,
        expected.high,
    )
    by_words = length_controlled_win_rate(wins, {i: [0.0] for i in wins}, resamples=50)
    assert (expected.low, expected.high) != (by_words.low, by_words.high)
