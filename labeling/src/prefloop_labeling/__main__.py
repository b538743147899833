"""`python -m prefloop_labeling up|down|status|users add --home DIR`"""

from __future__ import annotations

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "error: this is Python {}.{}; Argilla's server needs 3.11, 3.12 or 3.13: "
        "make an environment with one of them".format(*sys.version_info[:2])
    )

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from prefloop_labeling import server
from prefloop_labeling.home import LabelingError
from prefloop_labeling.users import ROLES, add_user


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except LabelingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument("--home", type=Path, required=True, help="directory of the server's data, logs and secrets")
    parser = argparse.ArgumentParser(prog="python -m prefloop_labeling", description="A real Argilla in one command.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[home], help="start the server, or find the one that runs")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    up.add_argument("--port", type=int, default=6900, help="port to listen on (default: %(default)s)")
    up.add_argument("--no-worker", action="store_true", help="no background jobs: webhooks are not delivered")
    up.set_defaults(run=_up)

    commands.add_parser("down", parents=[home], help="stop what `up` started").set_defaults(run=_down)
    commands.add_parser("status", parents=[home], help="show what runs").set_defaults(run=_status)

    users = commands.add_parser("users", help="manage accounts").add_subparsers(required=True, metavar="COMMAND")
    add = users.add_parser("add", parents=[home], help="create an account with a random password")
    add.add_argument("username")
    add.add_argument("--role", choices=ROLES, default="annotator", help="(default: %(default)s)")
    add.add_argument("--workspace", default="default", help="made when missing (default: %(default)s)")
    add.set_defaults(run=_add_user)
    return parser


def _up(args: argparse.Namespace) -> int:
    running = server.up(args.home, args.host, args.port, worker=not args.no_worker)
    print(f"Argilla {'started' if running.started else 'already runs'}: {running.url}")
    print(f"sign in with the owner's name and password in {running.credentials_file}")
    return 0


def _down(args: argparse.Namespace) -> int:
    stopped = server.down(args.home)
    print(f"stopped {', '.join(stopped)}" if stopped else f"nothing runs in {args.home}")
    return 0


def _status(args: argparse.Namespace) -> int:
    state = server.status(args.home)
    print(json.dumps(state, indent=2))
    return 0 if state["answers"] else 1


def _add_user(args: argparse.Namespace) -> int:
    account = add_user(args.home, args.username, args.role, args.workspace)
    print(
        f"{account['role']} {account['username']} added; name, password and API key are in {args.home / 'credentials.json'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
