"""A headless Chromium for the tests of the report."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
)
WAIT = 120


def start(profile: Path, downloads: Path) -> Iterator[Any]:
    """Yield a driver; skips where there is no Chromium, chromedriver or selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver here; the report is not tried in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    prefs = {"download.default_directory": str(downloads), "download.prompt_for_download": False}
    options.add_experimental_option("prefs", prefs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def downloaded(folder: Path, name: str) -> Path:
    """The file of that name, once the browser has finished writing it."""
    path = folder / name
    for _ in range(10 * WAIT):
        if path.is_file() and not list(folder.glob("*.crdownload")):
            return path
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear; there is {list(folder.iterdir())}")


def cards(page) -> list[str]:
    """ "given→suggested" of every card, in the order of the page."""
    return page.execute_script(
        "return [...document.querySelectorAll('.card')]"
        ".sort((a, b) => a.offsetTop - b.offsetTop || a.offsetLeft - b.offsetLeft)"
        ".map((c) => c.querySelector('.names').textContent)"
    )


def choose(page, control: str, value: str, event: str = "change") -> None:
    page.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event(arguments[2]))",
        control,
        value,
        event,
    )


def press(page, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(keys).perform()


def text(page, element: str) -> str:
    return page.find_element("id", element).text


def wait_until(page, condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 60).until(lambda _: condition())


def reopen(page, progress: str) -> None:
    """Load the page anew until it says so: the next page may be another process of the browser,
    which hears of what the last one stored a moment later."""

    def says_so():
        page.refresh()
        return text(page, "progress") == progress

    wait_until(page, says_so)


def forget(page) -> None:
    page.execute_script("localStorage.clear()")
    reopen(page, "nothing decided yet")


def save(page) -> dict:
    page.find_element("id", "save").click()
    return json.loads(downloaded(page.downloads, "decisions.json").read_text())


def load(page, path, begins):
    """Load a file of decisions; returns what the page says of it."""
    page.find_element("id", "load").send_keys(str(path))
    wait_until(page, lambda: text(page, "progress").startswith(begins))
    return text(page, "progress")
