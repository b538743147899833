"""Judges from what a person writes, and what they cost."""

import pytest
from judge_endpoint import PROMPT, completion, endpoint_fixture  # noqa: F401

from prefloop.config import JudgeConfig
from prefloop.errors import ConfigError
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.judge import BothOrders, ScoreJudge, prepare
from prefloop.evaluation.judges.open import open_grader, open_judge
from prefloop.evaluation.judges.usage import Usage
from prefloop.records import Prompt

SECRET = "topsecret-5555"


@pytest.mark.parametrize(
    "spec",
    ["", "gpt-5", "opnai:m@http://x/v1", "http://x/v1", "grader.py", "grader:py", "hf:model"],
)
def test_an_unknown_form_names_the_known_ones(spec):
    with pytest.raises(
        ConfigError,
        match=r"(?s)unknown form.*openai:<model>@<base_url>.*local:.*reward:.*file.py:function",
    ):
        open_judge(spec)


@pytest.mark.parametrize(
    "spec", ["openai:m", "openai:@http://x/v1", "openai:http://x/v1", f"openai:m@{SECRET}"]
)
def test_an_endpoint_without_model_or_address_says_what_is_expected(spec):
    with pytest.raises(ConfigError, match=r"expected openai:<model>@<base_url>") as caught:
        open_judge(spec)
    assert SECRET not in str(caught.value)


def test_no_error_repeats_a_secret_of_an_address():
    for spec in (
        f"openai:m@http://me:{SECRET}@x/v1",
        f"openai:m@http://x/v1?key={SECRET}",
        f"htp://me:{SECRET}@x/v1",
    ):
        with pytest.raises(ConfigError) as caught:
            open_judge(spec)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "rubric"}, "a rubric and mode rubric go together"),
        ({"rubric": "a: 1"}, "a rubric and mode rubric go together"),
        ({"price_prompt": 1.0}, "give --price-prompt and --price-completion"),
        ({"extra_body": {"top_p": float("nan")}}, "extra_body.*top_p"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        JudgeConfig(**options)


def test_the_model_of_an_endpoint_may_hold_slashes_and_at_signs(endpoint):
    server = endpoint(lambda n, body: "[[A]]")
    judge = open_judge(f"openai:org/model@v2@{server.url}")
    assert judge.compare(PROMPT, "a", "b").score == 1.0
    assert (server.bodies[0]["model"], judge.name) == ("org/model@v2", "openai:org/model@v2")


def test_criteria_come_from_text_or_a_file(endpoint, tmp_path):
    (tmp_path / "short.md").write_text("Shorter is better.\n")
    server = endpoint(lambda n, body: "[[A]]")
    for given in ("Shorter is better.", str(tmp_path / "short.md")):
        open_judge(f"openai:m@{server.url}", JudgeConfig(criteria=given)).compare(PROMPT, "a", "b")
    assert server.bodies[0] == server.bodies[1]
    assert "Shorter is better." in server.bodies[0]["messages"][0]["content"]
    with pytest.raises(ConfigError, match=r"absent\.txt' cannot be read"):
        open_judge(f"openai:m@{server.url}", JudgeConfig(criteria="absent.txt"))


def test_modes_that_give_scores_make_a_judge_that_is_asked_once_a_response(endpoint, tmp_path):
    server = endpoint(
        lambda n, body: (
            '{"reasons": "", "scores": {"right": 3}}' if "- right" in str(body) else "[[7]]"
        )
    )
    cache = VerdictCache()
    for options in (JudgeConfig(mode="grade"), JudgeConfig(mode="rubric", rubric="right: 1")):
        judge, _ = prepare(open_judge(f"openai:m@{server.url}", options), cache)
        assert isinstance(judge, ScoreJudge) and judge.compare(PROMPT, "a", "b").score == 0.5
    assert len(server.bodies) == 4
    pairwise, _ = prepare(open_judge(f"openai:m@{server.url}"), cache)
    assert isinstance(pairwise, BothOrders)
    with pytest.raises(ConfigError, match="mode pairwise gives no grades"):
        open_grader(f"openai:m@{server.url}")


def test_a_function_judges_with_the_ids_and_meta_of_known_prompts(tmp_path):
    source = tmp_path / "grader.py"
    source.write_text(
        "def hit(prompt, response):\n    return response == prompt.meta.get('answer')\n"
    )
    judge = open_judge(f"{source}:hit", prompts=[Prompt("p", PROMPT, {"answer": "7"})])
    assert [
        judge.compare(PROMPT, *pair).score for pair in (("7", "4"), ("4", "7"), ("4", "9"))
    ] == [1.0, 0.0, 0.5]
    with pytest.raises(ConfigError, match="mode grade is for language models"):
        open_judge(f"{source}:hit", JudgeConfig(mode="grade"))
    assert judge.usage == Usage()


def test_tokens_and_cost_count_what_was_asked_now_and_the_total_what_was_ever_paid_for(
    endpoint, tmp_path
):
    def script(number, body):
        return (
            (500, {}, "")
            if number == 1
            else completion("[[C]]", prompt_tokens=100, completion_tokens=10)
        )

    server = endpoint(script)
    options = JudgeConfig(price_prompt=2.0, price_completion=8.0, max_concurrency=1, backoff=0.0)

    def evaluate(*texts):
        judge = open_judge(f"openai:m@{server.url}", options)
        asked, tally = prepare(judge, VerdictCache(tmp_path / "cache.jsonl"))
        asked.ask([(PROMPT, text, "b") for text in texts])
        return judge.usage, tally.total

    cost = (100 * 2.0 + 10 * 8.0) / 1e6
    usage, total = evaluate("x", "y")
    assert usage == Usage(
        requests=5, retries=1, prompt_tokens=400, completion_tokens=40, cost=pytest.approx(4 * cost)
    )
    assert (total.prompt_tokens, total.completion_tokens, total.cost) == (
        400,
        40,
        pytest.approx(4 * cost),
    )
    usage, total = evaluate("x", "y", "z")
    assert (usage.requests, usage.prompt_tokens, usage.cost) == (2, 200, pytest.approx(2 * cost))
    assert (total.prompt_tokens, total.completion_tokens, total.cost) == (
        600,
        60,
        pytest.approx(6 * cost),
    )
    usage, total = evaluate("z")
    assert usage == Usage(cost=0.0) and total.cost == pytest.approx(2 * cost)


def test_replies_that_do_not_tell_their_tokens_are_counted_and_without_prices_there_is_no_cost(
    endpoint,
):
    server = endpoint(
        lambda n, body: completion("[[C]]", 5, 1) if n % 2 else completion("[[C]]", -5, 1)
    )
    judge = open_judge(f"openai:m@{server.url}", JudgeConfig(max_concurrency=1))
    judge.ask([(PROMPT, f"a{i}", "b") for i in range(4)])
    assert judge.usage == Usage(
        requests=4, prompt_tokens=10, completion_tokens=2, unreported=2, cost=None
    )


@pytest.mark.parametrize(
    "body",
    [
        {"api_key": "sk-hidden"},
        {"metadata": {"accessToken": "sk-hidden"}},
        {"headers": [{"Authorization": "Bearer sk-hidden"}]},
        {"X-API-KEY": ["sk-hidden"]},
        {"client_secret": "sk-hidden"},
    ],
)
def test_a_key_among_further_fields_is_refused_before_it_can_be_written_anywhere(body):
    with pytest.raises(ConfigError, match=r"looks like a key.*name it in --api-key-env") as caught:
        JudgeConfig(extra_body=body)
    assert "sk-hidden" not in str(caught.value)


def test_fields_that_only_sound_like_a_key_are_taken():
    body = {
        "max_completion_tokens": 9,
        "stop_token_ids": [2],
        "add_eos_token": True,
        "schema": {"key": {"type": "x"}},
    }
    assert JudgeConfig(extra_body=body).extra_body == body
