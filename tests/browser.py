"""A page in headless Chromium, through Playwright."""

import shutil
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium():
    """A page of Playwright, what its console and scripts said, and what it asked for, data and files excepted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.on("request", lambda request: _note(requests, request.url))
        yield page, complaints, requests
        browser.close()


def _note(requests, url):
    if not url.startswith(("data:", "file:")):
        requests.append(url)


def visit(page, file, *, width=1000, dark=False):
    """Open a file as a window of this width shows it."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.goto(file.resolve().as_uri())
