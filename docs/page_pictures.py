"""Take docs/view.png and docs/steer.png, the pages of motions/view.py and deploy/steer.py.

python docs/page_pictures.py              # playwright and Chromium needed; name one of view, steer for that alone
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from typing import Any, List

from playwright.sync_api import Page, sync_playwright

HERE = os.path.dirname(os.path.abspath(__file__))
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PAGES = {"view": ["../motions/view.py"], "steer": ["../deploy/steer.py", "../pretrained/heading.pt"]}
MOMENT = "3.2"  # of view.png [s]
WALKS = 7000  # steer.png is taken after so long [ms]
TURNS = 1800  # and so much later, on a curve [ms]


def pose(tab: Page, name: str) -> None:
    """Bring the page to where its picture is taken, and let time stand still."""
    if name == "steer":
        for key in "iill":
            tab.keyboard.press(key)
        tab.wait_for_timeout(WALKS)
        for key in "jjjj":
            tab.keyboard.press(key)
        tab.wait_for_timeout(TURNS)
    tab.keyboard.press("Space")
    tab.get_by_role("button", name="Play").wait_for()
    if name == "view":
        tab.locator("input[type=text]").first.click()
        tab.keyboard.type(MOMENT)
        tab.keyboard.press("Enter")


def settled(tab: Page) -> bytes:
    """A picture of the tab (PNG), once it has not changed for two seconds: software draws slowly, and fades in."""
    before, now = b"", tab.screenshot(timeout=120_000)
    while now != before:
        tab.wait_for_timeout(2000)
        before, now = now, tab.screenshot(timeout=120_000)
    return now


def take(browser: Any, name: str) -> None:
    """Write the picture of one page."""
    command = [sys.executable, *PAGES[name], "--port", "0", "--no-browser"]
    page = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for found in map(re.compile(r"http\S+").search, page.stdout) if found)
        tab = browser.new_page(viewport={"width": 1100, "height": 660})
        tab.set_default_timeout(120_000)  # [ms]
        tab.goto(f"{address}?fixedDpr=1")  # viser would lower the resolution
        tab.wait_for_function("window.__viserMutable && __viserMutable.nodeRefFromName['/world/centre']")
        tab.get_by_role("button", name="Pause").wait_for()
        tab.wait_for_timeout(3000)
        pose(tab, name)
        picture = settled(tab)
        with open(os.path.join(HERE, f"{name}.png"), "wb") as file:
            file.write(picture)
        tab.close()
    finally:
        page.send_signal(signal.SIGINT)
        page.wait()


def main(names: List[str]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name in names or PAGES:
            take(browser, name)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
