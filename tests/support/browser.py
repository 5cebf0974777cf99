"""Debian's Chromium, headless, driven over the DevTools protocol's pipe: no driver, no websocket.

``--remote-debugging-pipe`` speaks JSON messages that end in a zero byte on the browser's
descriptors 3 (in) and 4 (out). A :class:`Page` keeps what its console said and what it asked the
network for, from before its first byte on.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

Json = dict[str, Any]

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers often have a small one
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
)
# The pipe's two ends have to become 3 and 4; both are moved out of the way first.
TRAMPOLINE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for place, one in zip((3, 4), ends):
    os.dup2(one, place, inheritable=True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str | None:
    """The browser's command, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser process with a profile of its own.

    Raises:
        RuntimeError: it went away, or answered a call with an error.
        TimeoutError: it did not answer in time.
    """

    def __init__(self, command: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        options = [*OPTIONS, f"--user-data-dir={self._profile.name}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium's own sandbox refuses to run as root
        self._log = Path(self._profile.name) / "browser.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", TRAMPOLINE, str(to_read), str(to_write), command, *options],
                pass_fds=(to_read, to_write),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, Json] = {}
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def page(self, width: int = 1280, height: int = 900, *, phone: bool = False) -> Page:
        """A new, empty page of this size in CSS pixels."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        made = Page(self, str(session["sessionId"]))
        self._pages[made.session] = made
        for domain in ("Page", "Runtime", "Log", "Network"):
            made.call(f"{domain}.enable")
        made.resize(width, height, phone=phone)
        return made

    def call(
        self, method: str, values: Json | None = None, session: str | None = None, wait: float = 90
    ) -> Json:
        """Call a method of the protocol and wait for its result."""
        self._number += 1
        number = self._number
        message: Json = {"id": number, "method": method, "params": values or {}}
        if session is not None:
            message["sessionId"] = session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._to, left) :]
        deadline = time.monotonic() + wait
        while number not in self._answers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{method}: no answer in {wait:g} s")
            self.pump(0.2)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def pump(self, wait: float) -> None:
        """Take in what the browser has to say, waiting at most so many seconds for it."""
        if not select.select([self._from], [], [], wait)[0]:
            return
        read = os.read(self._from, 1 << 20)
        if not read:
            raise RuntimeError(f"Chromium went away:\n{self._log.read_text(errors='replace')}")
        *messages, self._buffer = (self._buffer + read).split(b"\0")
        for one in map(json.loads, messages):
            if "id" in one:
                self._answers[one["id"]] = one
            elif one.get("sessionId") in self._pages:
                self._pages[one["sessionId"]].hear(one["method"], one["params"])


class Page:
    """One page: where it is, what it shows, what went wrong on it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def call(self, method: str, **values: object) -> Json:
        return self.browser.call(method, values, self.session)

    def hear(self, method: str, said: Json) -> None:
        """An event of this page."""
        if method == "Runtime.exceptionThrown":
            detail = said["exceptionDetails"]
            thrown = detail.get("exception", {}).get("description", "")
            self.errors.append(f"{detail['text']} {thrown}".strip())
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            words = (str(a.get("value", a.get("description", ""))) for a in said["args"])
            self.errors.append(" ".join(words))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            entry = said["entry"]
            self.errors.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def resize(self, width: int, height: int, *, phone: bool = False, scale: float = 1.0) -> None:
        """Give the page a window of this size in CSS pixels; a phone obeys the viewport's tag."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    def open(self, url: str, wait: float = 90) -> None:
        """Go there, and wait until everything that the page itself names is loaded."""
        self._loaded = False
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self.until(lambda: self._loaded, f"{url} is loaded", wait)

    def until(self, true: Callable[[], object], what: str, wait: float = 90) -> None:
        """Wait for something to become true of the page."""
        deadline = time.monotonic() + wait
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {wait:g} s: {what}; the page shows:\n{self.text}")
            self.browser.pump(0.2)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """What a reader sees, as text."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def shows(self, *texts: str, wait: float = 90) -> str:
        """Wait until all these are on the page; the text it then has."""
        missing: list[str] = []

        def there() -> bool:
            text = self.text
            missing[:] = [one for one in texts if one not in text]
            return not missing

        self.until(there, f"all of {texts}", wait)
        return self.text

    def click(self, selector: str, text: str = "", wait: float = 90) -> None:
        """Click the first element that matches and has exactly this text, once it is there."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find(e => "
            f"!{json.dumps(text)} || e.innerText.trim() === {json.dumps(text)})"
        )
        self.until(lambda: self.run(f"!!{find}"), f"{selector} {text!r} is there", wait)
        at = self.run(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1
            )

    def settle(self, seconds: float = 1.0) -> None:
        """Let animations end and late requests come."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.browser.pump(min(left, 0.2))

    def screenshot(self, out: Path, *, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(shot["data"]))
        return out

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])
