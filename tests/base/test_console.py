"""What a long piece of work says in a log file."""

from __future__ import annotations

import pytest

from prefloop.base import console


def test_the_rate_does_not_count_the_wait_for_the_first_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("judge", 100, "pair") as advance:
        now = 60.0  # a model was loaded
        advance()
        assert capsys.readouterr().out.rstrip() == "  judge 1/100"
        now = 65.0
        advance()
        assert capsys.readouterr().out == ""  # a line every ten seconds
        now = 80.0
        advance(18, note="so far")
        assert capsys.readouterr().out.rstrip() == "  judge 20/100  0.95 pair/s  1m24s left  so far"
