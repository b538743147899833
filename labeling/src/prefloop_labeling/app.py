"""The ASGI application: Argilla's own, with the embedded search engine and its sessions before it
is made.
"""

from prefloop_labeling import engine, sessions  # the engine registers itself and sets up SQLite

from argilla_server import app  # isort: skip

sessions.use()

__all__ = ["app", "engine"]
