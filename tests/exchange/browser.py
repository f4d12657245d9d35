"""A headless Chromium that tests drive through the DevTools protocol, over pipes and without a network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATIENCE_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    *("--no-first-run", "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, whatever asks for it
)


def chromium() -> str:
    """Path of a Chromium; skips where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no {NAMES[0]}: apt-get install chromium")
    return found


class Browser:
    """One page of a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._answers, 1 << 20)
        data, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(data)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.errors.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise, as JSON."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Return the value of an expression once it is true."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def open(self, page: Path, width: int = 1280, height: int = 800, *, touch: bool = False) -> float:
        """Open a file in a window of CSS pixels; returns the seconds until its first figures were drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.errors.clear()
        self.requests.clear()
        began = time.monotonic()
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("window.omniges?.state.drawn !== undefined")
        return time.monotonic() - began

    def settled(self) -> None:
        """Wait until the moment that was asked for is drawn."""
        self.wait_for(
            "!omniges.player.stale && omniges.state.time === omniges.state.drawn && !omniges.player.audio.seeking"
        )

    def key(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            held = text if kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0, **held)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at one place, and release it at another."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in CSS pixels."""
        box = f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()"
        found = self.evaluate(box)
        return found["left"], found["top"], found["width"], found["height"]

    def screenshot(self, path: Path) -> Path:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path

    def pixels(self) -> np.ndarray[Any, Any]:
        """Pixels (height, width, 4) of the figures."""
        script = """(() => { const c = document.getElementById("figures"), g = c.getContext("webgl2");
            const p = new Uint8Array(4 * c.width * c.height);
            g.readPixels(0, 0, c.width, c.height, g.RGBA, g.UNSIGNED_BYTE, p);
            let t = ""; for (let k = 0; k < p.length; k += 8192) t += String.fromCharCode(...p.subarray(k, k + 8192));
            return [c.width, c.height, btoa(t)]; })()"""
        width, height, text = self.evaluate(script)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[::-1]


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile; it ends with the block."""
    words = [chromium(), *FLAGS, f"--user-data-dir={profile}"]
    commands_out, commands = os.pipe()
    answers, answers_in = os.pipe()

    def pipes() -> None:  # the browser reads commands from 3 and writes answers to 4
        for target, source in {3: os.dup(commands_out), 4: os.dup(answers_in)}.items():
            os.dup2(source, target)

    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=pipes, pass_fds=(3, 4))  # noqa: PLW1509
    os.close(commands_out)
    os.close(answers_in)
    try:
        yield Browser(commands, answers)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)
