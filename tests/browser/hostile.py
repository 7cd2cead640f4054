"""A site full of hostile texts, and a window that notices what they do."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Route

from labeling import pairs, prompts, responses, texts
from labeling.models import Campaign, Comparison, Invitation, Judgment, Membership, Prompt
from serving import adapters
from serving.models import Adapter, Conversation, DeploymentEvent, Message
from serving.rendering import ATTRIBUTES
from tests.browser.attacks import ATTACKS
from training.models import Run, Snapshot

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LAST = "These are the last words."
STORED = [texts.clean(text) for text in (*ATTACKS.values(), LAST)]
ALL = "\n\n".join(STORED)
KEPT = {**{tag: sorted(names) for tag, names in ATTRIBUTES.items()}, "a": ["href", "target", "rel"], "span": ["class"]}
# What a hostile text can do to a page, as the page's own objects tell it. Receives KEPT.
INSPECT = """(kept) => {
  const all = [...document.querySelectorAll("*")];
  const isOurButton = (element) => element.matches("pre > button.copy-code") && element.textContent === "Copy";
  const foreign = [...document.querySelectorAll(".prose *")].filter((element) => !isOurButton(element));
  // What chat_prose.js adds: the levels of headings below the page's own, and a stop for keys at what scrolls.
  const isAdded = (e, name) => (name === "tabindex" && e.matches("pre > code, table, math") && e.tabIndex === 0) ||
    (name === "aria-level" && e.matches("h1, h2, h3, h4, h5, h6") && e.ariaLevel === String(Math.min(Number(e.localName[1]) + 3, 6)));
  const ids = all.map((element) => element.id).filter(Boolean);
  const isOurs = (address) => !address || new URL(address, location.href).origin === location.origin;
  const methods = ["getElementById", "querySelector", "createElement", "addEventListener"];
  return [
    ...(window.__pwned ? ["code ran"] : []),
    ...ids.filter((id, index) => ids.indexOf(id) !== index).map((id) => `two #${id}`),
    ...methods.filter((name) => typeof document[name] !== "function").map((name) => `clobbered ${name}`),
    ...all.filter((element) => element.matches("iframe, object, embed, base, meta[http-equiv]")).map((e) => e.outerHTML),
    ...all.filter((e) => !isOurs(e.src) || (e.tagName === "LINK" && !isOurs(e.href))).map((e) => e.outerHTML),
    ...foreign.flatMap((e) => e.getAttributeNames()
      .filter((name) => !(kept[e.localName] ?? []).includes(name) && !isAdded(e, name)).map((name) => `${e.localName} ${name}`)),
    ...foreign.filter((e) => e.localName === "a" && e.hasAttribute("href") && !/^(https?:\\/\\/|mailto:)/i.test(e.href))
      .map((e) => e.outerHTML),
    ...foreign.filter((e) => e.matches("script, style, svg, img, form, input, button, dialog, template"))
      .map((e) => e.outerHTML),
    ...(document.body.style.cssText ? ["body has a style"] : []),
  ];
}"""
# Which of these controls somebody could not click, because it is missing, hidden or covered.
UNREACHABLE = """(selectors) => selectors.filter((selector) => {
  const element = Document.prototype.querySelector.call(document, selector);
  if (!element) return true;
  element.scrollIntoView({ block: "nearest" });
  const box = element.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return !top || !(element.contains(top) || top.contains(element) && top !== document.body);
})"""


class Window:
    """A logged-in page; `problems` collects what no text may cause."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.address, self.problems = address, list[str]()
        context.route(lambda url: not url.startswith(address), self._refuse)
        self.page = self._watched(context.new_page())
        context.on("page", lambda opened: self.problems.append(f"opened {opened.url}"))

    def _watched(self, page: Page) -> Page:
        page.on("dialog", self._dismiss)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", lambda said: self.problems.append(said.text) if "Security Policy" in said.text else None)
        page.on("request", lambda sent: self.problems.append(f"asked for {sent.url}") if "pwned" in sent.url else None)
        return page

    def _refuse(self, route: Route) -> None:
        if urlsplit(route.request.url).scheme in {"http", "https"}:
            self.problems.append(f"asked for {route.request.url}")
        route.abort()

    def _dismiss(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: str, words: str = "") -> Page:
        """The page at rest, with these words in it."""
        answer = self.page.goto(self.address + path)
        assert answer is not None
        assert answer.status == 200, path
        if words:
            self.page.wait_for_function("(words) => document.body.textContent.includes(words)", arg=words)
        self.page.wait_for_timeout(150)  # what loads, animates or is focused by itself would by now
        return self.page

    def findings(self, path: str, controls: list[str]) -> list[str]:
        """What went wrong since the last call."""
        found = [*self.problems, *self.page.evaluate(INSPECT, KEPT)]
        found += [f"out of reach: {selector}" for selector in self.page.evaluate(UNREACHABLE, controls)]
        if urlsplit(self.page.url).path != path:
            found.append(f"went to {self.page.url}")
        self.problems.clear()
        return found


@contextmanager
def window(browser: Browser, address: str, user: User | None, *, has_policy: bool = True) -> Iterator[Window]:
    """Without `has_policy`, the browser ignores our content security policy."""
    context = browser.new_context(bypass_csp=not has_policy, viewport={"width": 1280, "height": 800}, locale="en")
    if user is not None:
        client = Client()
        client.force_login(user)
        session = client.cookies["sessionid"].value
        context.add_cookies([{"name": "sessionid", "value": session, "url": address}])
    yield Window(context, address)
    context.close()


# --- rows -------------------------------------------------------------------------------------------------------------
def campaign(slug: str = "hostile", **fields: Any) -> Campaign:
    """Every text that a manager writes is hostile too."""
    return Campaign.objects.create(
        slug=slug,
        name=ATTACKS["script"],
        description=ALL,
        guidelines=ALL,
        n_candidates=0,
        min_dwell_ms=0,
        **fields,
    )


def comparison(of: Campaign) -> Comparison:
    """One pair: each attack is a turn of its prompt, and an item in a list in one of its two responses."""
    attacks = list(ATTACKS.values())
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(attacks)]
    [prompt] = prompts.add_prompts(of, [{"messages": [*turns, {"role": "user", "content": LAST}]}], "import")
    for half in (attacks[::2], attacks[1::2]):
        responses.add_response(prompt, "\n".join(_item(text) for text in [*half, LAST]))
    [made] = pairs.make_comparisons(prompt)
    return made


def _item(text: str) -> str:
    """A list item ends whatever a text leaves open."""
    return "- " + text.replace("\n", "\n  ")


def conversation(owner: User) -> Conversation:
    """Each attack as a question, as its answer, and as what went wrong."""
    base = adapters.base()
    row = Conversation.objects.create(owner=owner, title=ATTACKS["onerror"])
    parent = None
    for text in STORED:
        said = {"conversation": row, "content": text}
        question = Message.objects.create(**said, role="user", parent=parent)
        parent = Message.objects.create(
            **said, role="assistant", parent=question, adapter=base, error=text, status="failed"
        )
    return row


def judgment(of: Comparison, by: User) -> Judgment:
    order = list(of.responses.order_by("pk").values_list("pk", flat=True))
    return Judgment.objects.create(
        comparison=of, annotator=by, client_key="0" * 32, verdict="preference", order=order, strength=3,
        ranks={order[0]: 1, order[1]: 2}, reason=ALL, created_at=NOW,
    )  # fmt: skip


def everything(admin: User) -> dict[str, Any]:
    """Hostile rows of every kind that the admin shows; by the name of their model."""
    hostile = campaign()
    Membership.objects.create(campaign=hostile, user=admin, role="manager")
    pair = comparison(hostile)
    prompts.add_prompts(hostile, [{"messages": text} for text in ATTACKS.values()], "import")
    snapshot = Snapshot.objects.create(
        campaign=hostile, sha256="5" * 64, counts={"train": 1, "heldout": 0, "judgments": 1}
    )
    text = ALL
    version = Adapter.objects.create(
        name="adapter-7-aaaaaa", sha256="a" * 64, base_sha256=adapters.base().sha256, notes=text, error=text,
        manifest={"run": "<img src=x onerror=window.__pwned=1>", "parent": text}, self_test={"verdict": text},
    )  # fmt: skip
    event = DeploymentEvent.objects.create(alias="current", generation=99, adapter=version, reason=text, actor=admin)
    run = Run.objects.create(campaign=hostile, snapshot=snapshot, method="dpo", status="failed", error=text)
    invitation = Invitation.objects.create(token_sha256="1" * 64, note=ALL[:120], created_by=admin, expires_at=NOW)
    return {
        "campaign": hostile, "prompt": Prompt.objects.order_by("pk").first(), "judgment": judgment(pair, admin),
        "adapter": version, "deploymentevent": event, "run": run, "snapshot": snapshot, "invitation": invitation,
    }  # fmt: skip
