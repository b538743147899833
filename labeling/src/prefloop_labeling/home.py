"""The home directory of a server: its files, its secrets, and the environment that Argilla
reads.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefloop_labeling.files import write_private
from prefloop_labeling.identity import Identity

# struct sockaddr_un holds 108 bytes on Linux and 104 on macOS, one of them the final NUL.
SOCKET_PATH_BYTES = 100
SECRET_CHARACTERS = 32  # fewer could be guessed, and with them everybody's tokens
# What messages tell the user to type; `prefloop label` names itself here.
COMMAND_VARIABLE = "PREFLOOP_LABELING_COMMAND"


class LabelingError(Exception):
    """Something that whoever started the command can put right; the message says what."""


class Home:
    """The files of one server. Nothing is made before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().absolute()
        if any(character in str(self.path) for character in "%?#"):
            raise LabelingError(
                f"home {self.path}: Argilla's database address cannot hold %, ? or #; choose"
                " another --home"
            )
        self.credentials_file = self.path / "credentials.json"
        self.secret_file = self.path / "auth-secret"
        self.server_file = self.path / "server.json"
        self.database_file = self.path / "argilla.db"
        self.text_index_file = self.path / "text-index.db"
        self.temporary = self.path / "tmp"

    def pid_file(self, name: str) -> Path:
        """The file that identifies the process `name` (redis, server or worker)."""
        return self.path / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        """The log of the process `name`."""
        return self.path / f"{name}.log"

    def command(self, words: str) -> str:
        """A whole command of this home, to be typed as it stands."""
        program = os.environ.get(COMMAND_VARIABLE) or "python -m prefloop_labeling"
        return f"`{program} {words} --home {shlex.quote(str(self.path))}`"

    def create(self) -> None:
        """Make the directory (mode 0700) and, once, the secrets in it; raises LabelingError where
        that is impossible or they are damaged.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.temporary.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise LabelingError(
                f"home {self.path} cannot be written ({error.strerror}): choose another with --home"
            ) from error
        if not self.secret_file.exists():
            write_private(self.secret_file, secrets.token_hex(32))
        if not self.credentials_file.exists():
            if self.database_file.exists():
                raise LabelingError(
                    f"{self.credentials_file} is missing, and there is a database: {self.way_out}"
                )
            owner = {
                "username": "owner",
                "password": secrets.token_urlsafe(18),
                "api_key": secrets.token_urlsafe(48),
            }
            self.write_credentials({"owner": owner, "users": {}})
        self.secret()
        self.credentials()

    def identity(self) -> Identity:
        """Which directory this is; raises OSError when there is none."""
        return Identity.of(self.path)

    def secret(self) -> str:
        """What signs everybody's tokens; raises LabelingError for one that is missing or too short
        to be a secret.
        """
        try:
            secret = self.secret_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LabelingError(
                f"{self.secret_file} cannot be read ({error}): {self.way_out}"
            ) from error
        if len(secret) < SECRET_CHARACTERS or not (secret.isascii() and secret.isprintable()):
            raise LabelingError(
                f"{self.secret_file} holds {len(secret)} characters, and a secret has at least"
                f" {SECRET_CHARACTERS} that can be printed: delete the file, which signs everybody"
                " out, or restore it from a backup"
            )
        return secret

    @property
    def way_out(self) -> str:
        """What to do about a home that has lost something."""
        program = os.environ.get(COMMAND_VARIABLE) or "python -m prefloop_labeling"
        return (
            f"restore a backup into a new home (`{program} restore FILE --home NEW`), or name"
            " another --home to start empty"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One start or stop at a time; the lock goes when its holder dies. Raises LabelingError
        where it cannot be taken.
        """
        file = self.path / ".lock"
        try:
            lock = open(file, "w")  # noqa: SIM115 (held until the end of the block)
        except OSError as error:
            raise LabelingError(
                f"{file} cannot be opened ({error.strerror}): run this as the owner of the home, or"
                " remove what stands there"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def credentials(self) -> dict[str, Any]:
        """The owner's and the added users' names, passwords and API keys."""
        try:
            found = json.loads(self.credentials_file.read_text())
        except FileNotFoundError:
            raise LabelingError(
                f"{self.credentials_file} is missing: start the server with {self.command('up')}"
            ) from None
        except OSError as error:
            raise LabelingError(
                f"{self.credentials_file} cannot be read ({error.strerror})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise LabelingError(
                f"{self.credentials_file} is no JSON ({error}): {self.way_out}"
            ) from error
        users = found.get("users", {}) if isinstance(found, dict) else None
        accounts = [found.get("owner"), *users.values()] if isinstance(users, dict) else [None]
        if not all(_is_account(account) for account in accounts):
            raise LabelingError(
                f"{self.credentials_file} lacks an owner, or a name, password or key of somebody:"
                f" {self.way_out}"
            )
        return found

    def write_credentials(self, credentials: dict[str, Any]) -> None:
        """Replace the credentials file; only its owner can read it."""
        write_private(self.credentials_file, json.dumps(credentials, indent=2) + "\n")

    def redis_socket(self) -> Path:
        """Where Redis listens: in the home, or in a private short directory when the home's path is
        too long for a socket.
        """
        inside = self.path / "redis.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES:
            return inside
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        for base in (runtime, Path("/tmp")):
            directory = base / f"prefloop-{os.getuid()}"
            socket = (
                directory
                / f"{hashlib.blake2b(os.fsencode(self.path), digest_size=8).hexdigest()}.sock"
            )
            if len(os.fsencode(socket)) > SOCKET_PATH_BYTES:
                continue
            try:
                directory.mkdir(mode=0o700, exist_ok=True)
                status = directory.lstat()
            except OSError:
                continue
            if directory.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
                raise LabelingError(
                    f"{directory} is not a private directory of yours: remove it, or choose a"
                    " shorter --home"
                )
            return socket
        raise LabelingError(
            f"home {self.path} is too long for a Unix socket, and no shorter place was found:"
            " choose a shorter --home"
        )

    def environment(self) -> dict[str, str]:
        """What Argilla's processes are started with: nothing of the caller's own ARGILLA_* settings
        for these.
        """
        return {
            **os.environ,
            "ARGILLA_HOME_PATH": str(self.path),
            "ARGILLA_DATABASE_URL": (
                f"sqlite+aiosqlite:///{self.path / 'argilla.db'}?check_same_thread=False"
            ),
            "ARGILLA_DATABASE_SQLITE_TIMEOUT": "30",
            "ARGILLA_SEARCH_ENGINE": "embedded",
            "ARGILLA_REDIS_URL": f"unix://{quote(str(self.redis_socket()))}?db=0",
            "ARGILLA_REDIS_USE_CLUSTER": "false",
            "ARGILLA_BASE_URL": "/",
            "ARGILLA_AUTH_SECRET_KEY": self.secret(),
            # Argilla's default lets the pages of every site call with the reader's session.
            "ARGILLA_CORS_ORIGINS": os.environ.get("ARGILLA_CORS_ORIGINS", "[]"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # Argilla copies its web pages to a temporary directory at each start and never removes
            # them.
            "TMPDIR": str(self.temporary),
            "PYTHONUNBUFFERED": "1",
        }


def _is_account(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) and value[key]
        for key in ("username", "password", "api_key")
    )
