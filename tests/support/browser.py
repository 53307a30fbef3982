"""A headless Chromium that tests of pages drive, with nothing but the standard library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """A headless Chromium through chromedriver's WebDriver protocol, with nothing but the standard library."""

    def __init__(self, port: int, arguments: list[str]) -> None:
        self.root = f"http://127.0.0.1:{port}"
        options = {"args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        self.session = (
            f"/session/{self.call('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        )

    def call(self, method: str, path: str, content: Any = None) -> Any:
        data = json.dumps(content or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + self.session + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=40) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path, *, at: str = "", scripts: bool = True, waits: bool = True) -> None:
        """Load a page, scrolled to an anchor. `waits`: until its script is done. `scripts=False`: no JavaScript."""
        self.command("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.call("POST", "/url", {"url": "about:blank"})
        self.call("POST", "/url", {"url": page.as_uri() + at})
        for _ in range(200 if scripts and waits else 0):
            if self.run("return document.documentElement.dataset.ready === '1'"):
                return
            time.sleep(0.05)
        if scripts and waits:
            pytest.fail(f"the page's script did not come to its end: {self.errors()}")

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def comes(self, script: str, wanted: Any = True, *, seconds: float = 10) -> bool:
        """Wait until the script returns what is wanted: without JavaScript nothing says when a page is ready."""
        until = time.monotonic() + seconds
        while (found := self.run(script)) != wanted:
            if time.monotonic() > until:
                pytest.fail(f"{script!r} still returns {found!r}, not {wanted!r}")
            time.sleep(0.05)
        return True

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        """A command of Chromium's own protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    @contextlib.contextmanager
    def screen(self, width: int, height: int = 844, *, mobile: bool = False) -> Iterator[None]:
        """A screen of another size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self.command("Emulation.setDeviceMetricsOverride", metrics)
        yield
        self.command("Emulation.clearDeviceMetricsOverride", {})

    @contextlib.contextmanager
    def media(self, kind: str = "", *, scheme: str = "light") -> Iterator[None]:
        """`print` or the screen, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", {"media": kind, "features": features})
        yield
        self.command("Emulation.setEmulatedMedia", {"media": "", "features": [{"name": "", "value": ""}]})

    def picture(self, path: Path) -> None:
        """What is on the screen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def pdf(self) -> bytes:
        """The page as it is printed, with the paper that its style asks for."""
        return base64.b64decode(self.command("Page.printToPDF", {"preferCSSPageSize": True})["data"])

    def errors(self) -> list[str]:
        log = self.call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile in this directory. The test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver on PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking window-size=1280,1000"
    arguments = [f"--{option}" for option in (*options.split(), f"user-data-dir={profile}")]
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.05)
        found = Browser(port, arguments)
        yield found
        found.call("DELETE", "")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
