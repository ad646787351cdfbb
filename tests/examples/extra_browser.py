"""The upload page in a real Chromium, driven over WebDriver's own HTTP protocol (W3C): chosen, uploaded, followed, downloaded.

It needs Debian's chromium and chromium-driver, so pytest does not collect it by itself: `.ci/browser` does.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.redis_server import free_loopback_port
from tests.examples.conftest import PATIENCE_SECONDS, Web

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, 12.1
# A page that watches itself misses nothing, however slowly it is asked.
WATCH = """
    window.shown = [];
    const text = name => document.getElementById(name).textContent;
    const look = () => window.shown.push([text("state"), text("percent"), document.getElementById("progress").ariaLabel]);
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
"""
CHROMIUM_ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800")
SCREENSHOTS = os.environ.get("BROWSER_SCREENSHOTS")


class Browser:
    """One session of a Chromium, in the words of the WebDriver protocol."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        options = {"args": list(CHROMIUM_ARGUMENTS)}
        logging = {"browser": "ALL", "performance": "ALL"}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logging}}
        self._session = f"/session/{self._ask('POST', '/session', {'capabilities': wanted})['sessionId']}"

    def open(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        return str(self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def label(self, selector: str) -> str:
        """The name by which assistive technology knows the element."""
        return str(self.ask("GET", f"/element/{self.element(selector)}/computedlabel"))

    def text(self, selector: str) -> str:
        return str(self.ask("GET", f"/element/{self.element(selector)}/text"))

    def upload(self, path: Path) -> None:
        self.ask("POST", f"/element/{self.element('#file')}/value", {"text": str(path)})
        self.ask("POST", f"/element/{self.element('#send')}/click", {})

    def throttle(self, upload_bytes_per_second: int) -> None:
        conditions = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": upload_bytes_per_second}
        self.ask("POST", "/goog/cdp/execute", {"cmd": "Network.enable", "params": {}})
        self.ask("POST", "/goog/cdp/execute", {"cmd": "Network.emulateNetworkConditions", "params": conditions})

    def complaints(self) -> list[str]:
        """Errors in the page's console."""
        said = self.ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in said if entry["level"] == "SEVERE"]

    def picture(self, name: str) -> None:
        if SCREENSHOTS:
            png = base64.b64decode(self.ask("GET", "/screenshot"))
            Path(SCREENSHOTS, f"{name}.png").write_bytes(png)

    def wait_for(self, wanted: str) -> None:
        """Until the state that is shown begins so."""
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while not (shown := self.text("#state")).startswith(wanted):
            assert time.monotonic() < waiting_until, shown

    def watch(self) -> None:
        """From now on the page keeps what it shows."""
        self.run(WATCH)

    def progress_shown(self, state: str) -> set[tuple[str, str]]:
        """The percentages that were shown while the state began so, each with the name of the progress bar."""
        shown = self.run("return window.shown")
        return {(percent, label) for said, percent, label in shown if said.startswith(state) and percent}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask(method, self._session + path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answered = self._http.request(method, path, json=body)
        assert answered.status_code == 200, answered.text
        return answered.json()["value"]

    def quit(self) -> None:
        self.ask("DELETE", "")


@pytest.fixture
def browser() -> Iterator[Browser]:
    port = free_loopback_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, trust_env=False) as http:
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while not _ready(http):
            assert time.monotonic() < waiting_until
            time.sleep(0.05)
        session = Browser(http)
        yield session
        session.quit()
    driver.terminate()
    driver.wait(PATIENCE_SECONDS)


def _ready(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return bool(http.get("/status").json()["value"]["ready"])
    return False


@pytest.fixture
def page(running: Callable[[str], Web], browser: Browser) -> Web:
    web = running("fastapi")
    browser.open(str(web.http.base_url))
    return web


def test_a_person_uploads_a_file_watches_it_and_gets_the_result(page: Web, browser: Browser, tmp_path: Path) -> None:
    chosen = tmp_path / "quarterly report ü.csv"
    chosen.write_bytes(b"a,b,c\n" * 300_000)
    browser.picture("1-empty")
    browser.throttle(700_000)
    browser.watch()
    browser.upload(chosen)
    browser.picture("2-uploading")
    browser.wait_for("Done")
    browser.picture("3-done")
    uploading = browser.progress_shown("Uploading")
    assert len(uploading) >= 2
    assert {label for _, label in uploading} == {"Upload"}
    assert browser.text("#link") == "Download quarterly report ü.csv.gz"
    assert browser.text("#sizes").startswith("1.8 MB became ")
    fetched = page.http.get(urllib.parse.urlsplit(browser.run("return document.getElementById('link').href")).path)
    assert gzip.decompress(fetched.content) == chosen.read_bytes()
    assert browser.complaints() == []


def test_how_far_the_worker_has_come_is_shown(page: Web, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(60_000_000))
    browser.watch()
    browser.upload(tmp_path / "large.bin")
    browser.wait_for("Done")
    compressing = browser.progress_shown("Compressing")
    assert len(compressing) >= 2
    assert {label for _, label in compressing} == {"Compression"}


def test_what_the_storage_has_not_got_yet_is_said_and_waited_for(
    page: Web, browser: Browser, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "late.txt").write_text("late")
    sandbox.pause_replication()
    try:
        browser.upload(tmp_path / "late.txt")
        browser.wait_for("Waiting for the storage")
        browser.picture("4-waiting")
    finally:
        sandbox.resume_replication()
    browser.wait_for("Done")


def test_an_error_is_said_and_a_second_try_works(
    serve: Callable[[str, dict[str, str]], Web],
    environment: dict[str, str],
    browser: Browser,
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("a")
    with RedisServer() as server:
        web = serve("fastapi", {**environment, "CELERY_RESULT_BACKEND": server.url})
        browser.open(str(web.http.base_url))
        server.kill()
        browser.upload(tmp_path / "a.txt")
        browser.wait_for("The service is not available. Please try again")
        browser.picture("5-error")
        assert browser.run("return document.getElementById('send').disabled") is False
        server.restart()
        browser.run("document.getElementById('send').click()")
        browser.wait_for("Waiting for a worker")


def test_every_control_has_a_name_for_those_who_do_not_see_it(page: Web, browser: Browser) -> None:
    assert [browser.label(f"#{name}") for name in ("file", "send")] == ["File", "Upload"]
    browser.run("document.getElementById('work').hidden = false")
    assert browser.label("#progress") == "Upload"
    assert browser.run("return document.getElementById('state').role || 'status'") == "status"


def test_a_narrow_screen_needs_no_sideways_scrolling(page: Web, browser: Browser) -> None:
    browser.ask("POST", "/goog/cdp/execute", {
        "cmd": "Emulation.setDeviceMetricsOverride",
        "params": {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True},
    })
    browser.open(str(page.http.base_url))
    browser.picture("6-narrow")
    assert browser.run("return document.documentElement.scrollWidth") <= 320
