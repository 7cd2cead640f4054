"""What people do on the chat page, for tests."""

from playwright.sync_api import Locator, Page, expect


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    return page.locator("#thread article")


def answered(page: Page, text: str, count: int = 1) -> None:
    """Asks, and waits until so many answers on the page are complete."""
    ask(page, text)
    complete(page, count)


def complete(page: Page, count: int = 1) -> None:
    expect(page.locator("#thread article[data-status=complete]")).to_have_count(count)


def questions(page: Page) -> list[str]:
    return page.locator("#thread [data-question]").all_inner_texts()
