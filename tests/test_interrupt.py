"""Ctrl-C that lands where its exception is swallowed still ends the run at the next progress step."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal, sys
from prefloop.cli import guarded
from prefloop.console import progress

class Swallows:
    def __del__(self):  # Python prints what a destructor raises and goes on
        os.kill(os.getpid(), signal.SIGINT)

def run(_):
    with progress("work", 3) as advance:
        Swallows()
        advance()
        print("went on")

sys.exit(guarded(run, []))
"""


def test_an_interrupt_swallowed_by_a_destructor_is_heeded() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130 and "interrupted" in done.stderr and "went on" not in done.stdout
