"""What the documentation prints as code: its fenced blocks, and the commands in them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "labeling" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
PYTHON = ("python", "py", "python3", "pycon")
_FENCE = re.compile(r"\s*(```+|~~~+)\s*(\w*)")
_PROGRAM = re.compile(
    r"(?:\S*/)?(?:python\d*\s+(?:\S*/)?pipelines/(\w+\.py)|(prefloop))\s+(?=[a-z-])"
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code and where it stands."""

    page: str
    """Path from the root of the repository."""
    heading: str
    """The nearest one above."""
    language: str
    """In small letters, empty where the fence names none or there is no fence, but four blanks."""
    text: str


def blocks() -> list[Block]:
    """All blocks of the documentation, in their order."""
    found = []
    for path in PAGES:
        page, heading, fence, language, lines = str(path.relative_to(ROOT)), "", "", "", []
        for line in path.read_text(encoding="utf-8").splitlines():
            mark = _FENCE.match(line)
            if fence and mark and mark[1] == fence:
                found.append(Block(page, heading, language, "".join(f"{each}\n" for each in lines)))
                fence = ""
            elif fence:
                lines.append(line)
            elif mark:
                fence, language, lines = mark[1], mark[2].lower(), []
            elif line.startswith("#"):
                heading = line.lstrip("#").strip()
            elif line.startswith("    "):
                found.append(Block(page, heading, "", line.strip() + "\n"))
        assert not fence, f"{page}: a block under '{heading}' does not end"
    return found


def python_in(page: str, heading: str) -> list[str]:
    """The Python of one section."""
    return [
        b.text for b in blocks() if (b.page, b.heading) == (page, heading) and b.language in PYTHON
    ]


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, program (``prefloop`` or the name of a pipeline) and arguments of every command line in
    a block without Python.
    """
    found = []
    for block in blocks():
        if block.language in (*PYTHON, "json", "yaml"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if _PROGRAM.search(line) else []
            for part in re.split(r"\s+[|;&]+\s+", shlex.join(words).replace("'|'", "|")):
                if program := _PROGRAM.match(part + " "):
                    arguments = shlex.split(part[program.end() :])
                    found.append((block.page, program[1] or program[2], arguments))
    return found
