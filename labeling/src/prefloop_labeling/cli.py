"""Argilla's own command line with the embedded search engine:
`python -m prefloop_labeling.cli database migrate`.

It reads the same ARGILLA_* variables as the server; `prefloop_labeling.home.environment` says
which.
"""

from prefloop_labeling import engine  # noqa: F401  (registers the engine and sets up SQLite)

from argilla_server.cli import app  # isort: skip

if __name__ == "__main__":
    app()
