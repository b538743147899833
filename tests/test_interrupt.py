"""Ctrl-C that lands where its exception is swallowed still ends the run; SIGTERM and SIGHUP end it as tidily, and say so."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from prefloop.cli import REPEAT, TRAINED, guarded
from prefloop.interrupt import Ended, check_interrupted, forget_interrupt, heeding

SCRIPT = """
import os, signal, sys
from prefloop.cli import guarded
from prefloop.console import progress

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
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
SAID = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}


@pytest.mark.parametrize("name", STATUS)
def test_a_signal_swallowed_by_a_destructor_is_heeded(name: str) -> None:
    script = SCRIPT.replace("{name}", name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == STATUS[name] and SAID[name] in done.stderr and "went on" not in done.stdout


@pytest.mark.parametrize("name", STATUS)
def test_a_signal_ends_a_run_and_its_children_and_says_what_is_kept(name: str) -> None:
    run = subprocess.Popen([sys.executable, "-c", WORKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def test_ctrl_c_may_end_less_than_the_process_and_sigterm_may_not(capsys: pytest.CaptureFixture[str]) -> None:
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
