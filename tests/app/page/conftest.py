"""The page in a real browser: a server in this process, Chromium beside it, and an eye on whom it speaks to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from app.server.limits import Limits
from app.server.service import Service, opened
from tests.app.server.conftest import listened

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It looks up hosts of its maker by itself, which is not what is tested.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 60_000  # milliseconds that anything on the page may take; most take less than one second
READY = "body.ldm-ready.ldm-restored"


@dataclass(frozen=True)
class Site:
    """A server that is listened to."""

    service: Service
    url: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium of this machine; playwright's own is not fetched. It ends with its module: while it is there, no
    other test of the process can run a loop of its own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is here: none of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield one
        one.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with opened(folder / "server", Limits()) as service, listened(service) as http:
        yield Site(service, str(http.base_url).rstrip("/"))


@pytest.fixture(scope="module")
def used(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    """A browser that keeps the page's scripts from one test to the next: to read them anew takes most of a test."""
    one = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=site.url)
    one.set_default_timeout(PATIENCE)
    yield one
    one.close()


@pytest.fixture
def context(used: BrowserContext, site: Site) -> Iterator[BrowserContext]:
    """A browser that remembers nothing; whatever it asks for is asked of the server, and no script fails."""
    elsewhere, failed, dialogs = list[str](), list[str](), list[str]()
    heard = {
        "request": lambda asked: elsewhere.append(asked.url) if _foreign(asked.url, site.url) else None,
        "weberror": lambda error: failed.append(str(error.error)),
        "dialog": lambda dialog: (dialogs.append(dialog.message), dialog.accept()),
    }
    for event, listener in heard.items():
        used.on(event, listener)  # type: ignore[call-overload]
    yield used
    for event, listener in heard.items():
        used.remove_listener(event, listener)
    used.clear_cookies()
    for page in used.pages:
        if page.url.startswith(site.url):
            page.evaluate("localStorage.clear()")
        page.close()
    assert elsewhere == []
    assert failed == []
    assert all(said.endswith("?") for said in dialogs), dialogs  # those that ask are ours


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return opened_page(context)


def opened_page(context: BrowserContext, path: str = "/") -> Page:
    one = context.new_page()
    one.goto(path)
    one.wait_for_selector(READY)
    return one


def _foreign(url: str, own: str) -> bool:
    return not url.startswith((f"{own}/", "data:", f"blob:{own}/"))


def shows(page: Page, section: str) -> bool:
    return bool(page.locator(f"#ldm-{section}").evaluate("one => getComputedStyle(one).display !== 'none'"))


def set_form(page: Page, **values: object) -> None:
    """Fields of the form by their names."""
    for name, value in values.items():
        kind = "textarea" if name in ("prompt", "negative") else "input"
        if name == "negative":
            page.locator(f"#ldm-f-{name} :is(textarea, input)").fill(str(value))
            continue
        field = page.locator(f"#ldm-f-{name} {kind}")
        if name in ("model", "solver", "spacing"):
            field.click()
            page.get_by_role("option", name=str(value), exact=True).click()
        else:
            field.fill(str(value))


def go(page: Page, section: str) -> None:
    page.click(f"#ldm-tab-{section}")
    page.wait_for_selector(f"body[data-section={section}]")


def made(page: Page) -> None:
    """Ctrl-Enter, and what comes of it is there."""
    job = "((JSON.parse(sessionStorage.getItem('ldm-runs')) || [{}])[0]?.id ?? null)"
    before = page.evaluate(job)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(f"before => {job} !== before", arg=before)
    page.wait_for_selector("body:not(.ldm-busy) #ldm-runs .ldm-done")
