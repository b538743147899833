"""A real browser opens the report: it lays out, draws, searches, prints, and asks nobody for
anything.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture
from cdp import BROWSER, FLAGS, chromium
from cdp import Page as Tab

from prefloop.report.compare import write_comparison
from prefloop.report.html import write_report

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)
DESKTOP, PHONE = (1280, 900), (390, 844)
SHOWN = '[...document.querySelectorAll("article.talk")].filter(e => e.checkVisibility())'
DRAWN = """[...document.querySelectorAll("figure svg")].map(svg =>
    [...svg.querySelectorAll("text")].map(text => text.textContent).filter(text => !/^[−0-9.,\\[\\] ]+$/.test(text)))"""  # noqa: E501


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_extras.write_everything(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_comparison(
        [report_extras.write_everything(folder / name) for name in ("first", "second")]
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as tab:
        for domain in ("Log", "Runtime", "Page"):
            tab.call(f"{domain}.enable")
        yield tab


def look(
    tab: Tab,
    page: Path,
    size: tuple[int, int] = DESKTOP,
    *,
    dark: bool = False,
    media: str = "screen",
) -> None:
    """Open a page afresh in a window of a size, with the reader's preference for dark or light."""
    width, height = size
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
    tab.go("about:blank")
    tab.wait("location.href === 'about:blank'")
    tab.events.clear()
    tab.go(page.as_uri())
    tab.wait(f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'")


def complaints(tab: Tab) -> list[Any]:
    """Console messages, uncaught errors and violations of the page's policy."""
    return [
        e
        for e in tab.events
        if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    ]


def choose(tab: Tab, name: str, value: str) -> None:
    """Set one of the tools as a reader would and let the page know."""
    tab.js(
        f"(() => {{ const e = document.querySelector('#tools').elements[{json.dumps(name)}];"
        f" e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}}))"
        " })()"
    )


def prompts(tab: Tab) -> list[str]:
    return tab.js(f"{SHOWN}.map(e => e.querySelector('.turn.last').textContent)")


def background(tab: Tab) -> float:
    """Brightness of the paper, 0 to 255."""
    red, green, blue = tab.js(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    return (red + green + blue) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("kind", ["report", "compare"])
def test_the_page_is_quiet_fits_the_window_and_wears_the_colors_of_the_reader(
    tab: Tab, request: pytest.FixtureRequest, kind: str, size: tuple[int, int], dark: bool
) -> None:
    look(tab, request.getfixturevalue(kind), size, dark=dark)
    assert complaints(tab) == []
    tab.js("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.js("document.documentElement.scrollWidth") == size[0]
    assert tab.js(
        "[...document.querySelectorAll('figure, article, .box, dl')].every(e =>"
        " e.getBoundingClientRect().right <= innerWidth)"
    )
    assert (background(tab) < 60) == dark and (background(tab) > 200) == (not dark)


@pytest.mark.parametrize("kind", ["report", "compare"])
def test_every_plot_has_an_axis_label_with_its_unit_and_something_to_read_it_against(
    tab: Tab, request: pytest.FixtureRequest, kind: str
) -> None:
    look(tab, request.getfixturevalue(kind))
    drawn = tab.js(DRAWN)
    assert len(drawn) > 12
    for texts in drawn:
        units = [text for text in texts if text.endswith(")")]
        across = "step" in texts or any(
            text.startswith(("win rate against SFT (%)", "KL to reference (nats", "stated"))
            for text in texts
        )
        forest = any(text.startswith("win rate against SFT (%)") for text in texts)
        assert across and (forest or units), texts


def test_what_would_be_a_complaint_is_caught(tab: Tab, tmp_path: Path, report: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        report.read_text(encoding="utf-8").replace(
            "</main>", "<script>window.ran = 1</script></main>"
        ),
        encoding="utf-8",
    )
    look(tab, bad)
    tab.wait("document.readyState === 'complete'")
    assert "Content Security Policy" in json.dumps(complaints(tab)) and tab.js("window.ran") is None


def test_search_keeps_the_conversations_that_hold_every_word(tab: Tab, report: Path) -> None:
    look(tab, report)
    assert len(prompts(tab)) == 8 and tab.js("document.querySelector('output').value") == "30 of 30"
    tab.write("document.querySelector('[name=query]')", "COPPER? ppo-10")
    assert (
        prompts(tab) == ["Question 10 about copper?"]
        and tab.js("document.querySelector('output').value") == "1 of 30"
    )
    choose(tab, "query", "nowhere to be found")
    assert prompts(tab) == [] and tab.js("document.querySelector('#none').checkVisibility()")
    choose(tab, "query", "")
    tab.click("document.querySelector('#further')")
    assert len(prompts(tab)) == 30 and tab.js("document.querySelector('#further').hidden")


def test_orders_and_filters_follow_the_scores(tab: Tab, report: Path) -> None:
    look(tab, report)
    tab.click("document.querySelector('#further')")  # orders hold for all, not for the first eight
    gold = {
        f"Question {i} about {report_extras.WORDS[i % 6]}?": [
            ((i * 7 + k * 13) % 29) / 29 for k in range(3)
        ]
        for i in range(30)
    }
    for policy, k in (("ppo", 1), ("dpo", 2)):
        gains = {
            prompt: round(scores[k], 3) - round(scores[0], 3) for prompt, scores in gold.items()
        }
        choose(tab, "policy", policy)
        for order, sign in (("gain", -1), ("loss", 1)):
            choose(tab, "order", order)
            found = [gains[prompt] for prompt in prompts(tab)]
            assert found == pytest.approx(
                sorted(gains.values(), key=lambda gain: sign * gain)[: len(found)]
            )
        for name, side in (("better", 1), ("worse", -1)):
            choose(tab, "filter", name)
            assert (
                tab.js("document.querySelector('output').value")
                == f"{sum(gain * side > 0 for gain in gains.values())} of 30"
            )
        choose(tab, "filter", "all")
    choose(tab, "order", "long")
    words = tab.js(f"{SHOWN}.map(e => Number(e.querySelector('[data-policy=dpo]').dataset.words))")
    assert words == sorted(words, reverse=True) and words[0] > words[-1]
    choose(tab, "filter", "cut")
    assert tab.js("document.querySelector('output').value") == "6 of 30"
    choose(tab, "filter", "empty")
    assert prompts(tab) == []


def test_ordering_by_reward_is_not_ordering_by_gold(tab: Tab, report: Path) -> None:
    look(tab, report)
    choose(tab, "order", "gain")
    by_gold = prompts(tab)
    choose(tab, "score", "reward")
    assert prompts(tab) != by_gold
    gains = tab.js(
        f"{SHOWN}.map(e => e.querySelector('[data-policy=ppo]').dataset.reward -"
        " e.querySelector('[data-policy=sft]').dataset.reward)"
    )
    assert gains == sorted(gains, reverse=True)


def test_the_switch_overrides_the_system_and_is_remembered(tab: Tab, report: Path) -> None:
    look(tab, report)
    tab.click("document.querySelector('label[for=theme-dark]')")
    assert background(tab) < 60
    look(tab, report)
    assert background(tab) < 60
    tab.click("document.querySelector('label[for=theme-light]')")
    look(tab, report, dark=True)
    assert background(tab) > 200
    tab.click("document.querySelector('label[for=theme-auto]')")
    assert background(tab) < 60


def test_without_its_script_the_page_still_shows_and_themes_everything(
    tab: Tab, report: Path
) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        look(tab, report, PHONE)
        assert len(prompts(tab)) == 8 and tab.js("document.querySelector('#tools').hidden")
        tab.click("document.querySelector('details.more summary')")
        assert len(prompts(tab)) == 30
        tab.click("document.querySelector('label[for=theme-dark]')")
        assert background(tab) < 60
        tab.click("document.querySelector('label[for=theme-auto]')")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_it_is_light_open_and_without_controls(tab: Tab, report: Path) -> None:
    look(tab, report, dark=True, media="print")
    assert background(tab) > 200
    assert tab.js(
        "[...document.querySelectorAll('.bar, #tools, #further, .theme')].every(e =>"
        " !e.checkVisibility())"
    )
    assert tab.js("document.querySelector('table.timeline').getBoundingClientRect().height") > 50
    tab.call("Emulation.setEmulatedMedia", media="")
    pdf = base64.b64decode(tab.call("Page.printToPDF")["data"])
    assert (
        pdf.startswith(b"%PDF")
        and 3 < pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") < 40
    )


def test_hostile_responses_are_inert_on_a_phone(tab: Tab, tmp_path: Path) -> None:
    attack = (
        "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><b"
        " onclick=alert(1)>{{7*7}}"
    )
    data = report_fixture.summary()
    data["results"]["__proto__"] = data["results"]["dpo"]
    arabic = "\u0645\u0631\u062d\u0628\u0627 " * 40 + "\u202e" + attack
    report_extras.write_responses(tmp_path, data, 9, sft=attack, ppo="W" * 200_000, dpo=arabic)
    look(tab, write_report(report_fixture.write_run(tmp_path, data, [])), PHONE)
    assert complaints(tab) == []
    choose(tab, "order", "long")
    choose(tab, "query", "onerror")
    assert (
        tab.js(
            "document.querySelectorAll('#conversations img, #conversations b, #conversations"
            " script').length"
        )
        == 0
    )
    assert tab.js("window.pwned") is None and len(prompts(tab)) == 8
    assert attack in tab.js("document.querySelector('[data-policy=sft] .text').textContent")
    assert (
        tab.js("getComputedStyle(document.querySelector('[data-policy=dpo] .text')).direction")
        == "rtl"
    )
    assert tab.js("document.querySelector('[data-policy=ppo] .text').textContent.length") == 4000
    assert tab.js("document.documentElement.scrollWidth") == PHONE[0]


def test_a_thousand_prompts_are_searched_without_leaving_the_page_behind(
    tab: Tab, tmp_path: Path
) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data, prompts=1000)
    look(tab, write_report(report_fixture.write_run(tmp_path, data, [])))
    assert (
        tab.js("document.querySelector('output').value") == "1000 of 1000"
        and len(prompts(tab)) == 8
    )
    choose(tab, "query", "ppo-987")
    assert prompts(tab) == [f"Question 987 about {report_extras.WORDS[987 % 6]}?"]


def requests_of(page: Path, folder: Path) -> set[str]:
    """Addresses that a page asks for, opened in a profile behind a proxy that is not there; the
    browser's own are not counted.
    """
    log = folder / "net.json"
    flags = [flag for flag in FLAGS if not flag.startswith(("--no-proxy", "--remote"))]
    command = [
        str(BROWSER),
        *flags,
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
    ]
    subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, check=True, timeout=300
    )
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {params["url"] for params in asked if params["initiator"] != "not an origin"}


def test_the_page_requests_nothing(report: Path, tmp_path: Path) -> None:
    assert requests_of(report, tmp_path) == set()


def test_the_request_log_would_show_a_page_that_calls_out(tmp_path: Path) -> None:
    leak = tmp_path / "leak.html"
    leak.write_text('<img src="http://leak.invalid/x.png">', encoding="utf-8")
    assert requests_of(leak, tmp_path) == {"http://leak.invalid/x.png"}
