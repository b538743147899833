"""Ctrl-C that lands where its exception is swallowed still ends the run; SIGTERM and SIGHUP end it
as tidily, and say so; a step is let finish.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from prefloop.base import interrupt
from prefloop.base.interrupt import (
    Ended,
    at_once,
    check_interrupted,
    deferred,
    forget_interrupt,
    heed,
    heeding,
    waiting,
)
from prefloop.cli import REPEAT, TRAINED, guarded

SCRIPT = """
import os, signal, sys
from prefloop.cli import guarded
from prefloop.base.console import progress

class Swallows:
    def __del__(self):  # Python prints what a destructor raises and goes on
        os.kill(os.getpid(), signal.{name})

def run(_):
    with progress("work", 3) as advance:
        Swallows()
        advance()
        print("went on")

sys.exit(guarded(run, []))
"""
WORKS = """
import subprocess, sys
from prefloop.cli import TRAINED, guarded

def run(_):
    try:
        child = ["-c", "import signal; print('ready', flush=True); signal.pause()"]
        subprocess.run([sys.executable, *child])
    finally:
        print("tidied up", flush=True)

sys.exit(guarded(run, [], TRAINED))
"""
CLOSED = """
import os, pty, signal, sys
from prefloop.cli import guarded
from prefloop.base.console import progress
from prefloop.base.interrupt import deferred, waiting

def run(_):
    with deferred(), progress("work", 3) as advance:
        advance()
        os.write(told, b"a step begins")
        while not waiting():
            pass
        advance(note="a step")
        print("printed to nobody", flush=True)
        os.write(told, b", and ends")

heard, told = os.pipe()
child, terminal = pty.fork()
if not child:
    os._exit(guarded(run, []))
os.close(told)
seen = os.read(heard, 100)
os.close(terminal)
print((seen + os.read(heard, 100)).decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
SAID = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATUS)
def test_a_signal_swallowed_by_a_destructor_is_heeded(name: str) -> None:
    script = SCRIPT.replace("{name}", name)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (
        done.returncode == STATUS[name]
        and SAID[name] in done.stderr
        and "went on" not in done.stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STATUS)
def test_a_signal_ends_a_run_and_its_children_and_says_what_is_kept(name: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", WORKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    run.send_signal(getattr(signal, name))
    out, said = run.communicate(timeout=300)  # which waits for the child too: it holds the pipe
    assert run.returncode == STATUS[name] and out == "tidied up\n"
    assert said == f"\n{SAID[name]}: {TRAINED}\n"


def test_a_hang_up_that_is_ignored_stays_so_and_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with heeding():
            signal.raise_signal(signal.SIGHUP)
            check_interrupted()
            assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)
    assert {number: signal.getsignal(number) for number in before} == before


def test_ctrl_c_may_end_less_than_the_process_and_sigterm_may_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def talk(_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                forget_interrupt()
                check_interrupted()

    assert guarded(talk, []) == 143
    assert capsys.readouterr().err == f"\nended by SIGTERM: {REPEAT}\n"
    with pytest.raises(Ended), heeding():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Ended:
            forget_interrupt()
            check_interrupted()


@pytest.fixture
def no_bursts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every signal counts, however soon it comes."""
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "BURST_S", 0.0)
        yield


@pytest.mark.parametrize("name", STATUS)
def test_a_first_signal_waits_for_the_end_of_the_step(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = []

    def train(_: object) -> None:
        with deferred():
            signal.raise_signal(getattr(signal, name))
            check_interrupted()
            done.append(waiting())
            heed()
            done.append("went on")

    assert guarded(train, []) == STATUS[name] and done == [True] and not waiting()
    said = capfd.readouterr().err
    assert said.startswith(
        f"\n{'Ctrl-C' if name == 'SIGINT' else name}: the step is finished first"
    )
    assert (
        said.endswith(f"\n{SAID[name]}: {REPEAT}\n") and "a second one ends the run at once" in said
    )


def test_a_signal_that_nothing_asked_for_ends_the_run_after_the_block() -> None:
    done = []
    with pytest.raises(Ended), heeding():
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("the block")
        done.append("what follows")
    assert done == ["the block"]


@pytest.mark.parametrize("first", STATUS)
@pytest.mark.parametrize("second", STATUS)
def test_a_second_signal_ends_the_block_at_once(first: str, second: str, no_bursts: None) -> None:
    def train(_: object) -> None:
        with deferred():
            signal.raise_signal(getattr(signal, first))
            signal.raise_signal(getattr(signal, second))
            raise AssertionError("the block went on")

    assert guarded(train, []) == STATUS[second]


def test_signals_that_machines_send_twice_count_once_and_a_person_never_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupt, "BURST_S", float("inf"))
    for numbers in (["SIGHUP", "SIGHUP"], ["SIGTERM", "SIGHUP"], ["SIGINT", "SIGTERM"]):
        with (
            pytest.raises(Ended if numbers[0] != "SIGINT" else KeyboardInterrupt),
            heeding(),
            deferred(),
        ):
            for name in numbers:
                signal.raise_signal(getattr(signal, name))
            assert waiting()
            heed()
    with pytest.raises(KeyboardInterrupt), heeding(), deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the block went on")


def test_a_part_of_the_block_may_end_at_once_and_what_catches_it_still_knows() -> None:
    with pytest.raises(Ended), heeding(), deferred():
        try:
            with at_once():
                signal.raise_signal(signal.SIGTERM)
                raise AssertionError("the part went on")
        except Ended:
            assert waiting()
            heed()
    with pytest.raises(KeyboardInterrupt), heeding(), deferred():
        signal.raise_signal(signal.SIGINT)
        with at_once():
            raise AssertionError("the part began")


def test_nothing_waits_without_heeding_or_in_another_thread() -> None:
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")
    inside, over = threading.Event(), threading.Event()

    def train() -> None:
        with deferred():
            inside.set()
            over.wait(300)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert inside.wait(300)
        with pytest.raises(Ended), heeding():
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")
    finally:
        over.set()
        thread.join(300)


def test_a_terminal_that_is_closed_does_not_end_the_step_in_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "a step begins, and ends 129\n", done.stderr
