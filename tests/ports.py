"""Ports for servers of tests."""

import contextlib
import socket
from collections.abc import Iterator


def free_port() -> int:
    """A port that nobody else is given for a minute: its last connection waits out, and only a
    server that asks for reuse may bind it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        probe.listen(1)
        with (
            socket.create_connection(probe.getsockname()) as client,
            probe.accept()[0],
        ):  # left first, so here it waits
            return int(client.getpeername()[1])


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port that refuses connections, held so that nobody else answers there."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        yield int(deaf.getsockname()[1])
