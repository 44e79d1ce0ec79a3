"""Headless Chromium through its DevTools protocol: open a page, run script in it, take a picture.

CHROMIUM names the executable; else it is looked for under the names that distributions use.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_BROWSER = "no Chromium found: install it, or set CHROMIUM to its executable"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--remote-debugging-port=0"),
)


def find_browser() -> str | None:
    """Chromium's executable, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`with Browser(folder) as page:` one empty page in a browser with a profile of its own."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1600, 900)) -> None:
        if (executable := find_browser()) is None:
            raise FileNotFoundError(NO_BROWSER)
        self.size = size
        self._profile = folder / "chromium"
        self._command = [executable, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._calls = 0

    def __enter__(self) -> "Browser":
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # A socket lies in there, whose path may have a hundred letters: fewer than a test's folder.
        self._short = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cache = str(self._profile.parent)
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "TMPDIR": self._short.name, "XDG_CACHE_HOME": cache},
            stdin=subprocess.DEVNULL,
            **quiet,
        )
        try:
            self._socket = websocket.create_connection(
                self._address(), timeout=600, suppress_origin=True
            )
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            width, height = self.size
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **metrics)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (connection := getattr(self, "_socket", None)) is not None:
            connection.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._short.cleanup()

    def _address(self, timeout: float = 120) -> str:
        """The browser's websocket; it writes the port and the path of it into its profile."""
        file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            lines = file.read_text().split() if file.is_file() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.1)
        raise RuntimeError("Chromium did not start")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._calls:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def run(self, script: str, *args: Any) -> Any:
        """The value of a JavaScript function, such as `(a, b) => a + b`; promises are awaited."""
        given = ", ".join(json.dumps(a) for a in args)
        expression = f"({script})({given})"
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            what = details.get("exception", {}).get("description") or details["text"]
            raise RuntimeError(f"in the page: {what}")
        return answer["result"].get("value")

    def wait_for(self, script: str, *args: Any, timeout: float = 300) -> Any:
        """Ask until the JavaScript function gives something true, and give that."""
        deadline = time.monotonic() + timeout
        while not (value := self.run(script, *args)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{timeout} s went by without: {script}")
            time.sleep(0.2)
        return value

    def capture(self, file: Path) -> Path:
        """Save what the page shows as PNG."""
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(picture))
        return file
