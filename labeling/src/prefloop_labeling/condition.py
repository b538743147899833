"""Whether the database of a home can be used, looked at before anything is started.

Argilla makes a new, empty database wherever it finds none: a home that has lost its votes would
start without a word.
"""

import importlib.util
import sqlite3
from pathlib import Path
from urllib.parse import quote

from prefloop_labeling.home import Home, LabelingError

BUSY_SECONDS = 30


def check_database(place: Home) -> None:
    """Raises LabelingError for a database that is lost, damaged, or of a newer Argilla. A home that
    was never used needs none.
    """
    file = place.database_file
    used = place.text_index_file.exists() or bool(place.credentials().get("users"))
    try:
        bytes_there = file.stat().st_size if file.is_file() else None
    except OSError as error:
        raise LabelingError(f"{file} cannot be read ({error.strerror})") from error
    if not bytes_there:
        if used or file.is_dir():
            found = "is empty" if bytes_there == 0 else "is missing"
            raise LabelingError(f"{file} {found}, and this home has been used: {place.way_out}")
        return
    try:
        problem, revision = inspect(file)
    except sqlite3.OperationalError as error:
        raise LabelingError(f"{file} cannot be used ({error}): {place.way_out}") from error
    if problem:
        raise LabelingError(f"{file} is damaged ({problem}): {place.way_out}")
    if revision is None and used:
        raise LabelingError(
            f"{file} holds no tables of Argilla, and this home has been used: {place.way_out}"
        )
    known = revisions()
    if revision is not None and known and revision not in known:
        raise LabelingError(
            f"{file} was written by a newer Argilla (schema {revision:.40}): start it with the"
            f" version of prefloop that wrote it, or {place.way_out}"
        )


def inspect(file: Path) -> tuple[str | None, str | None]:
    """What is wrong with an SQLite file, else None; and the schema that Argilla last brought it to,
    else None.

    Raises sqlite3.OperationalError for one that cannot be opened or is locked.
    """
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            return found[0] if found else "no answer to quick_check", None
        has = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        ).fetchone()
        row = (
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if has
            else None
        )
        return None, str(row[0]) if row else None
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return str(error), None
        raise
    finally:
        connection.close()


def revisions() -> set[str]:
    """The schemas that the installed Argilla knows; empty when it is not there."""
    package = importlib.util.find_spec("argilla_server")
    folders = list(package.submodule_search_locations or ()) if package else []
    return {
        script.name.partition("_")[0]
        for folder in folders
        for script in (Path(folder) / "alembic" / "versions").glob("*_*.py")
        if not script.name.startswith("_")
    }
