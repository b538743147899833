"""Judges made from other things: both orders, the cache on disk, a user's function."""

import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from judge_endpoint import PROMPT, Scored, Scripted

from prefloop.config import JudgeConfig
from prefloop.errors import ConfigError, DataError, JudgeError
from prefloop.evaluation.judges.assessor import judge_of, verdict_key
from prefloop.evaluation.judges.cache import Cached, VerdictCache
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.judge import BothOrders, ScoreJudge
from prefloop.evaluation.judges.open import open_judge
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message, Prompt


def test_both_orders_keep_a_verdict_that_survives_the_swap_and_tie_one_that_does_not():
    fair, biased, half = (
        BothOrders(judge_of(Scripted(rule)))
        for rule in (
            lambda a, b: float(a > b),
            lambda a, b: 1.0,
            lambda a, b: 0.5 if a == "z" else 0.0,
        )
    )
    kept = fair.ask([(PROMPT, "z", "a"), (PROMPT, "a", "z")])
    assert [(verdict.score, verdict.orders_agree) for verdict in kept] == [(1.0, True), (0.0, True)]
    assert biased.ask([(PROMPT, "z", "a")]) == [
        Verdict(0.5, False, ("said", "said"), by_order=(1.0, 0.0))
    ]
    assert half.ask([(PROMPT, "z", "a")])[0].orders_agree is False


def test_an_order_without_a_verdict_makes_a_tie_that_is_no_disagreement():
    class Speechless:
        name = "speechless"

        def compare(self, prompt, a, b):
            return Verdict(1.0) if a == "z" else Verdict(0.5, unparsable=1)

    judge = BothOrders(judge_of(Speechless()))
    assert judge.ask([(PROMPT, "z", "a")]) == [
        Verdict(0.5, None, unparsable=1, by_order=(1.0, 0.5))
    ]


def test_a_repeated_question_is_answered_from_disk(tmp_path):
    path = tmp_path / "deep" / "cache.jsonl"
    items = [(PROMPT, "z", "a"), (PROMPT, "a", "z"), (PROMPT, "z", "a")]
    asked, silent = Scripted(lambda a, b: float(a > b)), Scripted(lambda a, b: math.nan)
    first = Cached(judge_of(asked), VerdictCache(path))
    verdicts = first.ask(items)
    again = Cached(judge_of(silent), VerdictCache(path))
    assert again.ask(items) == verdicts
    assert (asked.n, first.tally.n_asked, first.tally.n_cached) == (2, 2, 1)
    assert (silent.n, again.tally.n_asked, again.tally.n_cached) == (0, 0, 3)


def test_a_users_own_judge_is_asked_through_what_it_has():
    class Whole:
        name, symmetric = "whole", True

        def fingerprint(self):
            return "whole, version 2"

        def compare_many(self, items, on_verdict=None):
            for index, _ in enumerate(items):
                on_verdict(index, Verdict(1.0))
            return [Verdict(1.0) for _ in items]

    whole, scripted = judge_of(Whole()), judge_of(Scripted(lambda a, b: 1.0))
    assert (whole.symmetric, whole.fingerprint()) == (True, "whole, version 2")
    assert (scripted.symmetric, scripted.fingerprint()) == (False, "scripted")
    assert judge_of(whole) is whole
    arrived = []
    whole.ask([(PROMPT, "a", "b")] * 2, lambda index, verdict: arrived.append(index))
    scripted.ask([(PROMPT, "a", "b")] * 2, lambda index, verdict: arrived.append(index))
    assert arrived == [0, 1, 0, 1]


def test_keys_of_answers_that_earlier_versions_stored_are_still_the_same():
    question = ([Message("user", "Name a prime.")], "seven", "4")
    assert judge_of(Scripted(lambda a, b: 1.0)).keys([question]) == [
        "9de1754f104357afbfd13a57c62719c60921a838e3a78d4e8bc792046e8458d5"
    ]
    assert Scored().keys([(Prompt("p", question[0], {"answer": "7"}), "seven")]) == [
        "8aa0788c6da25ddb95863e4b966e6d57a6f8f172394d6b4be253ad54c1136ca0"
    ]


def test_the_key_tells_apart_everything_that_determines_a_verdict():
    other = [Message("system", "Name a prime.")]
    keys = {
        verdict_key("j", PROMPT, "a", "b"),
        verdict_key("j", PROMPT, "b", "a"),
        verdict_key("k", PROMPT, "a", "b"),
        verdict_key("j", other, "a", "b"),
        verdict_key("j", PROMPT, "ab", ""),
    }
    keys.add(verdict_key("j", PROMPT, "a", "b", reference="7"))
    assert len(keys) == 6


def test_the_fingerprint_of_a_judge_follows_everything_but_its_patience():
    def fingerprint(spec="openai:m@http://127.0.0.1/v1", **options):
        return open_judge(spec, JudgeConfig(**options)).fingerprint()

    changes = [
        {"spec": "openai:n@http://127.0.0.1/v1"},
        {"spec": "openai:m@http://127.0.0.1:81/v1"},
        {"criteria": "Shorter is better."},
        {"temperature": 1.0},
        {"max_tokens": 9},
        {"structured": False},
        {"extra_body": {"seed": 1}},
        {"mode": "grade"},
        {"mode": "grade", "tie_margin": 1.0},
        {"mode": "rubric", "rubric": "{right: 1, short: 1}"},
        {"mode": "rubric", "rubric": "{right: 2, short: 1}"},
        {"mode": "rubric", "rubric": "{right: What it says is right, short: 1}"},
    ]
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == len(changes) + 1
    assert (
        fingerprint(
            "openai:m@http://127.0.0.1/v1/", timeout=5, max_retries=1, requests_per_minute=3
        )
        == fingerprint()
    )


def test_a_torn_last_line_is_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "cache.jsonl"
    cache = VerdictCache(path)
    one = Verdict(1.0, True, ("é",), 1, prompt_tokens=7, completion_tokens=3, by_order=(1.0, 1.0))
    cache.put("one", one)
    cache.put("two", Verdict(0.0))
    whole = path.read_bytes()
    for cut in range(1, len(whole) - whole.index(b"\n")):
        path.write_bytes(whole[:-cut])
        reopened = VerdictCache(path)
        assert reopened.get("one") == one
        assert "two" not in reopened
        reopened.put("three", Verdict(0.5))
        assert VerdictCache(path).get("three") == Verdict(0.5)


def test_verdicts_stored_before_tokens_were_counted_are_still_read(tmp_path):
    path = tmp_path / "cache.jsonl"
    path.write_text(
        '{"key": "one", "score": 0.5, "orders_agree": null, "raw": ["[[C]]"], "unparsable": 0}\n'
    )
    assert VerdictCache(path).get("one") == Verdict(0.5, raw=("[[C]]",))


def test_a_figure_that_changed_on_disk_is_refused_with_its_line(tmp_path):
    path = tmp_path / "cache.jsonl"
    cache = VerdictCache(path)
    for key, answer in (
        ("one", Verdict(0.25, raw=("[[A]]",))),
        ("two", Grade(float("nan"), {"form": 0.5})),
    ):
        cache.put(key, answer)
    assert VerdictCache(path).get("one") == Verdict(0.25, raw=("[[A]]",))
    whole = path.read_text()
    for before, after in (("0.25", "0.75"), ("[[A]]", "[[B]]"), ('"form": 0.5', '"form": 0.6')):
        path.write_text(whole.replace(before, after))
        with pytest.raises(
            DataError, match=r"cache.jsonl, line [12]: not a stored verdict, or damaged"
        ):
            VerdictCache(path)


def test_zeros_that_a_power_cut_left_at_the_end_go(tmp_path):
    path = tmp_path / "cache.jsonl"
    VerdictCache(path).put("one", Verdict(0.25))
    whole = path.read_bytes()
    for torn in (bytes(100), b'{"key": "tw' + bytes(100)):
        path.write_bytes(whole + torn)
        assert len(VerdictCache(path)) == 1 and path.read_bytes() == whole


def test_a_failed_verdict_is_never_kept(tmp_path):
    cache = VerdictCache(tmp_path / "cache.jsonl")
    with pytest.raises(ValueError, match="no answer to keep"):
        cache.put("one", Verdict.failure("HTTP 500"))
    assert "one" not in cache


@pytest.mark.parametrize(
    "content", ['{"key": "x"}\n', "notes of mine", '{"a": 1}', "\n", '[{"score": 1}]\n']
)
def test_a_file_that_is_no_cache_is_refused_and_left_as_it_was(tmp_path, content):
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"other.jsonl, line 1: not a stored verdict"):
        VerdictCache(path)
    assert path.read_text() == content


def test_verdicts_survive_kill_nine(tmp_path):
    program = """
        import os, signal, sys
        from prefloop import Verdict, VerdictCache
        from prefloop.evaluation.judges.assessor import judge_of
        from prefloop.evaluation.judges.cache import Cached
        class Dies:
            name, n = "dies", 0
            def compare(self, prompt, a, b):
                self.n += 1
                if self.n == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return Verdict(1.0)
        judge = Cached(judge_of(Dies()), VerdictCache(sys.argv[1]))
        judge.ask([([], str(i), "b") for i in range(9)])
    """
    path = tmp_path / "cache.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], env=environment, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert len(VerdictCache(path)) == 3


def _grader(tmp_path, source, name="grade"):
    path = tmp_path / "my_grader.py"
    path.write_text(textwrap.dedent(source))
    return FunctionGrader(f"{path}:{name}")


def test_a_function_grades_with_the_prompt_and_its_meta(tmp_path):
    grader = _grader(
        tmp_path,
        """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Weights:
            hit: float = 2

        def grade(prompt, response):
            return Weights().hit * (response == prompt.meta["answer"])
        """,
    )
    prompt = Prompt("p", PROMPT, {"answer": "7"})
    assert (grader.name, grader.grade(prompt, "7"), grader.grade(prompt, "4")) == (
        "grade",
        2.0,
        0.0,
    )
    judge = ScoreJudge(grader, prompts=[prompt])
    assert judge.compare(PROMPT, "4", "7") == Verdict(
        0.0, raw=("0.0", "2.0"), grades=(Grade(0.0), Grade(2.0))
    )
    assert ScoreJudge(grader, prompts=[prompt], tie_margin=2).compare(PROMPT, "4", "7").score == 0.5
    assert not list(tmp_path.rglob("*.pyc"))


def test_the_fingerprint_and_the_behavior_follow_the_file_even_within_one_second(tmp_path):
    one = _grader(tmp_path, "def grade(prompt, response):\n    return 1\n")
    same = _grader(tmp_path, "def grade(prompt, response):\n    return 1\n")
    two = _grader(tmp_path, "def grade(prompt, response):\n    return 2\n")
    prompt = Prompt("p", PROMPT)
    assert (one.grade(prompt, ""), two.grade(prompt, "")) == (1.0, 2.0)
    assert one.fingerprint() == same.fingerprint() != two.fingerprint()
    assert ScoreJudge(one).fingerprint() != ScoreJudge(one, tie_margin=1).fingerprint()


@pytest.mark.parametrize("returned", ["float('nan')", "float('inf')", "None", "'3'", "[1]"])
def test_a_grade_that_is_no_finite_number_names_the_prompt(tmp_path, returned):
    grader = _grader(tmp_path, f"def grade(prompt, response):\n    return {returned}\n")
    with pytest.raises(JudgeError, match=r"on prompt 'p17' returned .*expected a finite number"):
        grader.grade(Prompt("p17", PROMPT), "x")


def test_a_function_that_raises_names_the_prompt_the_error_and_the_line(tmp_path):
    grader = _grader(tmp_path, "def grade(prompt, response):\n    return 1 / len(response)\n")
    with pytest.raises(
        JudgeError, match=r"'p17' raised ZeroDivisionError: .*\(my_grader.py, line 2\)"
    ):
        grader.grade(Prompt("p17", PROMPT), "")


def test_a_grader_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"expected path/to/file.py:function"):
        FunctionGrader("file.py")
    with pytest.raises(ConfigError, match=r"cannot read .*absent.py"):
        FunctionGrader(f"{tmp_path / 'absent.py'}:grade")
    with pytest.raises(ConfigError, match=r"no function 'grad' in .*did you mean 'grade'"):
        _grader(tmp_path, "def grade(prompt, response): return 1", name="grad")
    with pytest.raises(ConfigError, match=r"; known: grade$"):
        _grader(
            tmp_path,
            "from typing import Any\ndef grade(prompt: Any, response): return 1",
            name="nothing",
        )
    with pytest.raises(ConfigError, match="importing the file raised SyntaxError"):
        _grader(tmp_path, "def grade(")


def test_nothing_here_but_the_endpoint_imports_httpx_and_nothing_imports_torch():
    program = (
        "import sys; import prefloop.evaluation.compare, prefloop.evaluation.judges.open; assert"
        " 'httpx' not in sys.modules; import prefloop.evaluation.judges.openai; assert 'torch' not"
        " in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", program], env=environment, timeout=300).returncode
        == 0
    )
