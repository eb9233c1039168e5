"""Take docs/steer.png, the page of deploy/steer.py: python docs/steer_picture.py (playwright and Chromium needed)."""

import os
import shutil
import signal
import subprocess
import sys

from playwright.sync_api import sync_playwright

HERE = os.path.dirname(os.path.abspath(__file__))
STEER = [sys.executable, "../deploy/steer.py", "../pretrained/heading.pt", "--port", "0", "--no-browser"]
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OUT = os.path.join(HERE, "steer.png")


def main() -> None:
    page = subprocess.Popen(STEER, cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[0] for line in page.stdout if line.startswith("http"))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            tab = browser.new_page(viewport={"width": 1000, "height": 600})
            tab.goto(f"{address}?fixedDpr=1")
            tab.wait_for_function("window.__viserMutable && __viserMutable.nodeRefFromName['/world/centre']")
            tab.add_style_tag(content=".mantine-Notifications-root {display: none}")  # that there is no graphics card
            for key in "iillll":
                tab.keyboard.press(key)
            tab.wait_for_timeout(7000)
            tab.keyboard.press("Space")
            tab.wait_for_timeout(8000)  # software draws slowly
            tab.screenshot(path=OUT, timeout=120000)
            browser.close()
    finally:
        page.send_signal(signal.SIGINT)
        page.wait()


if __name__ == "__main__":
    main()
