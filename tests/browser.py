"""Debian's Chromium, spoken to over the pipe of its DevTools protocol: no driver, no package, no port.

https://chromedevtools.github.io/devtools-protocol/ names the methods; messages are JSON, each ended by a NUL byte.

python tests/browser.py REPORT.html PICTURE.png [WIDTH [HEIGHT]]     shows the top of a page, as docs/images has it
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "chromium"
DEADLINE_S = 120.0
# The pages are our own, and a container or root has no sandbox to give. Everything that calls home is off.
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
AS_FDS_3_AND_4 = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >&2'
NAMES = ("Page", "Network", "Log", "Runtime", "DOM", "Accessibility")


class Browser:
    """One page. requests: every URL that was asked for; complaints: what stands in its console and log."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._in, self._out, self._number, self._session = process.stdin, process.stdout, 0, ""
        self._unread = b""
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for name in NAMES:
            self.call(f"{name}.enable")

    def open(self, url: str) -> None:
        """Until the page and all that it loads is there."""
        self.requests, self.complaints, self._events = [], [], []
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._take(self._read())
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def look(self, width_px: int, scheme: str = "light", media: str = "", height_px: int = 900) -> None:
        """Show the page in that width, dark or light; media: print, or nothing."""
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": width_px < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def picture(self, path: Path) -> None:
        """What `look` made visible, as PNG."""
        told = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(told["data"]))

    def printed(self) -> bytes:
        """All of the page as PDF, on A4."""
        told = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(told["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._in.write(json.dumps(message).encode() + b"\0")
        self._in.flush()
        while (answer := self._read()).get("id") != self._number:
            self._take(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _take(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        told = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(told["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium said nothing for {DEADLINE_S:.0f} s"
            more = os.read(self._out.fileno(), 1 << 16)
            assert more, "Chromium ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def program() -> str | None:
    """Where it is; None where it is not installed."""
    return shutil.which(PROGRAM)


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """With a profile of its own, which nothing of it outlives. folder: for that profile and the browser's own words."""
    found = program()
    assert found, f"there is no {PROGRAM}; on Debian: sudo apt-get install {PROGRAM}"
    command = ["sh", "-c", AS_FDS_3_AND_4, found, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "TZ": "UTC"}
    with (
        (folder / "said.txt").open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, bufsize=0, env=environment
        ) as process,
    ):
        try:
            browser = Browser(process)
            yield browser
            browser._session = ""
            browser.call("Browser.close")
        finally:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def main(page: str, picture: str, width_px: str = "1280", height_px: str = "1200") -> None:
    with tempfile.TemporaryDirectory() as folder, running_browser(Path(folder)) as browser:
        browser.look(int(width_px), height_px=int(height_px))
        browser.open(Path(page).resolve().as_uri())
        browser.picture(Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
