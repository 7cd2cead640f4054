"""The comparison screen in a window, as one person sees it: opened, pressed, read."""

from typing import Any

from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect

from labeling import judgments
from labeling.models import Campaign, Comparison, Judgment
from tests.labeling import make

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LONG = "This answer is long enough to fill more than one screen of a phone. " * 30
OTHER = "One scrolls down to it, since it comes below, and reads it as well. " * 30


def campaign(n: int = 8, **fields) -> Campaign:
    """“Cats”, with `n` pairs whose responses are told apart by their first sentences."""
    cats = make.campaign("cats", **{"min_dwell_ms": 60, "guidelines": "Prefer *cats*.", **fields})
    for number in range(n):
        make.comparison(cats, f"**First** answer {number}.\n\n{LONG}", f"A second one, {number} `code`.\n\n{OTHER}")
    return cats


def log_in(context: BrowserContext, address: str, user) -> None:
    client = Client()
    client.force_login(user)
    context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": address}])


class Screens:
    """Windows of one person. A script error, or anything that the policy refuses, is kept in `errors`."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.contexts: list[BrowserContext] = []
        self.errors: list[str] = []
        self.underway: set[Request] = set()

    def window(self, user, **options) -> Page:
        context = self.browser.new_context(base_url=self.address, **{**DESKTOP, "locale": "en", **options})
        context.set_default_timeout(30_000)
        self.contexts.append(context)
        if user is not None:
            log_in(context, self.address, user)
        return self.page(context)

    def page(self, context: BrowserContext) -> Page:
        page = context.new_page()
        page.on("request", lambda request: self.underway.add(request))
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, lambda request: self.underway.discard(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        return page

    def _note(self, text: str) -> None:
        if (
            not any(known in text for known in ("ERR_INTERNET_DISCONNECTED", "ERR_FAILED"))
            and "status of 4" not in text
        ):  # networks fail, and people log out
            self.errors.append(text)

    def open(self, user, *, is_ready: bool = True, **options) -> Page:
        return self.show(self.window(user, **options), is_ready=is_ready)

    def show(self, page: Page, *, is_ready: bool = True) -> Page:
        """In a window whose requests are intercepted: what is asked right after `route` may slip through."""
        page.goto("/campaigns/cats/label/")
        if is_ready:
            wait_until_ready(page)
        return page

    def close(self) -> None:
        """Lets what is under way end, and nothing new begin: the database is emptied next."""
        for context in self.contexts:
            context.route("**/api/**", lambda route: route.abort())
        for _ in range(400):
            if self.underway and self.contexts[0].pages:
                self.contexts[0].pages[0].wait_for_timeout(20)
        for context in self.contexts:
            context.close()


def wait_until_ready(page: Page) -> None:
    expect(page.locator("#pair")).to_be_visible()
    expect(page.locator("#scale [data-verdict]").first).to_have_attribute("aria-disabled", "false")


def grade(page: Page, name: str) -> Locator:
    """A button of the scale."""
    return page.get_by_role("radiogroup", name="Which response is better?").get_by_role("radio", name=name)


def shown(page: Page) -> list[str]:
    """The first sentence of each response, from left to right."""
    return [text.split(".")[0] for text in page.locator(".label-pane:not([hidden]) .prose").all_inner_texts()]


def press(page: Page, *keys: str) -> list[str]:
    """Presses keys of which the last one ends the comparison, and waits for the next; returns what was shown."""
    before = shown(page)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function(
        "before => document.querySelector('.label-pane .prose').innerText.indexOf(before)", arg=before[0]
    )
    wait_until_ready(page)
    return before


def settle(page: Page, n: int) -> list[Judgment]:
    """Waits until `n` judgments are in force; returns them, oldest first."""
    for _ in range(400):
        rows = list(judgments.in_force().order_by("id"))
        if len(rows) == n:
            return rows
        page.wait_for_timeout(50)
    raise AssertionError(f"{len(rows)} judgments, not {n}")


def first_sentence(comparison: Comparison, response: int | str) -> str:
    return comparison.responses.get(pk=response).text.replace("*", "").replace("`", "").split(".")[0]


def preferred(judgment: Judgment) -> str:
    """The first sentence of the response that was ranked first."""
    return first_sentence(judgment.comparison, next(pk for pk, rank in judgment.ranks.items() if rank == 1))
