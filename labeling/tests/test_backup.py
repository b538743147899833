"""Backups and restores without a server: what is written, and what is refused. With one:
tests/labeling/test_label_homes.py.
"""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefloop_labeling import __main__ as command_line
from prefloop_labeling import backup as backups
from prefloop_labeling.backup import backup, restore
from prefloop_labeling.home import Home, LabelingError


@pytest.fixture
def place(tmp_path: Path) -> Home:
    """A home with an account and a vote, as far as a backup knows."""
    place = Home(tmp_path / "home")
    place.create()
    with contextlib.closing(sqlite3.connect(place.database_file)) as database:
        database.executescript(
            "CREATE TABLE users (id); CREATE TABLE responses (id); INSERT INTO users VALUES (1);"
            " INSERT INTO responses VALUES (1);"
        )
    return place


def test_a_backup_is_private_and_whole_and_never_replaces_a_file(
    place: Home, tmp_path: Path, capsys: Any
) -> None:
    file, home = tmp_path / "b.tar", ["--home", str(place.path)]
    assert command_line.main(["backup", str(file), *home]) == 0
    said = capsys.readouterr().out
    assert "1 account, 1 answer" in said and "everybody's passwords and keys" in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert (
        command_line.main(["backup", str(file), *home]) == 2
        and "is there: name another file" in capsys.readouterr().err
    )
    assert file.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "b.tar",
        "home",
    ]


def test_a_home_without_data_or_with_damaged_ones_is_not_backed_up(
    place: Home, tmp_path: Path
) -> None:
    with pytest.raises(LabelingError, match=r"has no argilla\.db"):
        backup(tmp_path / "nowhere", tmp_path / "b.tar")
    place.database_file.write_bytes(place.database_file.read_bytes()[:5000])
    with pytest.raises(LabelingError, match=r"argilla\.db"):
        backup(place.path, tmp_path / "b.tar")
    with pytest.raises(LabelingError, match="cannot be written"):
        backup(place.path, tmp_path / "no" / "b.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_a_damaged_text_index_stops_no_backup_and_none_is_restored(
    place: Home, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar"
    place.text_index_file.write_bytes(b"no database" * 1000)
    assert backup(place.path, file).answers == 1
    with tarfile.open(file) as tar:
        assert "text-index.db" not in tar.getnames()
    rubbish = b"of an earlier version"
    said = {"bytes": len(rubbish), "sha256": hashlib.sha256(rubbish).hexdigest()}
    remade(file, manifest(lambda whole: whole["files"].update({"text-index.db": said})))
    remade(file, added("text-index.db", content=rubbish))
    assert restore(file, tmp_path / "new").answers == 1
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "auth-secret",
        "credentials.json",
        "argilla.db",
    }


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_meanwhile_is_not_replaced(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    file, count = tmp_path / "b.tar", backups._counted
    if not links:  # as on FAT
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted"))
        )
    backup(place.path, tmp_path / "first.tar")

    def meanwhile(database: Path) -> tuple[int, int]:
        file.write_text("somebody's")
        return count(database)

    monkeypatch.setattr(backups, "_counted", meanwhile)
    with pytest.raises(LabelingError, match=r"b\.tar is there: name another file"):
        backup(place.path, file)
    assert file.read_text() == "somebody's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "first.tar", "home"]


@pytest.mark.parametrize(
    ("name", "said"), [(".lock", "cannot be opened"), ("server.json", "cannot be read")]
)
def test_what_is_wrong_with_the_home_is_not_told_of_the_target(
    place: Home, tmp_path: Path, name: str, said: str
) -> None:
    (place.path / name).mkdir()
    (tmp_path / "to").mkdir()
    with pytest.raises(LabelingError, match=rf"^{place.path}/{name} {said}"):
        backup(place.path, tmp_path / "to" / "b.tar")
    assert not list((tmp_path / "to").iterdir())


def test_names_are_on_the_disk_before_they_count(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        sync(descriptor)
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"{path.name} is {target.name}")
        return rename(path, target)

    backup(place.path, tmp_path / "b.tar")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert done == [
        "auth-secret",
        "credentials.json",
        "argilla.db",
        "home",
        "home is new",
        tmp_path.name,
    ]
    done.clear()
    place.write_credentials(place.credentials())
    assert done == ["credentials.json.partial", "home"]


def test_a_restored_home_has_the_same_secrets_and_rows(place: Home, tmp_path: Path) -> None:
    # A commit that is in the log beside the database alone.
    writer = sqlite3.connect(place.database_file)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO responses VALUES (2)")
    writer.commit()
    done = backup(place.path, tmp_path / "b.tar")
    writer.close()
    assert (done.accounts, done.answers) == (1, 2)
    (tmp_path / "new").mkdir()  # an empty one is as good as none
    assert restore(tmp_path / "b.tar", tmp_path / "new").answers == 2
    new = Home(tmp_path / "new")
    assert (new.secret(), new.credentials()) == (place.secret(), place.credentials())
    assert stat.S_IMODE(new.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in new.path.iterdir()} == {0o600}
    for taken in (new.path, tmp_path / "b.tar"):
        with pytest.raises(LabelingError, match="holds something: name a new --home"):
            restore(tmp_path / "b.tar", taken)


def remade(file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    with tarfile.open(file) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    change(members)
    with tarfile.open(file, "w:") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))


def added(
    name: str, type: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x"
) -> Callable:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = type, link
    return lambda members: members.append((member, content))


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable:
    def changed(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        said = json.loads(members[0][1])
        change(said)
        members[0] = (members[0][0], json.dumps(said).encode())

    return changed


def another_secret(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """A file of the same size under an honest manifest."""
    said = json.loads(members[0][1])
    said["files"]["auth-secret"] = {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}
    members[0] = (members[0][0], json.dumps(said).encode())
    members[1] = (members[1][0], b"s")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (added("../evil"), r"'\.\./evil', a file that none has"),
        (added("/tmp/evil"), "'/tmp/evil', a file that none has"),
        (added("server.log"), "'server.log', a file that none has"),
        (added("server.json", tarfile.SYMTYPE, "/etc/passwd"), "'server.json', a link that none has"),  # noqa: E501
        (added("text-index.db", tarfile.LNKTYPE, "argilla.db"), "'text-index.db', a link that none has"),  # noqa: E501
        (added("server.json", tarfile.FIFOTYPE), "'server.json', no plain file that none has"),
        (added("server.json", tarfile.CHRTYPE), "'server.json', no plain file that none has"),
        (added("server.json", tarfile.DIRTYPE), "'server.json', no plain file that none has"),
        (added("argilla.db"), "'argilla.db' stands in it twice"),
        (lambda members: members.pop(), r"is cut short: argilla\.db is missing"),
        (lambda members: members.pop(0), "does not begin with manifest.json"),
        (lambda members: members.__setitem__(1, (members[1][0], b"s" * 64)), "damaged: auth-secret is not what was backed up"),  # noqa: E501
        (lambda members: members.__setitem__(1, (members[1][0], b"s" * 65)), "damaged: auth-secret has 65 bytes"),  # noqa: E501
        (another_secret, "holds 1 characters, and a secret has at least 32"),
        (manifest(lambda said: said.update(format=2)), "its format is 2, known is 1"),
        (manifest(lambda said: said["files"].pop("argilla.db")), r"names no argilla\.db"),
        (manifest(lambda said: said.update(files=[])), "names no auth-secret"),
        (manifest(lambda said: said["files"].update({"auth-secret": 3})), "is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_backup_is_refused_and_leaves_nothing(
    place: Home, tmp_path: Path, change: Callable, said: str
) -> None:
    file = tmp_path / "b.tar"
    backup(place.path, file)
    remade(file, change)
    with pytest.raises(LabelingError, match=said):
        restore(file, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home"]


@pytest.mark.parametrize("cut", [0, 100, 513, 3000, 12_000])
def test_a_cut_or_foreign_file_is_refused(place: Home, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "b.tar"
    backup(place.path, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(LabelingError, match=r"no backup of `label backup`|cut short|damaged"):
        restore(file, tmp_path / "new")
    file.write_bytes(b"\x1f\x8b rubbish" * 1000)
    with pytest.raises(LabelingError, match="no backup of `label backup`"):
        restore(file, tmp_path / "new")
    with pytest.raises(LabelingError, match="cannot be restored"):
        restore(tmp_path / "missing.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.XHDTYPE, 5 << 30
    with open(tmp_path / "b.tar", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(6 << 30)  # a hole: nothing is on the disk
    with pytest.raises(LabelingError, match="a header of"):
        restore(tmp_path / "b.tar", tmp_path / "new")
