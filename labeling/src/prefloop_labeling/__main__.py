"""`python -m prefloop_labeling up|down|status|backup|restore|users … --home DIR`"""

from __future__ import annotations

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "error: this is Python {}.{}; Argilla's server needs 3.11, 3.12 or 3.13: "
        "make an environment with one of them".format(*sys.version_info[:2])
    )

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from prefloop_labeling import backup, server
from prefloop_labeling.home import Home, LabelingError
from prefloop_labeling.users import ROLES, Added, add_user, list_users, password_of, remove_user


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
    home.add_argument(
        "--home", type=Path, required=True, help="directory of the server's data, logs and secrets"
    )
    parser = argparse.ArgumentParser(
        prog="python -m prefloop_labeling", description="A real Argilla in one command."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser(
        "up", parents=[home], help="start the server, or find the one that runs"
    )
    up.add_argument("--host", help=f"address to listen on (default: {server.HOST})")
    up.add_argument(
        "--port",
        type=int,
        help=f"port to listen on (default: the last one, at first {server.PORT})",
    )
    up.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help=(
            "a name that a proxy of yours is called by, besides the loopback's; may be given"
            " several times"
        ),
    )
    up.add_argument(
        "--no-worker", action="store_true", help="no background jobs: webhooks are not delivered"
    )
    up.set_defaults(run=_up)

    commands.add_parser("down", parents=[home], help="stop what `up` started").set_defaults(
        run=_down
    )
    commands.add_parser("status", parents=[home], help="show what runs").set_defaults(run=_status)

    saved = commands.add_parser(
        "backup", parents=[home], help="write the home to a file, while the server runs or not"
    )
    saved.add_argument("file", type=Path)
    saved.set_defaults(run=_backup)
    again = commands.add_parser("restore", parents=[home], help="make a new home of a backup")
    again.add_argument("file", type=Path)
    again.set_defaults(run=_restore)

    users = commands.add_parser("users", help="manage accounts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    add = users.add_parser(
        "add", parents=[home], help="make an account, or let one that is there into a workspace"
    )
    add.add_argument("username")
    add.add_argument("--role", choices=ROLES, help="(default: annotator)")
    add.add_argument(
        "--workspace",
        default="default",
        help="workspace to let the user into (default: %(default)s)",
    )
    add.add_argument(
        "--new-workspace", action="store_true", help="make the workspace when it is missing"
    )
    add.set_defaults(run=_add_user)
    users.add_parser("list", parents=[home], help="show all accounts").set_defaults(run=_list_users)
    remove = users.add_parser("remove", parents=[home], help="delete an account")
    remove.add_argument("username")
    remove.add_argument("--with-answers", action="store_true", help="delete the user's answers too")
    remove.set_defaults(run=_remove_user)
    password = users.add_parser("password", parents=[home], help="print the password of an account")
    password.add_argument("username")
    password.add_argument("--new", action="store_true", help="make a new one first")
    password.set_defaults(run=_password)
    return parser


def _up(args: argparse.Namespace) -> int:
    running = server.up(
        args.home, args.host, args.port, not args.no_worker, allow_hosts=args.allow_host
    )
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


def _backup(args: argparse.Namespace) -> int:
    done = backup.backup(args.home, args.file)
    print(
        f"{done.file}: {_held(done)}. It holds everybody's passwords and keys: keep it as safe as"
        " the home"
    )
    return 0


def _restore(args: argparse.Namespace) -> int:
    done = backup.restore(args.file, args.home)
    print(
        f"{args.home} made of {done.file}: {_held(done)}. Start it with"
        f" {Home(args.home).command('up')}"
    )
    return 0


def _held(done: backup.Backup) -> str:
    return (
        f"{done.accounts:,} account{'s' * (done.accounts != 1)}, {done.answers:,}"
        f" answer{'s' * (done.answers != 1)}"
    )


def _add_user(args: argparse.Namespace) -> int:
    done = add_user(args.home, args.username, args.role, args.workspace, args.new_workspace)
    if done.workspace_made:
        print(f"workspace '{args.workspace}' made")
    print(_what_was_done(done, args.workspace))
    if done.made:
        print(
            "the password to sign in with:"
            f" {Home(args.home).command(f'users password {shlex.quote(args.username)}')}"
        )
    return 0


def _what_was_done(done: Added, workspace: str) -> str:
    who = f"{done.account['role']} {done.account['username']}"
    if done.made:
        return f"{who} added to workspace '{workspace}'"
    if done.joined:
        return f"{who} was there, and is let into workspace '{workspace}'"
    return f"{who} was there, with workspace '{workspace}': nothing to do"


def _list_users(args: argparse.Namespace) -> int:
    rows = [("name", "role", "workspaces", "answers")]
    rows += [
        (
            user.username,
            f"{user.role}{', simulated' * user.simulated}",
            ", ".join(user.workspaces) or "-",
            str(user.answers),
        )
        for user in list_users(args.home)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _remove_user(args: argparse.Namespace) -> int:
    gone = remove_user(args.home, args.username, args.with_answers)
    print(
        f"{gone.role} {gone.username} removed"
        + (f", with {gone.said_answers}" if gone.answers else "")
    )
    return 0


def _password(args: argparse.Namespace) -> int:
    print(password_of(args.home, args.username, args.new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
