"""Judging when things go wrong: every pair ends judged once or reported as failed, and a judge that cannot be used is not asked for long."""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from judge_endpoint import PROMPT, chat_at, completion, endpoint_fixture, judge_at, judge_files, prefers_longer, shown  # noqa: F401

from prefloop import endpoint as endpoint_module
from prefloop.endpoint import Pace
from prefloop.errors import JudgeError
from prefloop.judging.cache import VerdictCache
from prefloop.judging.judges import compare_many, prepare
from prefloop.judging.tally import Tally
from prefloop.judging.verdict import Verdict

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
PAIRS = [(PROMPT, f"a long answer {i}", f"b {i}") for i in range(6)]


def files(tmp_path, pairs=PAIRS):
    """The two files of responses that make ``pairs``."""
    paths = []
    for side in (1, 2):
        rows = [
            {"id": f"p{i}", "prompt": [{"role": "user", "content": f"Q {i}"}], "response": pair[side]}
            for i, pair in enumerate(pairs)
        ]
        paths.append(tmp_path / f"{side}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def asked(body):
    """What tells a question apart: its text."""
    return body["messages"][1]["content"]


@pytest.mark.parametrize("answer", ["The first is better. [[A]]", '{"reasons": "It stands first.", "verdict": "A"}'])
def test_both_orders_turn_a_judge_that_always_prefers_the_first_into_ties_only(endpoint, tmp_path, answer):
    server = endpoint(lambda number, body: answer)
    a, b = files(tmp_path)
    result = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    assert (result.win_rate.rate, result.win_rate.ties, result.length_controlled.rate) == (0.5, 1.0, 0.5)
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
    settings = {"timeout": 1.0} if fault == "time-out" else {}
    result = judge_files(a, b, judge_at(server.url, **settings), tmp_path / "cache.jsonl")
    assert (result.win_rate.rate, result.n_comparisons, result.n_failed) == (1.0, 6, 0)
    assert len(seen) == 12 and min(seen.values()) == 2
    if fault != "time-out":  # a busy machine may be late a second time
        assert max(seen.values()) == 2
        assert result.usage.requests == len(server.bodies) == 24
        assert result.usage.retries == (12 if fault not in ("not JSON", "no choices") else 0)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("500", r"HTTP 500: boom \(3 attempts\)"),
        ("truncated", r"RemoteProtocolError.*\(3 attempts\)"),
        ("not JSON", "not a chat completion, twice: <html>come back later"),
        ((400, {}, '{"error": "maximum context length"}'), "HTTP 400: .*maximum context length.*is it too long"),
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


def test_ten_failures_in_a_row_stop_the_evaluation_and_say_what_to_do(endpoint, tmp_path):
    server = endpoint(lambda n, body: "[[A]]" if n < 4 else (500, {}, "out of memory"))
    judge = prepare(judge_at(server.url, max_retries=0, max_concurrency=1), VerdictCache(tmp_path / "cache.jsonl"))
    with pytest.raises(JudgeError, match=r"(?s)10 questions in a row failed.*out of memory.*asks only what is missing"):
        judge.compare_many([(PROMPT, f"a{i}", "b") for i in range(50)])
    assert judge.tally.n_failed == 10
    assert len(server.bodies) <= 16, "at most the one on its way is asked beyond the tenth"
    assert len(VerdictCache(tmp_path / "cache.jsonl")) == 4


def test_failures_that_are_not_in_a_row_do_not_stop_it(endpoint):
    server = endpoint(lambda n, body: (500, {}, "") if n % 3 else "[[C]]")
    judge = prepare(judge_at(server.url, max_retries=0, max_concurrency=1), VerdictCache())
    verdicts = judge.compare_many([(PROMPT, f"a{i}", "b") for i in range(30)])
    assert judge.tally.n_failed == 40 and judge.tally.n_asked == 20
    assert all(verdict.failed for verdict in verdicts), "each pair had an order that failed"


def test_an_evaluation_in_which_everything_failed_is_an_error_not_an_empty_result(endpoint, tmp_path):
    server = endpoint(lambda n, body: (503, {}, ""))
    a, b = files(tmp_path, PAIRS[:2])
    with pytest.raises(JudgeError, match=r"every question failed \(4\)"):
        judge_files(a, b, judge_at(server.url, max_retries=0), tmp_path / "cache.jsonl")


def test_a_judge_that_babbles_is_stopped_with_three_of_its_replies_and_a_second_run_asks_nothing(endpoint, tmp_path):
    server = endpoint(lambda n, body: f"Lovely weather, number {n}.")
    items = [(PROMPT, f"a{i}", "b") for i in range(100)]
    path = tmp_path / "cache.jsonl"
    with pytest.raises(JudgeError, match="20 of 20 answers held no verdict") as caught:
        prepare(judge_at(server.url, max_concurrency=1), VerdictCache(path)).compare_many(items)
    assert str(caught.value).count("Lovely weather, number") == 3
    assert len(server.bodies) <= 42, "two requests a question, and at most one question on its way"
    before = len(server.bodies)
    with pytest.raises(JudgeError, match="answers held no verdict"):
        prepare(judge_at(server.url), VerdictCache(path)).compare_many(items)
    assert len(server.bodies) == before


def test_up_to_five_in_a_hundred_may_be_unparsable_and_not_more(endpoint):
    server = endpoint(lambda n, body: "hm" if "!" in asked(body) else "[[C]]")
    good = [(PROMPT, f"good {i}", "b") for i in range(20)]
    judge = prepare(judge_at(server.url, max_concurrency=1), VerdictCache())
    verdicts = judge.compare_many([*good, (PROMPT, "one!", "b")])
    assert (judge.tally.n_unparsable, verdicts[-1].score, verdicts[-1].unparsable) == (2, 0.5, 2), "2 of 42"
    with pytest.raises(JudgeError, match="4 of 44 answers held no verdict"):
        judge.compare_many([(PROMPT, "two!", "b")])


def stopped_after(rate: float, seed: int, questions: int = 1000) -> int:
    """Answers until a judge that gives no verdict in ``rate`` of them is stopped; 0 when it is not."""
    dice, tally = random.Random(seed), Tally("dice")
    for number in range(questions):
        try:
            tally.asked(str(number), Verdict(0.5, unparsable=int(dice.random() < rate)))
        except JudgeError:
            return number + 1
    return 0


def test_an_evaluation_under_way_is_stopped_for_a_share_that_is_surely_too_large_and_not_for_chance():
    shares = {rate: [stopped_after(rate, seed) for seed in range(60)] for rate in (0.03, 0.05, 0.1, 0.3)}
    assert not any(shares[0.03]) and sum(map(bool, shares[0.05])) <= 3, "the share is looked at 1000 times"
    assert sum(map(bool, shares[0.1])) >= 57 and all(shares[0.3])
    assert sorted(shares[0.3])[30] <= 30, "a useless judge costs few questions"


CLIENT = """
    import sys
    from pathlib import Path
    from judge_endpoint import judge_files
    from prefloop.config import JudgeConfig
    from prefloop.judging.specs import open_judge
    url, folder = sys.argv[1], Path(sys.argv[2])
    judge = open_judge(f"openai:tiny@{url}", JudgeConfig(max_concurrency=3, max_retries=0))
    found = judge_files(folder / "1.jsonl", folder / "2.jsonl", judge, folder / "cache.jsonl")
    print(found.n_asked, found.n_cached, found.n_failed, found.n_comparisons, found.win_rate.rate)
"""


def test_a_client_killed_by_sigkill_asks_only_what_is_missing_when_it_is_started_again(endpoint, tmp_path):
    client = []
    released = threading.Event()

    def script(number, body):
        if number == 13:
            client[0].send_signal(signal.SIGKILL)
            client[0].wait(20)
            released.set()
        elif number > 13 and not released.is_set():
            released.wait(20)  # on their way when the client dies
        return prefers_longer(number, body)

    server = endpoint(script)
    files(tmp_path, [(PROMPT, f"a long answer {i}", f"b {i}") for i in range(20)])
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), server.url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    client.append(subprocess.Popen(command, env=environment))
    assert client[0].wait(60) == -signal.SIGKILL
    released.wait(20)
    kept, before = len(VerdictCache(tmp_path / "cache.jsonl")), len(server.bodies)
    assert 14 - 3 <= kept <= 13, "14 had arrived, 3 at most on their way"
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(40 - kept), str(kept), "0", "20", "1.0"]
    times = collections.Counter(map(asked, server.bodies))
    assert len(times) == 40 and len(server.bodies) == before + 40 - kept
    twice = [question for question, count in times.items() if count > 1]
    assert max(times.values()) <= 2 and len(twice) == before - kept <= 3, "only what was on its way is asked again"


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
    judge.compare_many([(PROMPT, f"a{i}", "b") for i in range(7)])
    assert sent == pytest.approx([100 + 3 * k for k in range(8)])
    now[0] += 1000
    judge.compare(PROMPT, "late", "b")
    judge.compare(PROMPT, "later", "b")
    assert sent[-2:] == pytest.approx([1121, 1124]), "time that was not used is not made up for by a burst"


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
            return 400, {}, '{"error": {"message": "Unrecognized request argument: response_format"}}'
        assert "[[A]]" in body["messages"][0]["content"]
        return prefers_longer(number, body)

    server = endpoint(script)
    judge = judge_at(server.url, max_concurrency=1)
    assert [v.score for v in compare_many(judge, [(PROMPT, "long", "b"), (PROMPT, "a", "long")])] == [1.0, 0.0]
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


def test_an_error_that_only_repeats_the_request_does_not_end_structured_answers(endpoint):
    def script(number, body):
        if "far too long" in asked(body):
            return 400, {}, "too long: " + json.dumps(body)
        return '{"reasons": "r", "verdict": "B"}'

    server = endpoint(script)
    first, second = compare_many(
        judge_at(server.url, max_concurrency=1), [(PROMPT, "far too long", "b"), (PROMPT, "a", "b")]
    )
    assert first.failed and "HTTP 400" in first.failed
    assert second.score == 0.0
    assert ["response_format" in body for body in server.bodies] == [True, False, True]


def test_the_key_is_in_no_report_of_a_failure(endpoint, monkeypatch, tmp_path):
    key = "topsecret-9876543210"
    monkeypatch.setenv("JUDGE_KEY", key)
    server = endpoint(lambda n, body: (422, {}, f"you are {key}") if "answer 3" in asked(body) else f"{key} [[C]]")
    a, b = files(tmp_path)
    judge = judge_at(server.url, api_key_env="JUDGE_KEY")
    result = judge_files(a, b, judge, tmp_path / "cache.jsonl")
    assert result.n_failed == 1 and "you are ***" in result.failures[0]
    assert key not in repr(result) and key not in (tmp_path / "cache.jsonl").read_text()
    assert server.auth[0] == f"Bearer {key}"


def test_an_interrupted_evaluation_keeps_the_answers_on_their_way(endpoint, tmp_path):
    both_in = threading.Barrier(2, timeout=10)

    def script(number, body):
        if number in (1, 2):
            both_in.wait()
        return prefers_longer(number, body)

    def interrupt(index, verdict):
        raise KeyboardInterrupt

    server = endpoint(script)
    judge = prepare(judge_at(server.url, max_concurrency=2), VerdictCache(tmp_path / "cache.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        judge.compare_many([(PROMPT, f"a{i}", "b") for i in range(30)], interrupt)
    assert len(VerdictCache(tmp_path / "cache.jsonl")) == len(server.bodies) < 60
