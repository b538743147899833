"""An evaluation that ends early: a judge that cannot be used is not asked for long, and what was
answered is kept.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from judge_endpoint import (  # noqa: F401
    PAIRS,
    PROMPT,
    asked,
    endpoint_fixture,
    files,
    judge_at,
    judge_files,
    prefers_longer,
)

from prefloop.errors import JudgeError
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.judge import prepare
from prefloop.evaluation.judges.tally import Tally
from prefloop.evaluation.judges.verdict import Verdict


def test_ten_failures_in_a_row_stop_the_evaluation_and_say_what_to_do(endpoint, tmp_path):
    server = endpoint(lambda n, body: "[[A]]" if n < 4 else (500, {}, "out of memory"))
    judge, tally = prepare(
        judge_at(server.url, max_retries=0, max_concurrency=1),
        VerdictCache(tmp_path / "cache.jsonl"),
    )
    with pytest.raises(
        JudgeError,
        match=r"(?s)10 questions in a row failed.*out of memory.*asks only what is missing",
    ):
        judge.ask([(PROMPT, f"a{i}", "b") for i in range(50)])
    assert tally.n_failed == 10
    assert len(server.bodies) <= 16, "at most the one on its way is asked beyond the tenth"
    assert len(VerdictCache(tmp_path / "cache.jsonl")) == 4


def test_failures_that_are_not_in_a_row_do_not_stop_it(endpoint):
    server = endpoint(lambda n, body: (500, {}, "") if n % 3 else "[[C]]")
    judge, tally = prepare(judge_at(server.url, max_retries=0, max_concurrency=1), VerdictCache())
    verdicts = judge.ask([(PROMPT, f"a{i}", "b") for i in range(30)])
    assert tally.n_failed == 40 and tally.n_asked == 20
    assert all(verdict.failed for verdict in verdicts), "each pair had an order that failed"


def test_an_evaluation_in_which_everything_failed_is_an_error_not_an_empty_result(
    endpoint, tmp_path
):
    server = endpoint(lambda n, body: (503, {}, ""))
    a, b = files(tmp_path, PAIRS[:2])
    with pytest.raises(JudgeError, match=r"every question failed \(4\)"):
        judge_files(a, b, judge_at(server.url, max_retries=0), tmp_path / "cache.jsonl")


def test_a_judge_that_babbles_is_stopped_with_three_of_its_replies_and_a_second_run_asks_nothing(
    endpoint, tmp_path
):
    server = endpoint(lambda n, body: f"Lovely weather, number {n}.")
    items = [(PROMPT, f"a{i}", "b") for i in range(100)]
    path = tmp_path / "cache.jsonl"
    with pytest.raises(JudgeError, match="20 of 20 answers held no verdict") as caught:
        prepare(judge_at(server.url, max_concurrency=1), VerdictCache(path))[0].ask(items)
    assert str(caught.value).count("Lovely weather, number") == 3
    assert len(server.bodies) <= 42, "two requests a question, and at most one question on its way"
    before = len(server.bodies)
    with pytest.raises(JudgeError, match="answers held no verdict"):
        prepare(judge_at(server.url), VerdictCache(path))[0].ask(items)
    assert len(server.bodies) == before


def test_up_to_five_in_a_hundred_may_be_unparsable_and_not_more(endpoint):
    server = endpoint(lambda n, body: "hm" if "!" in asked(body) else "[[C]]")
    good = [(PROMPT, f"good {i}", "b") for i in range(20)]
    judge, tally = prepare(judge_at(server.url, max_concurrency=1), VerdictCache())
    verdicts = judge.ask([*good, (PROMPT, "one!", "b")])
    assert (tally.n_unparsable, verdicts[-1].score, verdicts[-1].unparsable) == (
        2,
        0.5,
        2,
    ), "2 of 42"
    with pytest.raises(JudgeError, match="4 of 44 answers held no verdict"):
        judge.ask([(PROMPT, "two!", "b")])


def stopped_after(rate: float, seed: int, questions: int = 1000) -> int:
    """Answers until a judge that gives no verdict in ``rate`` of them is stopped; 0 when it is
    not.
    """
    dice, tally = random.Random(seed), Tally("dice")
    for number in range(questions):
        try:
            tally.asked(str(number), Verdict(0.5, unparsable=int(dice.random() < rate)))
        except JudgeError:
            return number + 1
    return 0


def test_an_evaluation_under_way_is_stopped_for_a_share_that_is_surely_too_large_and_not_for_chance():  # noqa: E501
    shares = {
        rate: [stopped_after(rate, seed) for seed in range(60)] for rate in (0.03, 0.05, 0.1, 0.3)
    }
    assert not any(shares[0.03]) and sum(map(bool, shares[0.05])) <= 3, (
        "the share is looked at 1000 times"
    )
    assert sum(map(bool, shares[0.1])) >= 57 and all(shares[0.3])
    assert sorted(shares[0.3])[30] <= 30, "a useless judge costs few questions"


CLIENT = """
    import sys
    from pathlib import Path
    from judge_endpoint import judge_files
    from prefloop.config import JudgeConfig
    from prefloop.evaluation.judges.open import open_judge
    url, folder = sys.argv[1], Path(sys.argv[2])
    judge = open_judge(f"openai:tiny@{url}", JudgeConfig(max_concurrency=3, max_retries=0))
    found = judge_files(folder / "1.jsonl", folder / "2.jsonl", judge, folder / "cache.jsonl")
    print(found.n_asked, found.n_cached, found.n_failed, found.n_comparisons, found.win_rate.rate)
"""


def test_a_client_killed_by_sigkill_asks_only_what_is_missing_when_it_is_started_again(
    endpoint, tmp_path
):
    client = []
    started, released = threading.Event(), threading.Event()

    def script(number, body):
        if number == 13:
            started.wait(300)
            client[0].send_signal(signal.SIGKILL)
            client[0].wait(300)
            released.set()
        elif number > 13 and not released.is_set():
            released.wait(300)  # on their way when the client dies
        return prefers_longer(number, body)

    server = endpoint(script)
    files(tmp_path, [(PROMPT, f"a long answer {i}", f"b {i}") for i in range(20)])
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), server.url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    client.append(subprocess.Popen(command, env=environment))
    started.set()
    assert client[0].wait(300) == -signal.SIGKILL
    released.wait(300)
    kept, before = len(VerdictCache(tmp_path / "cache.jsonl")), len(server.bodies)
    assert 14 - 3 <= kept <= 13, "14 had arrived, 3 at most on their way"
    done = subprocess.run(
        command, env=environment, timeout=300, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(40 - kept), str(kept), "0", "20", "1.0"]
    times = collections.Counter(map(asked, server.bodies))
    assert len(times) == 40 and len(server.bodies) == before + 40 - kept
    twice = [question for question, count in times.items() if count > 1]
    assert max(times.values()) <= 2 and len(twice) == before - kept <= 3, (
        "only what was on its way is asked again"
    )


def test_an_interrupted_evaluation_keeps_the_answers_on_their_way(endpoint, tmp_path):
    both_in = threading.Barrier(2, timeout=300)

    def script(number, body):
        if number in (1, 2):
            both_in.wait()
        return prefers_longer(number, body)

    def interrupt(index, verdict):
        raise KeyboardInterrupt

    server = endpoint(script)
    judge, _ = prepare(
        judge_at(server.url, max_concurrency=2), VerdictCache(tmp_path / "cache.jsonl")
    )
    with pytest.raises(KeyboardInterrupt):
        judge.ask([(PROMPT, f"a{i}", "b") for i in range(30)], interrupt)
    assert len(VerdictCache(tmp_path / "cache.jsonl")) == len(server.bodies) < 60
