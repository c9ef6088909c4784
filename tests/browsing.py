"""Debian's Chromium without a window and without a network."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager

import pytest


_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def chromium():
    """Yield a driver of Chromium; skip the test where one of the two is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("chromedriver is not installed")
    options = webdriver.ChromeOptions()
    for switch in _SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as found:
        found.command_executor.client_config.timeout = 300
        found.set_page_load_timeout(240)
        found.set_script_timeout(240)  # drawing in software can take so long
        yield found


def wait_for(browser, script, seconds=60.0):
    """Wait until a script returns something true; return it."""
    end = time.monotonic() + seconds
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < end, script
        time.sleep(0.1)
    return found


def sized(browser, width, height=1000):
    """Give the page a width and a height in pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
