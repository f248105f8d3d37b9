"""A headless Chromium, driven through its own debugging pipe: keys, clicks and pictures as a person has them.

Nothing but the browser is needed. What it cannot do within `_PATIENCE` seconds fails the test with what was on the page.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

_PATIENCE = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Backspace": 8, "Enter": 13, " ": 32}


def find_browser() -> str:
    """The program; the test is skipped where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian: apt-get install chromium)")
    return found


class _Left(AssertionError):
    """The page that was asked is gone, another one has come or is coming."""


class Browser:
    """One browser with one page. `profile` is what it remembers: a second browser on the same folder goes on with it."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        down, up = os.pipe(), os.pipe()  # what we say, what it says

        def wire() -> None:  # Chromium reads from 3 and writes to 4
            os.setsid()
            ours = os.dup(down[0]), os.dup(up[1])
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        self._process = subprocess.Popen(
            [
                find_browser(),
                "--headless=new",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--disable-sync",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--autoplay-policy=no-user-gesture-required",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            preexec_fn=wire,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self._to, self._from = down[1], up[0]
        self._number, self._rest = 0, b""
        self.errors: list[str] = []
        """What the page threw or wrote to its console as an error."""
        self._session: str | None = None
        targets = self._until(
            lambda: [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        )
        attached = self._call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            try:
                self._session = None
                self._call("Browser.close")
                self._process.wait(10)
            except (OSError, AssertionError, subprocess.TimeoutExpired):
                self.crash()
        for pipe in (self._to, self._from):
            os.close(pipe)

    def crash(self) -> None:
        """As when the power fails: every process of it is killed."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def reload(self) -> None:
        self.run("window.before = true")
        self._call("Page.reload")
        self.wait("!window.before && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """What an expression of the page comes to."""
        reply = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, f"{script}: {reply['exceptionDetails']}"
        return reply["result"].get("value")

    def wait(self, script: str) -> Any:
        """The expression's value as soon as it is true."""
        return self._until(lambda: self.run(script), what=script)

    def press(self, key: str) -> None:
        code = _KEYS.get(key, ord(key[0].upper()))
        shared = {"key": key, "windowsVirtualKeyCode": code}
        if len(key) == 1 or key == "Enter":
            shared["text"] = "\r" if key == "Enter" else key
        self._call("Input.dispatchKeyEvent", type="keyDown", **shared)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """The middle of an element, with the mouse."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({place})")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def download_to(self, folder: Path) -> None:
        """Where the page's downloads go."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _until(self, ask: Any, *, what: str = "") -> Any:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                found = ask()
            except _Left:  # the page was just exchanged for another: ask that one
                found = None
            if found:
                return found
            if time.monotonic() > end:
                shown = self.run("document.body.innerText") if self._session else ""
                raise AssertionError(
                    f"not within {_PATIENCE:g} s: {what}; the page shows {shown!r}, {self.errors}"
                )
            time.sleep(0.02)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read(method)
            if reply.get("id") == self._number:
                error = reply.get("error", {}).get("message", "")
                if "navigated or closed" in error or "Cannot find context" in error:
                    raise _Left(f"{method}: {error}")
                assert not error, f"{method}: {error}"
                result: dict[str, Any] = reply["result"]
                return result
            if reply.get("method") == "Runtime.exceptionThrown":
                self.errors.append(
                    str(reply["params"]["exceptionDetails"].get("exception", {}).get("description"))
                )
            elif reply.get("method") == "Log.entryAdded" and reply["params"]["entry"]["level"] == "error":
                self.errors.append(
                    f"{reply['params']['entry']['text']} {reply['params']['entry'].get('url', '')}"
                )

    def _read(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE)
            assert ready, f"the browser does not answer {method}"
            more = os.read(self._from, 1 << 20)
            assert more, f"the browser is gone, at {method}"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found
