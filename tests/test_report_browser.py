"""A real browser opens the report: it lays out, it draws, and it asks nobody for anything."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import report_fixture
from matplotlib.image import imread

from prefloop.report.html import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9",
]  # fmt: skip


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Open a page in a fresh profile behind a proxy that is not there; what the browser printed."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def requests_of_the_page(net_log: Path) -> set[str]:
    """Addresses that the page asked for; what the browser does for itself has no origin and is not counted."""
    log = json.loads(net_log.read_text(encoding="utf-8"))
    asked = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    return {params["url"] for params in asked if params["initiator"] != "not an origin"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_fixture.write_run(tmp_path_factory.mktemp("run")))


def test_the_browser_shows_every_heading_figure_and_axis_and_requests_nothing(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path / "profile", f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom")
    for heading in ("Results", "Gold and proxy against KL", "PPO curves", "Training losses", "Pipeline", "Environment"):
        assert f"<h2>{heading}</h2>" in dom
    assert dom.count("<svg ") == dom.count("</svg>") == 19
    for axis in (
        "win rate against SFT (%), judged by gold scorer", "win rate against SFT (%), judged by reward model",
        "KL to reference (nats per response, square-root scale)", "proxy reward (reward-model score)", "gold score",
        "KL to reference (nats per response)", "response length (tokens)", "gold score (never trained on)", "step",
        "SFT: loss (nats)", "Reward model: loss (nats)", "Reward model: pair accuracy (%)", "DPO: loss (nats)",
        "DPO: reward margin (nats)", "entropy (nats per token)", "clipped ratios (%)", "value loss",
        "time per step (seconds)",
    ):  # fmt: skip
        assert f">{axis}</text>" in dom, axis
    assert requests_of_the_page(tmp_path / "net.json") == set()


def test_the_request_log_would_show_a_page_that_calls_out(tmp_path: Path) -> None:
    leak = tmp_path / "leak.html"
    leak.write_text('<img src="http://leak.invalid/x.png">', encoding="utf-8")
    browse(leak, tmp_path / "profile", f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom")
    assert requests_of_the_page(tmp_path / "net.json") == {"http://leak.invalid/x.png"}


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_is_painted_in_the_colours_of_the_reader(page: Path, tmp_path: Path, scheme: str, dark: bool) -> None:
    shot = tmp_path / f"{scheme}.png"
    preference = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(page, tmp_path / "profile", *preference, "--window-size=1200,3000", f"--screenshot={shot}")
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (3000, 1200)
    assert (pixels[5, 5].mean() < 0.2) == dark
    drawn = abs(pixels - pixels[5, 5]).max(axis=2) > 0.1
    assert all(drawn[top : top + 500].mean() > 0.01 for top in range(0, 3000, 500))


def test_a_narrow_screen_scrolls_tables_and_never_the_page(page: Path, tmp_path: Path) -> None:
    probe = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "x-none")
    script = "<script>document.title = document.documentElement.scrollWidth</script></html>"
    (tmp_path / "probe.html").write_text(probe.replace("</html>", script), encoding="utf-8")
    frame = '<iframe src="probe.html" width="420" height="900" onload="document.title=contentDocument.title"></iframe>'
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    dom = browse(tmp_path / "frame.html", tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom")
    assert "<title>420</title>" in dom
