"""The server process: migrations, the owner's account, then uvicorn, with one import of Argilla for
all three.

Started by `server.up` with the environment of `home.environment`; secrets come from files of the
home that only its owner can read.
"""

import argparse
import gc
from pathlib import Path

import uvicorn

from prefloop_labeling import database, logs
from prefloop_labeling.app import app
from prefloop_labeling.guard import Guard
from prefloop_labeling.home import Home

from argilla_server.contexts import accounts  # isort: skip
from argilla_server.database import SyncSessionLocal, sync_engine
from argilla_server.enums import UserRole
from argilla_server.models import User, Workspace

GRACE_SECONDS = 5


def ensure_owner(home: Home) -> None:
    """Create the owner of `credentials.json` with the workspace "default", unless a user of that
    name exists.
    """
    owner = home.credentials()["owner"]
    with SyncSessionLocal() as session:
        if session.query(User).filter_by(username=owner["username"]).first() is None:
            session.add(
                User(
                    first_name=owner["username"],
                    username=owner["username"],
                    role=UserRole.owner,
                    password_hash=accounts.hash_password(owner["password"]),
                    api_key=owner["api_key"],
                    workspaces=[Workspace(name="default")],
                )
            )
            session.commit()
    sync_engine.dispose()


def collect_less() -> None:
    """Leave what was imported out of garbage collection, and collect seldom.

    Each vote makes thousands of objects, few of them in cycles: by default some requests wait while
    all of Argilla is walked.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def main() -> None:
    """Run the server until a signal says stop."""
    parser = argparse.ArgumentParser(prog="python -m prefloop_labeling.serve")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--allow-host", action="append", default=[])
    args = parser.parse_args()
    logs.quiet()
    home = Home(args.home)
    database.migrate()
    ensure_owner(home)
    collect_less()
    guarded = Guard(app, home.secret(), home.identity(), args.port, [args.host, *args.allow_host])
    uvicorn.run(
        guarded,
        host=args.host,
        port=args.port,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
