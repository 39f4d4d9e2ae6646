"""A browser without a window for tests of pages, that writes down what a page asks of whom.

with open_browser(tmp_path) as driver:  # skips where there is no chromium
    driver.get("http://127.0.0.1:8000/")
    wait(driver, "#answer")
    assert all(is_local(url) for url in requests(driver))
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

LOCAL = {"127.0.0.1", "localhost"}
OWN = {"data", "blob", "about", "chrome", "chrome-error", "devtools"}
"""Schemes of what a browser has in itself."""


@contextmanager
def open_browser(folder: Path, *arguments: str, size: tuple[int, int] = (1280, 1400)) -> Iterator:
    """A selenium driver of a headless chromium that finds no host but 127.0.0.1; its profile lies in `folder`.

    At the end, the log of chromium's whole network (of pages, frames and workers) is read: AssertionError where a
    page asked for anything outside. `arguments` are chromium's own, such as --use-fake-device-for-media-stream.
    """
    pytest.importorskip("selenium", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    log = folder / "network.json"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # as root it does not start otherwise
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-features=OptimizationHints,MediaRouter",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--log-net-log={log}",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        driver.get("about:blank")  # instead of the browser's own page for a new tab
        requests(driver)
        yield driver
    finally:
        driver.quit()
    outside = sorted({url for url in _of_pages(log) if not is_local(url)})
    assert not outside, f"asked for {', '.join(outside)}"


def requests(driver) -> list[str]:
    """The address of everything that the page asked for since this was last called, in order."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = []
    for event in events:
        if event["method"] == "Network.requestWillBeSent":
            urls.append(event["params"]["request"]["url"])
        elif event["method"] in ("Network.webSocketCreated", "Network.webTransportCreated"):
            urls.append(event["params"]["url"])
    return urls


def complaints(driver) -> list[str]:
    """What the console of the page has complained of since this was last called."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in OWN or parts.hostname in LOCAL


def wait(driver, selector: str, text: str = "", seconds: float = 120):
    """The first element that `selector` names and that shows `text`, once there is one."""
    return _wait(driver, selector, text, seconds)[0]


def text_of(driver, selector: str, text: str = "", seconds: float = 120) -> str:
    """All that this element shows, read at once: a page may put another in its place meanwhile."""
    return _wait(driver, selector, text, seconds)[1]


def _wait(driver, selector, text, seconds):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(driver):
        found = ((e, e.text) for e in driver.find_elements("css selector", selector) if e.is_displayed())
        return next((pair for pair in found if text in pair[1]), None)

    waiting = WebDriverWait(driver, seconds, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(shown, f"nothing in {selector} shows {text!r}")


WEB = Path(__file__).parents[1] / "web"
UNREACHABLE = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET_TIMEOUT")


@contextmanager
def npm_lock() -> Iterator[None]:
    """web/node_modules is shared by the processes of the tests."""
    with open(Path(tempfile.gettempdir(), f"mien-web-{os.getuid()}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def barriers(driver) -> list[str]:
    """What axe-core finds on the page that keeps people from using it: its serious and its critical violations."""
    axe = WEB / "node_modules" / "axe-core" / "axe.min.js"
    with npm_lock():
        if not axe.is_file():
            npm = shutil.which("npm") or pytest.skip("no npm on this machine")
            ran = subprocess.run([npm, "ci", "--ignore-scripts"], cwd=WEB, capture_output=True, text=True)
            if ran.returncode and UNREACHABLE.search(ran.stderr):
                pytest.skip("npm's registry cannot be reached")
            assert ran.returncode == 0, ran.stderr
    if not driver.execute_script("return 'axe' in window"):
        driver.execute_script(axe.read_text(encoding="utf-8"))
    return driver.execute_async_script(
        """const done = arguments[0];
        axe.run(document, {resultTypes: ['violations'], preload: false}).then(({violations}) => done(violations
            .filter(({impact}) => impact === 'serious' || impact === 'critical')
            .flatMap(({id, nodes}) => nodes.map(({html, any}) => `${id}: ${html.slice(0, 200)} ${any[0]?.message}`))
        ), (error) => done([String(error)]));"""
    )


def _of_pages(log: Path) -> list[str]:
    """The addresses in chromium's log of its network that were asked for by pages, not by the browser on its own."""
    content = json.loads(log.read_text())
    start = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event.get("params", {}) for event in content["events"] if event["type"] == start]
    return [params["url"] for params in asked if params.get("initiator", "not an origin") != "not an origin"]


WATCH = """
window.toasts = [];
new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(node => {
    const elements = node.querySelectorAll ? [node, ...node.querySelectorAll('*')] : [];
    window.toasts.push(...elements.filter(element => element.matches('[data-testid=toast-body]')));
}))).observe(document, {childList: true, subtree: true});
"""
"""JavaScript for a gradio page, to be run before its own: `toasts` are then all elements that popped up on it."""

CONTRASTS = """
const brush = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const paint = colour => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return {rgb: [r, g, b], a: a / 255};
};
const over = (top, below) => ({
    rgb: top.rgb.map((c, i) => c * top.a + below.rgb[i] * (1 - top.a)), a: top.a + below.a * (1 - top.a)});
const ground = element => {
    let seen = {rgb: [0, 0, 0], a: 0};
    for (let e = element; e; e = e.parentElement) {
        const under = paint(getComputedStyle(e).backgroundColor), a = seen.a + under.a * (1 - seen.a);
        if (a) seen = {a, rgb: seen.rgb.map((c, i) => (c * seen.a + under.rgb[i] * under.a * (1 - seen.a)) / a)};
        if (seen.a > .999) break;
    }
    return over(seen, paint(matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#fff'));
};
const opacity = element => element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
const light = ({rgb}) => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const found = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (nodes.nextNode()) {
    const text = nodes.currentNode.data.trim(), element = nodes.currentNode.parentElement;
    if (!text || element.closest('script, style, noscript')) continue;
    if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true}) || !element.offsetParent) continue;
    const below = ground(element), ink = paint(getComputedStyle(element).color);
    ink.a *= opacity(element);
    const [a, b] = [light(over(ink, below)), light(below)];
    found.push([text.slice(0, 60), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
}
return found;
"""
"""JavaScript: every text that a page shows, and the contrast of its ink to its ground, 1 to 21 (WCAG 2.2, 1.4.3)."""
