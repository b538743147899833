"""A person in a real browser signs in, reads, chooses and submits; a pull gives that vote.

`PREFLOOP_PICTURES=docs` also saves what the person saw, as label-comparison.png and
label-rating.png.
"""

import os
from pathlib import Path

import pytest
from cdp import BROWSER, Page, chromium
from labeling_server import Annotator, Labeling, until

from prefloop.labeling.argilla.forms import is_swapped
from prefloop.records import Comparison, Message, Rating, Response

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)
QUESTION = "How do I keep cut apples from turning brown?"
GOOD = (
    "Toss the slices with a little lemon juice: its acid slows the enzyme that browns them.\n"
    "A bowl of cold, salted water for five minutes works as well."
)
HOSTILE = (
    'List<int> &amp; *five*  <b>two</b> <img src="x" onerror="document.title ='
    ' String.fromCharCode(88, 83, 83)">'
)

BAD = "Apples turn brown because of oxidation, which is a natural process. You can eat them anyway."
PICTURES = os.environ.get("PREFLOOP_PICTURES")


def open_queue(
    page: Page, labeling: Labeling, person: Annotator, dataset: str, question: str
) -> None:
    """Sign in and open a dataset, as a person would from its address."""
    page.go(f"{labeling.url}/sign-in")
    page.write("document.querySelector('input[name=Username]')", person.name)
    page.write("document.querySelector('input[name=Password]')", person.password)
    page.click("document.querySelector('button[type=submit]')")
    page.wait("!location.pathname.includes('sign-in')")
    page.go(f"{labeling.url}/dataset/{labeling.argilla.datasets.find(dataset).id}/annotation-mode")
    page.wait(f"document.body.innerText.includes({question!r})")


def submit(page: Page, answers: int) -> None:
    button = "document.querySelector('form.questions-form button[type=submit]')"
    page.wait(f"!{button}.disabled")
    page.click(button)
    page.wait(f"document.body.innerText.match(/Submitted\\s+{answers}\\b/)")


def picture(page: Page, name: str, height: int) -> None:
    if PICTURES:
        page.wait("document.getAnimations().every(a => a.playState !== 'running')")
        page.picture(Path(PICTURES) / name, 1280, height)


def test_a_vote_cast_in_the_browser_is_pulled_for_the_text_that_was_on_that_side(
    labeling: Labeling, tmp_path: Path
) -> None:
    person, dataset = labeling.user("ann"), "apples"
    texts = {False: [GOOD, BAD], True: [BAD, GOOD]}
    ids = {
        swapped: next(i for i in map(str, range(99)) if is_swapped(dataset, i) is swapped)
        for swapped in texts
    }
    records = [
        Comparison(id, [Message("user", QUESTION)], [Response(t, "sft") for t in texts[swapped]])
        for swapped, id in ids.items()
    ]  # the good one under A both times
    labeling.argilla.push(records, dataset)
    with chromium(tmp_path / "profile") as page:
        open_queue(page, labeling, person, dataset, "Which response is better?")
        shown = page.js("document.body.innerText")
        assert shown.index("lemon") < shown.index("oxidation") and "sft" not in shown
        assert page.js("document.querySelectorAll('input[type=checkbox]:checked').length") == 0, (
            "nothing is chosen yet"
        )
        for number in (1, 2):
            page.click("document.querySelector('label[for=preferred_A]')")
            page.click("document.querySelector('label[for=strength_clear]')")
            page.write(
                "document.querySelector('form [contenteditable]')", "It answers the question."
            )
            if number == 1:
                picture(page, "label-comparison.png", 690)
            submit(page, number)
    found = until(lambda: len(p := labeling.argilla.pull(dataset).records) == 2 and p)
    for record in found:
        (vote,) = record.votes
        assert record.responses[vote.choice].text == GOOD
        assert (vote.annotator, vote.strength, vote.why) == ("ann", 2.0, "It answers the question.")


def test_texts_are_shown_as_they_are_written_and_run_no_script(
    labeling: Labeling, tmp_path: Path
) -> None:
    person, dataset = labeling.user(), "hostile"
    prompt = [
        Message(role, f"{role} {HOSTILE}") for role in ("system", "user", "assistant", "user")
    ]
    pair = Comparison("p", prompt, [Response(f"one {HOSTILE}"), Response(f"two {HOSTILE}")])
    labeling.argilla.push([pair], dataset)
    with chromium(tmp_path / "profile") as page:
        open_queue(page, labeling, person, dataset, "Which response is better?")
        shown = page.wait(
            "document.querySelector('.record')?.innerText || document.body.innerText"
        ).replace("\u00a0", " ")
        for said in ("system", "user", "assistant", "one", "two"):
            assert " ".join(f"{said} {HOSTILE}".split()) in " ".join(shown.split())
        assert page.js("document.querySelectorAll('img[src=x]').length") == 0
        assert page.js("document.title") != "XSS"
        page.click("document.querySelector('label[for=preferred_tie]')")
        submit(page, 1)
    (record,) = until(lambda: labeling.argilla.pull(dataset).records)
    assert (record.prompt, record.responses) == (pair.prompt, pair.responses)


def test_a_thumb_given_in_the_browser_is_pulled(labeling: Labeling, tmp_path: Path) -> None:
    person, dataset = labeling.user("ben"), "apple-thumbs"
    labeling.argilla.push(
        [Rating("r1", [Message("user", QUESTION)], Response(BAD, "sft"))], dataset
    )
    with chromium(tmp_path / "profile") as page:
        open_queue(page, labeling, person, dataset, "Is this a good response?")
        page.click("document.querySelector('label[for=thumb_down]')")
        page.write("document.querySelector('form [contenteditable]')", "It does not answer.")
        picture(page, "label-rating.png", 520)
        submit(page, 1)
    (record,) = until(lambda: labeling.argilla.pull(dataset).records)
    assert [(vote.annotator, vote.value, vote.why) for vote in record.votes] == [
        ("ben", "down", "It does not answer.")
    ]
