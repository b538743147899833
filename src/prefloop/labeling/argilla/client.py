"""Argilla's own client (``rg.Argilla``) over prefloop's connection; imported when it is needed,
since it takes a second.

As it comes, ``rg.Argilla`` passes over the proxies of the environment, sends a request when it is
made, tells a refusal with the server's raw text, and becomes the default client of the whole
process, to which a program's next ``rg.Dataset`` would go.
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
        """The first real request says better what is in the way."""

    @classmethod
    def _set_default(cls, client: Any) -> None:
        # Fields and questions cannot be made where there is none at all.
        if rg.Argilla._default_client is None:
            rg.Argilla._default_client = client


def client(http: Client, url: str, key: str) -> rg.Argilla:
    """A client whose requests are ``http``'s, and whose failures therefore are ``LabelError``."""
    return _Client(http, url, key)
