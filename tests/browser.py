"""A real browser for tests: Chromium or Chrome with its driver, without a window."""
import json
import shutil
import time
from contextlib import contextmanager

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars")
LAPTOP, PHONE = (1280, 800), (390, 844)


def program():
    """Its path; skips the test where there is none."""
    pytest.importorskip("selenium")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not (found and shutil.which("chromedriver")):
        pytest.skip("there is no Chromium with chromedriver: apt-get install chromium-driver")
    return found


@contextmanager
def opened(address, profile, size=LAPTOP):
    """Open a page -> selenium's driver; every address that it asks for is in the log."""
    path = program()
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = path
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        resize(driver, *size)
        driver.get(address)
        yield driver
    finally:
        driver.quit()


def wait(function, seconds=120):
    """Call it until what it returns is true -> that"""
    until = time.perf_counter() + seconds
    while not (found := function()):
        assert time.perf_counter() < until, f"the page has not come so far in {seconds} s"
        time.sleep(0.1)
    return found


def deep(driver, selector, what=""):
    """The elements that a CSS selector finds, in the shadow trees of web components too; or a
    property of each, as it is just now
    """
    return driver.execute_script("""
        const [selector, what] = arguments, found = [];
        const visit = (root) => {
            found.push(...root.querySelectorAll(selector));
            for (const one of root.querySelectorAll("*")) if (one.shadowRoot) visit(one.shadowRoot);
        };
        visit(document);
        return what ? found.map(one => one[what]) : found;""", selector, what)


def click(driver, selector):
    """Click the first element that is found, as soon as there is one that stays"""
    from selenium.common.exceptions import WebDriverException

    def clicked():
        try:
            deep(driver, selector)[0].click()
            return True
        except (IndexError, WebDriverException):
            return False
    wait(clicked)


def complaints(driver, levels=("SEVERE", "WARNING")):
    """What the page wrote to the console at these levels"""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in levels]


def asked(driver):
    """The addresses in a network that the page has asked for"""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    found = {message["params"]["request"]["url"] for message in messages
             if message["method"] == "Network.requestWillBeSent"}
    return {address for address in found if address.startswith("http")}


def whole_page(driver, path):
    """A picture of all of the page, as long as it is"""
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    resize(driver, size["width"], size["height"])
    driver.save_screenshot(str(path))


def resize(driver, width, height):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": int(width), "height": int(height), "deviceScaleFactor": 1, "mobile": width < 600})
