"""The rq worker with the embedded search engine: webhooks, record states after a changed
distribution, hub jobs.

One worker, with rq's scheduler in it: Argilla asks for retries of webhooks after 10, 60 and 180
seconds, and without a scheduler those never come.
"""

from prefloop_labeling import engine, logs  # noqa: F401  (the engine registers itself and sets up SQLite)

from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION  # isort: skip
from rq import Worker


def main() -> None:
    """Work until a signal says stop."""
    logs.quiet()
    Worker([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION).work(
        with_scheduler=True, logging_level="WARNING"
    )


if __name__ == "__main__":
    main()
