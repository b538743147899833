"""A report as a test reads it: tags, headings, the cells of one section; and a page with every part
filled.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture

from prefloop.report.html import write_report

HOSTILE = (
    "</style></svg><script>alert('x')</script><img src=x onerror=alert(1)> & \"q\" $\\frac{1}{"
)
VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path"}


class Page(HTMLParser):
    """Tags, attributes, headings and visible text of a report; fails on a tag closed out of
    order.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h1", "h2"):
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data
        if {"h1", "h2"} & set(self.open):
            self.headings[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def report(
    folder: Path, data: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None
) -> Page:
    return Page(
        write_report(report_fixture.write_run(folder, data, rows)).read_text(encoding="utf-8")
    )


@pytest.fixture(scope="module", name="full")
def full_fixture(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = report_extras.write_everything(tmp_path_factory.mktemp("run"))
    return Page(write_report(folder).read_text(encoding="utf-8"))


def part(page: Page, id: str) -> str:
    """Source of one section."""
    return page.source.split(f'<section id="{id}">')[1].split("</section>")[0]


def cells(source: str) -> list[list[str]]:
    """The text of every cell, row by row."""
    rows = re.findall(r"<tr.*?</tr>", source, re.DOTALL)
    return [
        [
            re.sub(r"<[^>]+>", " ", cell).strip()
            for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)
        ]
        for row in rows
    ]
