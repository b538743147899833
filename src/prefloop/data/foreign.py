"""What a file is that holds no rows, and how to get rows from it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_ROWS = "as JSON lines, CSV or parquet"
_YAML = re.compile(rb"(---\s|%YAML|- [\w\"'-]+:\s|[\w-]+:\s*\n\s+- )")
_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", f"is a PDF; save its rows {_ROWS}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it (7z x '{path}') and name the file in it"),
    (b"Rar!\x1a", "is a RAR archive; unpack it and name the file in it"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it (xz -dk '{path}')"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel or Office file; save the sheet as CSV in UTF-8"),
    (b"SQLite format 3", f"is an SQLite database; export the table {_ROWS}"),
    (b"\x89HDF", f"is an HDF5 file; save its rows {_ROWS}"),
    (b"\x93NUMPY", f"is an array of NumPy; save its rows {_ROWS}"),
    (b"Obj\x01", f"is an Avro file; save its rows {_ROWS}"),
    (
        b"version https://git-lfs",
        (
            "is a pointer of git LFS and not the file itself; fetch it (git lfs pull) in its"
            " repository"
        ),
    ),
    (b"PAR1", "is a cut parquet file; fetch it again"),
    (b"PARE", "is an encrypted parquet file; save it without encryption"),
)
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_ENCODINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def what(path: Path, head: bytes) -> str | None:
    """What a file is that starts with ``head`` and holds no rows, with what to do about it;
    ``None`` for text and tables. 512 bytes of ``head`` are enough for most formats.
    """
    for mark, name in _ENCODINGS:
        if head.startswith(mark):
            return _encoded(path, name)
    if re.match(rb"(?:[{\[\"\w]\x00|\x00[{\[\"\w])", head):
        return _encoded(path, "UTF-16LE" if head[1] == 0 else "UTF-16BE")
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return f"is a tar archive; unpack it (tar -xf '{path}') and name the file in it"
    for sign, description in _SIGNS:
        if head.startswith(sign):
            return description.replace("{path}", str(path))
    if _BZIP2.match(head):
        return f"is compressed by bzip2; unpack it (bunzip2 -k '{path}')"
    if _PICKLE.match(head):
        return f"is a pickle, which can run any code when it is opened; save its rows {_ROWS}"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "is a web page and not data: the download went wrong (a log-in page, an error?); fetch"
            " the file itself"
        )
    if start.startswith(b"<?xml"):
        return f"is XML; save its rows {_ROWS}"
    if path.suffix.lower() in (".yaml", ".yml") or _YAML.match(head):
        return f"is YAML; save its rows as JSON lines: yq -o json -I 0 '.[]' '{path}' > out.jsonl"
    return None


def _encoded(path: Path, name: str) -> str:
    return f"is {name}; save it as UTF-8: iconv -f {name} -t UTF-8 '{path}' > out{path.suffix}"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        names = []
    if any(name.startswith("xl/") for name in names) or path.suffix.lower() in (".xlsx", ".xlsm"):
        return "is an Excel file; save the sheet as CSV in UTF-8"
    if any(name.endswith("/data.pkl") for name in names):
        return (
            f"is a file of torch.save, which can run code when it is opened; save its rows {_ROWS}"
        )
    first = ", ".join(name[:80] for name in names[:3]) + (" …" if len(names) > 3 else "")
    holds = f", which holds {first}" if names else ""
    return f"is a zip archive{holds}; unpack it (unzip '{path}') and name the file in it"
