"""A home in one file, taken while its server runs, and a home made of it again.

A plain tar: a manifest with the size and hash of every file, then the files. The database is copied
by SQLite's own backup, which holds every vote that was acknowledged before it began. Redis's queue
of jobs stays out: a job waits for seconds, and two homes that both do it would both call a webhook.
The text index stays out as well, since the server makes it again; a backup of an earlier version
may hold one, which is passed over. Nothing is packed, so that what comes out is never more than the
file's own size.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from urllib.parse import quote

from prefloop_labeling.condition import BUSY_SECONDS, inspect
from prefloop_labeling.files import sync_folder
from prefloop_labeling.home import Home, LabelingError

MANIFEST = "manifest.json"
FORMAT = 1
NEEDED = ("auth-secret", "credentials.json", "argilla.db")
SMALL = ("auth-secret", "credentials.json", "server.json")
DATABASE, TEXT_INDEX = "argilla.db", "text-index.db"
NAMES = {MANIFEST, *SMALL, DATABASE, TEXT_INDEX}
PIECE = 1 << 20
LARGEST_SMALL = 16 << 20  # bytes of the files that are not databases


@dataclass(frozen=True)
class Backup:
    """What a backup holds."""

    file: Path
    bytes: int
    accounts: int
    answers: int


def backup(home: Path | str, file: Path | str) -> Backup:
    """Write a home to a new file that nobody else can read, whole or not at all. Its server may
    run.

    Raises LabelingError for a home without data or with damaged ones, and for a file that is there.
    """
    place, target = Home(Path(home)), Path(file).expanduser().absolute()
    _check_free(target)
    try:
        there = place.database_file.is_file()
    except OSError as error:
        raise LabelingError(f"{place.database_file} cannot be read ({error.strerror})") from error
    if not there:
        raise LabelingError(
            f"home {place.path} has no {place.database_file.name}: there is nothing to back up"
        )
    with _folder(target.parent, f".{target.name}.") as work:
        with place.locked():
            # Before the database: an account without its kept password gets another by
            # `users password --new`.
            for name in SMALL:
                _copy(place.path / name, work / name)
            _copy_database(place.database_file, work / DATABASE)
        partial = work / "backup"
        _write(partial, work, [name for name in (*SMALL, DATABASE) if (work / name).exists()])
        accounts, answers = _counted(work / DATABASE)
        _publish(partial, target)
        sync_folder(target.parent)
        return Backup(target, target.stat().st_size, accounts, answers)


def restore(file: Path | str, home: Path | str) -> Backup:
    """Make a new home from a backup: the same accounts, secrets, records and votes. Nothing of it
    is there before all of it is.

    Raises LabelingError for a home that holds something, and for a file that is no backup or is
    damaged.
    """
    place, source = Home(Path(home)), Path(file).expanduser().absolute()
    if os.path.lexists(place.path) and (not place.path.is_dir() or any(place.path.iterdir())):
        raise LabelingError(f"home {place.path} holds something: name a new --home for the backup")
    try:
        place.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LabelingError(
            f"home {place.path} cannot be made ({error.strerror}): choose another --home"
        ) from error
    with _folder(place.path.parent, f".{place.path.name}.") as work:
        made = work / "home"
        made.mkdir(mode=0o700)
        try:
            with open(source, "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                _read(source, opened, made)
        except OSError as error:
            raise LabelingError(
                f"{source} cannot be restored ({error.strerror or error})"
            ) from error
        checked = Home(made)
        checked.secret()
        checked.credentials()
        (made / TEXT_INDEX).unlink(missing_ok=True)
        _check_database(made / DATABASE, f"{source}: its {DATABASE}")
        accounts, answers = _counted(made / DATABASE)
        sync_folder(made)
        try:
            made.rename(place.path)  # onto an empty directory or none
        except OSError as error:
            raise LabelingError(
                f"home {place.path} cannot be made ({error.strerror}): name another --home"
            ) from error
        sync_folder(place.path.parent)
    return Backup(source, size, accounts, answers)


@contextlib.contextmanager
def _folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A private directory for what is not whole yet, on the disk of what it becomes."""
    try:
        work = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    except OSError as error:
        raise LabelingError(
            f"{parent} cannot be written ({error.strerror}): name another place"
        ) from error
    try:
        yield work
    except OSError as error:
        raise LabelingError(
            f"{parent}: {error.strerror or error}. Nothing was left there"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise LabelingError(f"{target} is there: name another file, or remove it first")


def _publish(partial: Path, target: Path) -> None:
    """Give a whole file its name. A link fails where the name was taken meanwhile; a rename would
    replace what has it.
    """
    try:
        os.link(partial, target)
    except OSError:
        _check_free(target)
        partial.rename(target)  # a disk without links, such as FAT


def _copy(file: Path, target: Path) -> None:
    """Copy a small file of the home, where it has it."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LabelingError(f"{file} cannot be read ({error.strerror})") from error
    target.write_bytes(content)


def _copy_database(file: Path, target: Path) -> None:
    """Copy a database at one moment, in one step: writers go on meanwhile, and a copy in steps
    would begin again at each of them.
    """
    try:
        with (
            contextlib.closing(
                sqlite3.connect(_uri(file, "rw"), uri=True, timeout=BUSY_SECONDS)
            ) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it
        _check_database(target, str(file))
    except sqlite3.Error as error:
        raise LabelingError(f"{file} cannot be copied ({error})") from error


def _check_database(file: Path, named: str) -> None:
    try:
        problem, _ = inspect(file)
    except sqlite3.Error as error:
        problem = str(error)
    if problem:
        raise LabelingError(f"{named} is damaged ({problem}): a backup of it would be of no use")


def _counted(database: Path) -> tuple[int, int]:
    try:
        with contextlib.closing(sqlite3.connect(_uri(database, "ro"), uri=True)) as connection:
            accounts = connection.execute("SELECT COUNT(*) FROM users").fetchone()[0]
            return accounts, connection.execute("SELECT COUNT(*) FROM responses").fetchone()[0]
    except sqlite3.Error as error:
        raise LabelingError(
            f"{database.name} holds no accounts and votes ({error}): it is no database of Argilla"
        ) from error


def _uri(file: Path, mode: str) -> str:
    return f"file:{quote(str(file))}?mode={mode}"


def _write(target: Path, folder: Path, names: Sequence[str]) -> None:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
        for name in names
    }
    manifest = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
    }
    said = json.dumps(manifest, indent=2).encode()
    with (
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened,
        tarfile.open(fileobj=opened, mode="w:", format=tarfile.GNU_FORMAT) as tar,
    ):
        tar.addfile(_member(MANIFEST, len(said)), io.BytesIO(said))
        for name in names:
            with open(folder / name, "rb") as content:
                tar.addfile(_member(name, (folder / name).stat().st_size), content)
        tar.close()
        opened.flush()
        os.fsync(opened.fileno())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _read(source: Path, opened: BinaryIO, folder: Path) -> None:
    """Write the files of a backup into a folder. Raises LabelingError for anything that `backup`
    does not write.
    """
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Pieces(opened)), mode="r:") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST or not first.isreg() or first.size > PIECE:
                raise LabelingError(
                    f"{source} is no backup of `label backup`: it does not begin with {MANIFEST}"
                )
            files = _files(json.loads(_content(tar, first).read()))
            while (member := tar.next()) is not None:
                _check_member(source, member, files)
                expected = files.pop(member.name)
                digest = _save(_content(tar, member), folder / member.name)
                if digest != expected["sha256"]:
                    raise LabelingError(
                        f"{source} is damaged: {member.name} is not what was backed up; take"
                        " another backup"
                    )
            if files:
                raise LabelingError(
                    f"{source} is cut short: {', '.join(sorted(files))} is missing; take another"
                    " backup"
                )
    except (
        tarfile.TarError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise LabelingError(
            f"{source} is no backup of `label backup`, or is damaged ({error})"
        ) from error


def _files(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"its format is {str(manifest['format'])[:20]}, known is {FORMAT}: restore it with a"
            " newer prefloop"
        )
    files = dict(manifest["files"])
    if missing := [name for name in NEEDED if name not in files]:
        raise ValueError(f"its manifest names no {', '.join(missing)}")
    return files


def _check_member(source: Path, member: tarfile.TarInfo, files: dict[str, dict[str, Any]]) -> None:
    name = member.name[:80]
    if member.name not in NAMES or not member.isreg() or member.issparse():
        kind = (
            "a file"
            if member.isreg()
            else "a link"
            if member.islnk() or member.issym()
            else "no plain file"
        )
        raise LabelingError(
            f"{source} is no backup of `label backup`: it holds {name!r}, {kind} that none has"
        )
    if member.name not in files:
        raise LabelingError(
            f"{source} is no backup of `label backup`: {name!r} stands in it twice, or not in its"
            " manifest"
        )
    if member.size != files[member.name]["bytes"] or (
        name in SMALL and member.size > LARGEST_SMALL
    ):
        raise LabelingError(
            f"{source} is damaged: {name} has {member.size:,} bytes, which is not its size in the"
            " manifest"
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name[:80]} has no content")
    return content


def _save(content: IO[bytes], target: Path) -> str:
    """Write a file that nobody else can read; its hash."""
    digest = hashlib.sha256()
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := content.read(PIECE):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class _Pieces:
    """A file of which tarfile cannot read much at once: a header may claim to be gigabytes long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
