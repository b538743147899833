"""A headless Chromium, driven over its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from labeling_server import until
from websockets.sync.client import ClientConnection, connect

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
    "--force-device-scale-factor=1",
]


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._scripted = True
        self.events: list[dict[str, Any]] = []
        """What the browser said unasked, once a domain such as Log is enabled."""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        if method == "Emulation.setScriptExecutionDisabled":
            self._scripted = not params["value"]
        id = next(self._ids)
        self._socket.send(json.dumps({"id": id, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=300))
            if answer.get("id") == id:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; ``None`` when it throws, as it does while a page
        is loading.
        """
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression once it is true."""
        return until(lambda: self.js(expression))

    def click(self, element: str) -> None:
        """Press the mouse on an element, given as an expression, once it is there; again where the
        page moved it away from the mouse.
        """
        until(lambda: self._press(element))

    def _press(self, element: str) -> bool:
        """Whether the element was clicked; so it was when the page has gone with it, and so it is
        taken to be where the page may run no script.
        """
        box = self.wait(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const b ="
            " e.getBoundingClientRect(); window.missed = true; e.addEventListener('click', () =>"
            " { window.missed = false }, {once: true, capture: true}); return b.width ? [b.x +"
            " b.width / 2, b.y + b.height / 2] : null })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )
        return not self._scripted or not self.js("window.missed")

    def write(self, element: str, text: str) -> None:
        """Click on an input and type."""
        self.click(element)
        self.call("Input.insertText", text=text)

    def picture(self, file: Path, width: int, height: int) -> None:
        """Save what the window shows, from its upper left corner."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        file.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png", clip=clip)["data"])
        )


@contextlib.contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A browser with an empty profile and one tab."""
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = until(
            lambda: (
                (found := profile / "DevToolsActivePort").exists()
                and found.read_text().split("\n")[0]
            )
        )

        def first_tab() -> Any:
            tabs = httpx.get(
                f"http://127.0.0.1:{port}/json/list", trust_env=False, timeout=300
            ).json()
            return next((tab for tab in tabs if tab["type"] == "page"), None)

        tab = until(first_tab)
        with connect(
            tab["webSocketDebuggerUrl"],
            max_size=None,
            proxy=None,
            open_timeout=300,
            ping_timeout=None,
        ) as socket:
            page = Page(socket)
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            yield page
    finally:
        process.terminate()
        process.wait()
