"""Argilla's own client (``rg.Argilla``) over prefloop's connection. It is imported when needed,
since that takes a second.

By itself ``rg.Argilla`` ignores the proxies of the environment, sends a request when it is made,
reports an error with the server's raw text, and becomes the default client of the whole process,
which a program's next ``rg.Dataset`` would use.
"""

from __future__ import annotations

from typing import Any

import argilla as rg

from prefloop.base.http import Client


class _Client(rg.Argilla):
    def __init__(self, http: Client, url: str, key: str) -> None:
        super().__init__(api_url=url, api_key=key)
        own: Any = self  # the SDK is not typed
        own.http_client.close()
        own.http_client, own.api = http, type(own.api)(http)

    def _validate_connection(self) -> None:
        """Does nothing: the first real request gives a better error."""

    @classmethod
    def _set_default(cls, client: Any) -> None:
        # Without any default client, fields and questions cannot be made.
        if rg.Argilla._default_client is None:
            rg.Argilla._default_client = client


def client(http: Client, url: str, key: str) -> rg.Argilla:
    """A client that sends its requests through ``http``, so that its errors are ``LabelError``."""
    return _Client(http, url, key)
