"""Sources of rows: a local file, a folder or pattern of shards, or an address such as
``hf:org/name:split``.

The command line, the configuration and every loader name their data as a source. An address
(``SCHEMES``) is copied to this machine once. From then on its rows are those of the copy, so that
they can be hashed and read again without a network. Nothing is opened before it is needed.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefloop.base.sealed import digest, file_digest
from prefloop.errors import ConfigError, DataError

PathLike = str | os.PathLike[str]

ENDINGS = (".gz", ".zst")
SHARDS = (".parquet", ".arrow")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Endings of other files with rows, which are no shards."""
_ABOUT = re.compile(
    r"(dataset_infos?|dataset_dict|state|metadata|croissant|config|schema|stats)\.json"
)
"""Files in a data set's folder that hold no rows."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_PART = re.compile(r"[-_.]?\d{5}-of-\d{5}$")
_UNSAFE = re.compile(r"[^\w.-]+")


def _hub(address: str, fetch: bool) -> Path | None:
    from prefloop.data import hub

    return hub.copy_of(address, fetch)


SCHEMES: dict[str, Callable[[str, bool], Path | None]] = {"hf": _hub}
"""By scheme, a function that returns the local copy of an address (the text after ``scheme:``),
written by ``write_copy``.

The second argument says whether to fetch the address where there is no copy. Without fetching, the
function returns ``None`` where there is none. It raises ``ConfigError`` for a wrong address, and
``DataError`` for one that cannot be fetched. ``prefloop/__init__.py`` adds ``argilla:``, since
labeling builds on data and not the other way round.
"""


@dataclass(frozen=True)
class Source:
    """A source by the name that the user gave. Make one with ``parse`` or ``of``."""

    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Self:
        """The source that a text names. Raises ``ConfigError`` for an empty text, an unknown
        scheme, or a wrong address.
        """
        if not text.strip() or "\0" in text:
            raise ConfigError(
                f"{text!r} names no data: give a file, or an address such as hf:org/name:split"
            )
        scheme, _, rest = text.partition(":")
        if scheme in SCHEMES:
            SCHEMES[scheme](rest, False)
            return cls(text)
        if other := _SCHEME.match(text):
            known = ", ".join(f"{name}:" for name in SCHEMES)
            raise ConfigError(
                f"'{text[:200]}': no rows can be read from {other[1]}:// (known: {known} and local"
                " files): download the file and name it"
            )
        return cls(str(Path(text)))

    @classmethod
    def of(cls, source: Source | PathLike) -> Source:
        """A source, from a source, a path or a text."""
        return source if isinstance(source, Source) else cls.parse(os.fspath(source))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def validate(value: Any) -> Source:
            if not isinstance(value, Source | str | os.PathLike):
                raise ValueError(
                    "expected the path of a file, or an address such as hf:org/name:split"
                )
            return cls.of(value)

        text = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(validate, serialization=text)

    @property
    def scheme(self) -> str:
        """The scheme, such as ``hf`` of ``hf:org/name``; empty for local files."""
        scheme = self.text.partition(":")[0]
        return scheme if ":" in self.text and scheme in SCHEMES else ""

    @property
    def path(self) -> Path:
        """The local path, including the split or pattern at its end. Raises ``DataError`` for an
        address.
        """
        if self.scheme:
            raise DataError(f"'{self.text}' is an address, and a local file is needed here")
        return Path(self.text)

    @property
    def name(self) -> str:
        """The name in messages and votes: the file's name without folders, or the address."""
        return self.text if self.scheme else Path(self.text).name or Path(self.text).resolve().name

    @property
    def file_name(self) -> str:
        """The name in a form that can be part of a file's name."""
        return self.stem if self.scheme else self.name

    @property
    def stem(self) -> str:
        """The beginning of ids and of names of files written next to the source: ``train`` for
        ``data/train.jsonl.gz``, ``org-name-train`` for ``hf:org/name:train``.
        """
        if self.scheme:
            return _UNSAFE.sub("-", self.text.partition(":")[2]).strip("-")
        name = Path(self.text).name
        for ending in ENDINGS:
            name = name.removesuffix(ending)
        stem = Path(name).stem
        return stem if self.path.is_file() else _UNSAFE.sub("-", stem).strip("-") or "data"

    @property
    def folder(self) -> Path:
        """The folder for files written next to the source: its own folder, or for an address the
        working directory.
        """
        return Path() if self.scheme else Path(self.text).parent

    def exists(self) -> bool:
        """Whether its rows are on this machine already. Nothing is fetched."""
        if self.scheme:
            return SCHEMES[self.scheme](self.text.partition(":")[2], False) is not None
        try:
            return bool(files_of(self.text))
        except (DataError, OSError):
            return False

    def files(self) -> list[Path]:
        """The files that hold its rows, in order. An address without a copy is fetched. Raises
        ``DataError`` saying what is there instead.
        """
        if self.scheme:
            copy = SCHEMES[self.scheme](self.text.partition(":")[2], True)
            assert copy is not None
            return [copy]
        return files_of(self.text)

    def digest(self) -> str:
        """SHA-256 of its contents: the bytes of its files, in order. Names do not count. Raises
        ``DataError``.
        """
        try:
            digests = [file_digest(path) for path in self.files()]
        except OSError as error:
            raise DataError(f"cannot read {self.text}: {error.strerror or error}") from None
        return digests[0] if len(digests) == 1 else digest(digests)

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Names, times and sizes of its files, which stay the same until somebody changes a file.
        Raises ``DataError`` or ``OSError``.
        """
        files = [(path, path.stat()) for path in self.files()]
        return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in files)


def files_of(text: str) -> list[Path]:
    """The local files of a path, ``FOLDER:split`` or a pattern. Raises ``DataError``."""
    path = Path(text)
    left, colon, split = text.rpartition(":")
    try:
        if path.is_dir():
            return _shards(path, None)
        if path.is_file():
            return [path]
        if path.exists():  # A pipe would be waited for, and can be read but once.
            raise DataError(
                f"{text[:200]} is a pipe or a device: write its rows into a file and name that"
            )
        if colon and Path(left).is_dir():
            return _shards(Path(left), split)
        if glob.has_magic(text):
            paths = sorted(map(Path, glob.glob(text, recursive=True)))
            if files := [path for path in paths if path.is_file()]:
                return files
            raise DataError(f"no file fits the pattern '{text}'")
        raise DataError(f"no such file: {text}{_neighbor(path)}")
    except OSError as error:
        raise DataError(f"cannot read {text[:200]}: {error.strerror or error}") from None


def _neighbor(path: Path) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix:
        return f" (a data set of the hub is written hf:{path})"
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _shards(folder: Path, split: str | None) -> list[Path]:
    """The data files of a folder: one split of ``datasets.save_to_disk``, or shards in parquet or
    Arrow.
    """
    if (folder / "state.json").is_file() and split is None:
        return _saved(folder)
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json", "splits")
        return _saved(folder / _chosen(folder, split, [str(name) for name in splits]))
    groups = _groups(folder)
    if not groups:
        shown = [path.name for path in sorted(folder.iterdir()) if path.is_file()][:3]
        holds = f"it holds {', '.join(shown)}" if shown else "it holds no files"
        raise DataError(
            f"{folder} is a folder without parquet or Arrow files ({holds}); name a file in it, or"
            f" a pattern such as '{folder}/*.jsonl'"
        )
    chosen = groups[_chosen(folder, split, list(groups))]
    if others := _other_rows({path.parent for path in chosen}):
        some = f"{', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
        raise DataError(
            f"{folder} is read as a folder of parquet or Arrow files ({len(chosen)} of them), and"
            f" would leave out {some}: name the files that are meant, or a pattern such as"
            f" '{folder}/*{chosen[0].suffix}'"
        )
    return chosen


def _other_rows(folders: set[Path]) -> list[str]:
    """Names of the files in these folders that may hold rows and are no shards."""
    files = [
        path for folder in sorted(folders) for path in sorted(folder.iterdir()) if path.is_file()
    ]
    plain = {path: path.with_suffix("") if path.suffix in ENDINGS else path for path in files}
    return [
        path.name
        for path, name in plain.items()
        if name.suffix in ROWS and not _ABOUT.fullmatch(name.name)
    ]


def _chosen(folder: Path, split: str | None, splits: list[str]) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    listed = ", ".join(splits[:20])
    asked = f"no split '{split}'; there are {listed}" if split else f"the splits {listed}"
    raise DataError(f"{folder} holds {asked}: name one, such as {folder}:{splits[0]}")


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that ``datasets.save_to_disk`` wrote, in its order."""
    files = [
        folder / str(file["filename"]) for file in _described(folder / "state.json", "_data_files")
    ]
    if missing := [path.name for path in files if not path.is_file()]:
        raise DataError(
            f"{folder} lacks {missing[0]}, which its state.json names: copy the whole folder again"
        )
    return files


def _described(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"{file} is not what datasets.save_to_disk writes: save the data set again"
        ) from None


def _groups(folder: Path) -> dict[str, list[Path]]:
    """Shards by split. The split is the part of the name before ``-00000-of-00002``, with the
    folders in front where there are several.
    """
    paths = sorted(path for ending in SHARDS for path in folder.rglob(f"*{ending}"))
    shards = [
        path
        for path in paths
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    several = len({path.parent for path in shards}) > 1
    groups: dict[str, list[Path]] = {}
    for path in shards:
        parent = path.parent.relative_to(folder).as_posix() if several else ""
        name = _PART.sub("", path.stem)
        # The hub converts to 0000.parquet, and the folder is the split.
        parts = (parent, "" if name.isdigit() else name)
        split = "/".join(part for part in parts if part not in ("", "."))
        groups.setdefault(split, []).append(path)
    return {name or "all": paths for name, paths in groups.items()}
