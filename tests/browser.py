"""A browser without a window, driven over pipes by the DevTools protocol: only what tests need.

    https://chromedevtools.github.io/devtools-protocol
"""
import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
         "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
         "--force-device-scale-factor=1", "--remote-debugging-pipe", "about:blank")
# The browser reads commands from descriptor 3 and answers on 4: the ends of the pipes go there.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
# What reaches over the right edge of the screen, but for what lies in a box that scrolls. (A phone
# zooms out until a page that is too wide fits, and `innerWidth` grows; `clientWidth` does not.)
OVERFLOW = """
(() => {
  const edge = document.documentElement.clientWidth;
  const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX)
    || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > edge + 1 && !scrolls(e));
  const names = wide.map(e => e.tagName + "." + e.className);
  return document.documentElement.scrollWidth > edge ? ["document", ...names] : names;
})()"""


def find_browser() -> str:  # its path, or None
    "Find a browser of the Chromium family."
    return next(filter(None, map(shutil.which, NAMES)), None)


def high_pipe() -> tuple:  # of two descriptors above 9, which 3 and 4 cannot overwrite
    "Make a pipe."
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved


class Browser:
    "One browser with one page."

    def __init__(self, program, profile, timeout=60):
        theirs_in, self.out = high_pipe()
        self.inbox, theirs_out = high_pipe()
        self.timeout, self.number, self.rest, self.events = timeout, 0, b"", []
        command = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), program]
        self.process = subprocess.Popen(
            [*command, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (theirs_in, theirs_out):
            os.close(end)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def read(self) -> dict:
        "Wait for the next message."
        deadline = time.monotonic() + self.timeout
        while b"\0" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.inbox], [], [], left)[0]:
                raise TimeoutError("Expected an answer of the browser, but none came.")
            part = os.read(self.inbox, 1 << 16)
            if not part:
                raise ConnectionError("Expected an answer of the browser, but it has ended.")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters) -> dict:
        "Send a command and wait for its result; keep the events that come before it."
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.out, json.dumps(command).encode() + b"\0")
        while True:
            message = self.read()
            if message.get("id") == self.number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def of_kind(self, method) -> list:
        "Select events of the page."
        return [event["params"] for event in self.events if event.get("method") == method]

    def show(self, address, width=1200, height=900, dark=False):
        "Open a page on a screen of some size, and wait until it is loaded."
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not self.of_kind("Page.loadEventFired"):
            self.events.append(self.read())

    def ask(self, expression):
        "Evaluate an expression in the page."
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list:
        "List the errors and warnings of the page's console."
        found = [entry["entry"]["text"] for entry in self.of_kind("Log.entryAdded")]
        for called in self.of_kind("Runtime.consoleAPICalled"):
            if called["type"] in ("error", "warning", "assert"):
                found.append(str(called["args"]))
        return found + [str(thrown) for thrown in self.of_kind("Runtime.exceptionThrown")]

    def requests(self) -> list:
        "List the addresses that were asked for, but for those that hold their content."
        asked = [sent["request"]["url"] for sent in self.of_kind("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith("data:")]

    def overflow(self) -> list:
        "List what reaches over the edge of the screen."
        return self.ask(OVERFLOW)

    def clip(self, x, y, width, height) -> bytes:  # of a PNG
        "Take a picture of a part of the page."
        part = {
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "scale": 1,
        }
        found = self.call("Page.captureScreenshot", clip=part, captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def paper(self, path):
        "Print the page into a PDF."
        found = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def close(self):
        "End the browser."
        self.session = None
        with contextlib.suppress(OSError, AssertionError, TimeoutError):
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (self.out, self.inbox):
            os.close(end)
