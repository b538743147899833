"""The ASGI application: Argilla's own, with the embedded search engine registered before it is made."""

from prefloop_labeling import engine, sessions  # (engine registers itself and sets up SQLite)

from argilla_server import app  # isort: skip

__all__ = ["app", "engine"]

sessions.use()
