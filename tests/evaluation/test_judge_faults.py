"""Endpoints that fail, refuse or must not be hurried: every pair ends judged once or reported as
failed.
"""

import collections
import json
import re
import threading

import pytest
from judge_endpoint import (  # noqa: F401
    PROMPT,
    asked,
    completion,
    endpoint_fixture,
    files,
    judge_at,
    judge_files,
    prefers_longer,
)
from pydantic import ValidationError

from prefloop.base import endpoint as endpoint_module
from prefloop.base.endpoint import Pace
from prefloop.config import JudgeConfig
from prefloop.config.ranges import PerMinute, range_of
from prefloop.evaluation.judges.cache import VerdictCache

TRUNCATED = (200, {"Content-Length": "999"}, '{"choices": [{"mess')
NOT_JSON = (200, {}, "<html>come back later</html>")
FAULTS = {
    "429": (429, {"Retry-After": "0"}, "slow down"),
    "500": (500, {}, "boom"),
    "503": (503, {}, ""),
    "truncated": TRUNCATED,
    "not JSON": NOT_JSON,
    "no choices": (200, {}, '{"choices": []}'),
    "time-out": None,
}


@pytest.mark.parametrize(
    "answer", ["The first is better. [[A]]", '{"reasons": "It stands first.", "verdict": "A"}']
)
def test_both_orders_turn_a_judge_that_always_prefers_the_first_into_ties_only(
    endpoint, tmp_path, answer
):
    server = endpoint(lambda number, body: answer)
    a, b = files(tmp_path)
    result = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    assert (result.win_rate.rate, result.win_rate.ties, result.length_controlled.rate) == (
        0.5,
        1.0,
        0.5,
    )
    assert (result.n_comparisons, result.n_disagreed, result.disagreement) == (6, 6, 1.0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_a_retry_and_nothing_else(endpoint, tmp_path, fault):
    seen, lock = collections.Counter(), threading.Lock()

    def script(number, body):
        with lock:
            seen[asked(body)] += 1
            first = seen[asked(body)] == 1
        return FAULTS[fault] if first else prefers_longer(number, body)

    server = endpoint(script)
    a, b = files(tmp_path)
    settings = {"timeout": 1.0, "max_retries": 60} if fault == "time-out" else {}
    result = judge_files(a, b, judge_at(server.url, **settings), tmp_path / "cache.jsonl")
    assert (result.win_rate.rate, result.n_comparisons, result.n_failed) == (1.0, 6, 0)
    assert len(seen) == 12 and min(seen.values()) == 2
    if fault != "time-out":  # a busy machine may be late again and again
        assert max(seen.values()) == 2
        assert result.usage.requests == len(server.bodies) == 24
        assert result.usage.retries == (12 if fault not in ("not JSON", "no choices") else 0)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("500", r"HTTP 500: boom \(3 attempts\)"),
        ("truncated", r"RemoteProtocolError.*\(3 attempts\)"),
        ("not JSON", "not a chat completion, twice: <html>come back later"),
        (
            (400, {}, '{"error": "maximum context length"}'),
            "HTTP 400: .*maximum context length.*is it too long",
        ),
    ],
)
def test_a_pair_that_cannot_be_judged_is_reported_left_out_and_asked_again_by_the_next_run(
    endpoint, tmp_path, fault, why
):
    bad, broken = FAULTS.get(fault, fault) if isinstance(fault, str) else fault, [True]

    def script(number, body):
        return bad if broken[0] and "answer 3" in asked(body) else prefers_longer(number, body)

    server = endpoint(script)
    a, b = files(tmp_path)
    result = judge_files(a, b, judge_at(server.url, backoff=0.0), tmp_path / "cache.jsonl")
    assert (result.n_comparisons, result.n_failed, result.win_rate.n_prompts) == (5, 1, 5)
    assert (result.win_rate.rate, result.n_asked) == (1.0, 10)
    assert len(VerdictCache(tmp_path / "cache.jsonl")) == 10
    assert all(re.search(why, failure) for failure in result.failures) and result.failures
    broken[0], before = False, len(server.bodies)
    again = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    assert (again.n_comparisons, again.n_failed, again.n_asked, again.n_cached) == (6, 0, 2, 10)
    assert len(server.bodies) == before + 2


def test_a_refusal_is_asked_again_and_then_counted_not_taken_for_a_verdict(endpoint):
    refusing = endpoint(lambda n, body: completion(None, refusal="I cannot help with that. [[A]?"))
    verdict = judge_at(refusing.url).compare(PROMPT, "a", "b")
    assert (verdict.score, verdict.unparsable, verdict.failed) == (0.5, 1, "")
    assert verdict.raw == ("I cannot help with that. [[A]?",) * 2
    relenting = endpoint(lambda n, body: "I'm sorry, I can't." if n == 0 else "[[B]]")
    assert judge_at(relenting.url).compare(PROMPT, "a", "b").score == 0.0


def test_requests_keep_to_so_many_a_minute_retries_too(endpoint, monkeypatch):
    now, sent = [100.0], []

    def wait(seconds, stop):
        now[0] += seconds

    def script(number, body):
        sent.append(now[0])
        return (500, {}, "") if number == 2 else "[[C]]"

    monkeypatch.setattr(endpoint_module, "_wait", wait)
    server = endpoint(script)
    pace = Pace(20, clock=lambda: now[0])
    judge = judge_at(server.url, max_concurrency=1, pace=pace)
    judge.ask([(PROMPT, f"a{i}", "b") for i in range(7)])
    assert sent == pytest.approx([100 + 3 * k for k in range(8)])
    now[0] += 1000
    judge.compare(PROMPT, "late", "b")
    judge.compare(PROMPT, "later", "b")
    assert sent[-2:] == pytest.approx([1121, 1124]), (
        "time that was not used is not made up for by a burst"
    )


def test_the_slowest_pace_can_be_waited_for_and_slower_is_refused():
    slowest = range_of(PerMinute)
    pace = Pace(slowest.least, clock=lambda: 0.0)
    assert max(pace.turn() for _ in range(1001)) < threading.TIMEOUT_MAX, "as many wait at a time"
    with pytest.raises(ValidationError, match=r"expected a number from 0\.001"):
        JudgeConfig(requests_per_minute=1e-9)


def test_turns_taken_by_many_threads_are_all_apart():
    pace, turns, lock = Pace(60, clock=lambda: 0.0), [], threading.Lock()

    def take():
        for _ in range(25):
            turn = pace.turn()
            with lock:
                turns.append(turn)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == [float(k) for k in range(100)]


def test_an_endpoint_that_refuses_response_format_is_asked_in_words_from_then_on(endpoint):
    def script(number, body):
        if "response_format" in body:
            return (
                400,
                {},
                '{"error": {"message": "Unrecognized request argument: response_format"}}',
            )
        assert "[[A]]" in body["messages"][0]["content"]
        return prefers_longer(number, body)

    server = endpoint(script)
    judge = judge_at(server.url, max_concurrency=1)
    assert [v.score for v in judge.ask([(PROMPT, "long", "b"), (PROMPT, "a", "long")])] == [
        1.0,
        0.0,
    ]
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


def test_an_error_that_only_repeats_the_request_does_not_end_structured_answers(endpoint):
    def script(number, body):
        if "far too long" in asked(body):
            return 400, {}, "too long: " + json.dumps(body)
        return '{"reasons": "r", "verdict": "B"}'

    server = endpoint(script)
    first, second = judge_at(server.url, max_concurrency=1).ask(
        [(PROMPT, "far too long", "b"), (PROMPT, "a", "b")]
    )
    assert first.failed and "HTTP 400" in first.failed
    assert second.score == 0.0
    assert ["response_format" in body for body in server.bodies] == [True, False, True]


def test_the_key_is_in_no_report_of_a_failure(endpoint, monkeypatch, tmp_path):
    key = "topsecret-9876543210"
    monkeypatch.setenv("JUDGE_KEY", key)
    server = endpoint(
        lambda n, body: (422, {}, f"you are {key}") if "answer 3" in asked(body) else f"{key} [[C]]"
    )
    a, b = files(tmp_path)
    judge = judge_at(server.url, api_key_env="JUDGE_KEY")
    result = judge_files(a, b, judge, tmp_path / "cache.jsonl")
    assert result.n_failed == 1 and "you are ***" in result.failures[0]
    assert key not in repr(result) and key not in (tmp_path / "cache.jsonl").read_text()
    assert server.auth[0] == f"Bearer {key}"
