"""The admin's pages of runs in real Chromium: plots are read by pointer, keys and as a table; a run is followed live."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.core.cache import cache
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

from serving.models import Adapter
from tests.browser.screens import log_in
from tests.training.rows import NOW, add_campaign, add_judged
from tests.training.web import serving
from training import attempts, catalog, runs
from training.models import Evaluation, Metric, Run
from training.snapshots import freeze

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
ALARM = {
    "signal": "grad_norm",
    "value": 25.0,
    "limit": 8.0,
    "action": "skip_step",
    "message": "12 times its usual size",
}
GUARDS = [
    {"name": "kl", "value": 0.21, "limit": 2.0, "passed": True, "words": "KL to the base"},
    {"name": "length", "value": 1.9, "limit": [0.5, 1.6], "passed": False, "words": "length against the incumbent's"},
]
SAMPLES = [{"prompt": "Why?", "base": "Because.", "incumbent": None, "new": '"><img src=x onerror="document.title=1">'}]


def metric(step: int, beta: float = 0.1) -> dict[str, Any]:
    return {
        "step": step, "loss": 0.7 / (1 + beta * step), "accuracy": min(1.0, 0.5 + step / 100), "margin": step * beta,
        "chosen_reward": step / 90, "rejected_reward": -step / 50, "grad_norm": 25.0 if step == 7 else 2.0,
        "learning_rate": 1e-4, "tokens": 3000, "seconds": 1.0, "rss_mb": 1700, "alarms": [ALARM] if step == 7 else [],
    }  # fmt: skip


def add_steps(run: Run, first: int, last: int, beta: float = 0.1) -> None:
    Metric.objects.bulk_create(Metric(run=run, step=n, values=metric(n, beta)) for n in range(first, last + 1))
    Run.objects.filter(pk=run.pk).update(step=last)


def add_run(campaign: Any, beta: float, **fields: Any) -> Run:
    adapter = Adapter.objects.create(name=f"adapter-{beta}", sha256=str(beta).ljust(64, "0"), base_sha256="b" * 64)
    run = Run.objects.create(
        campaign=campaign, snapshot=freeze(campaign), method="dpo", n_steps=40, status="succeeded", adapter=adapter,
        params=catalog.to_dict(catalog.parse("dpo", {"beta": beta})), system={"rss_mb": 1700.0, "cpu_percent": 190.0},
        timings={"training": 40.0, "startup": 6.0}, started_at=NOW, finished_at=NOW, tags=["sweep"], **fields,
    )  # fmt: skip
    add_steps(run, 1, 40, beta)
    evidence: dict[str, Any] = {
        "n_pairs": 40,
        "n_prompts": 30,
        "accuracy": 0.6,
        "incumbent_accuracy": 0.5,
        "difference": 0.1,
    }
    evidence |= {"low": 0.02, "high": 0.18, "guards": GUARDS, "samples": SAMPLES}
    Evaluation.objects.create(run=run, adapter=adapter, is_passed=False, verdict="refused: too long", evidence=evidence)
    return run


@pytest.fixture
def world(live_server) -> list[Run]:
    """Two runs that ended, and one under way."""
    campaign = add_campaign(name="Cats")
    add_judged(campaign, 10, 3)
    ended = [add_run(campaign, beta) for beta in (0.1, 0.3)]
    active = runs.create(campaign, "dpo", {})
    Run.objects.filter(pk=active.pk).update(status="running", phase="Training", n_steps=40, snapshot=ended[0].snapshot)
    add_steps(active, 1, 12)
    return [*ended, active]


@pytest.fixture
def window(browser: Browser) -> Iterator[Any]:
    """Opens windows in which the administrator is logged in; a script error or refused resource fails the test."""
    opened, errors = [], []

    def open_at(address: str, **options: Any) -> Page:
        context = browser.new_context(base_url=address, **{"viewport": DESKTOP, "locale": "en", **options})
        context.set_default_timeout(30_000)
        opened.append(context)
        user = User.objects.filter(is_superuser=True).first()
        log_in(context, address, user or User.objects.create_superuser("root", "root@example.com", "a password"))
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        return page

    yield open_at
    for context in opened:
        context.close()
    assert not errors, errors


def address_of(name: str, *args: Any) -> str:
    return reverse(f"admin:training_{name}", args=args)


def pages(world: list[Run]) -> Iterator[tuple[str, str]]:
    first, second, active = world
    yield "run", address_of("run_change", first.pk)
    yield "run-active", address_of("run_change", active.pk)
    yield "compare", f"{address_of('run_compare')}?run={first.pk}&run={second.pk}"
    yield "start", f"{address_of('run_add')}?clone={first.pk}"
    yield "lineage", address_of("lineage", "version", first.adapter_id)


@pytest.mark.parametrize(
    "options",
    [{}, {"viewport": PHONE, "is_mobile": True, "has_touch": True}, {"color_scheme": "dark"}],
    ids=["desktop", "phone", "dark"],
)
def test_it_has_pages_that_everybody_can_use(world, window, live_server, shots: Path, request, options) -> None:
    page = window(live_server.url, **options)
    for name, address in pages(world):
        page.goto(address)
        page.wait_for_load_state("networkidle") if name != "run-active" else page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        assert page.title() != "1", name
        found = Axe().run(page, context=".al-page")  # around it is django-unfold's frame
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=shots / f"{name}-{request.node.callspec.id}.png", full_page=True)


def test_it_reads_plots_by_pointer_keys_and_as_a_table(world, window, live_server) -> None:
    page = window(live_server.url)
    page.goto(address_of("run_change", world[0].pk))
    loss = page.locator("[data-plot=loss]")
    area = loss.get_by_role("slider", name="Loss")
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 11, box["y"] + 80)
    last = f"step 40: {metric(40)['loss']:.3f}"
    expect(loss.locator("output")).to_have_text(last)
    expect(page.locator("[data-plot=grad_norm] output")).to_have_text("step 40: 2.000")  # one cursor for all
    area.focus()
    area.press("Home")
    for _press in range(6):
        area.press("ArrowRight")
    expect(area).to_have_attribute("aria-valuenow", "7")
    expect(area).to_have_attribute("aria-valuetext", f"step 7: {metric(7)['loss']:.3f} ⚠ 12 times its usual size")
    loss.get_by_text("As a table").click()
    assert loss.locator("tbody tr").count() == 40
    expect(loss.locator("tbody tr").nth(6)).to_have_text(f"7{metric(7)['loss']:.3f}")


def test_it_enlarges_smooths_and_changes_the_axis(world, window, live_server) -> None:
    page = window(live_server.url)
    page.goto(address_of("run_change", world[0].pk))
    loss = page.locator("[data-plot=loss]")
    box = loss.get_by_role("slider").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 60)
    page.mouse.up()
    steps = int(loss.get_by_role("slider").get_attribute("aria-valuemax"))
    assert steps < 40
    page.get_by_role("button", name="All steps").click()
    expect(loss.get_by_role("slider")).to_have_attribute("aria-valuemax", "40")
    before = loss.locator("polyline.smooth").get_attribute("points")
    page.get_by_label("Smoothing").select_option("none")
    expect(loss.locator("polyline.raw")).to_have_count(0)
    assert loss.locator("polyline.smooth").get_attribute("points") != before
    page.get_by_label("Logarithmic").check()
    ticks = loss.locator("svg text").all_text_contents()
    assert ticks, "an axis has numbers"
    page.reload()  # what was chosen is remembered
    expect(page.get_by_label("Logarithmic")).to_be_checked()
    expect(loss.locator("svg text")).to_have_text(ticks)
    expect(loss.locator("polyline.raw")).to_have_count(0)


def test_it_lists_alarms_guards_and_samples(world, window, live_server) -> None:
    page = window(live_server.url)
    page.goto(address_of("run_change", world[0].pk))
    expect(page.locator("[data-alarms] li")).to_have_text(["step 712 times its usual sizestep skipped"])
    page.get_by_role("button", name="step 7").click()
    expect(page.locator("[data-plot=grad_norm] output")).to_contain_text("step 7: 25.000")
    expect(page.locator("#gate ~ .al-scroll tbody tr").first).to_contain_text("length against the incumbent's")
    expect(page.locator(".al-answers").first).to_contain_text("<img src=x")  # as text


def test_it_hides_a_runs_curves_and_marks_what_differs(world, window, live_server) -> None:
    page = window(live_server.url)
    first, second, _active = world
    page.goto(f"{address_of('run_compare')}?run={first.pk}&run={second.pk}")
    loss = page.locator("[data-plot=loss]")
    ends = [f"{run.pk}: {metric(40, beta)['loss']:.3f}" for run, beta in ((first, 0.1), (second, 0.3))]
    page.get_by_label("Smoothing").select_option("none")
    expect(loss.locator("output")).to_have_text(" · ".join(ends))
    page.get_by_role("button", name=f"Curves of run {first.pk}").click()
    expect(loss.locator("output")).to_have_text(ends[1])
    expect(page.locator(".al-differs th")).to_have_text(["beta differs"])


def test_it_shows_another_methods_parameters_without_leaving_the_page(world, window, live_server) -> None:
    page = window(live_server.url)
    page.goto(address_of("run_add"))
    expect(page.locator("[data-show=estimate]")).to_contain_text("to learn from")
    page.get_by_label("Epochs").fill("3")
    expect(page.locator("[data-preset][aria-pressed=true]")).to_have_count(0)  # no preset is like this
    page.get_by_role("radio", name="Tie-aware DPO (Davidson)").check()
    expect(page.get_by_label("Nu")).to_be_visible()
    expect(page.get_by_label("Epochs")).to_have_value("3")  # kept, since this method has it as well
    expect(page.get_by_label("Margin scale")).to_have_count(0)
    page.get_by_role("button", name="Balanced").click()
    expect(page.get_by_label("Epochs")).to_have_value("1")
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("Batch pairs").fill("5")
    expect(page.locator("[data-show=estimate] div", has_text="steps").locator("dd")).to_have_text("4")
    page.get_by_role("button", name="Start the run").click()  # the campaign has an active run
    expect(page.locator(".al-bad", has_text="has a run already")).to_be_visible()


def test_it_asks_again_while_the_judgments_are_being_counted(world, window, live_server) -> None:
    cache.clear()
    counting = f"training.estimates.{world[0].campaign_id}.counting"
    cache.add(counting, True)
    page = window(live_server.url)
    page.goto(address_of("run_add"))
    expect(page.locator("[data-show=estimate]")).to_contain_text("being counted")
    cache.delete(counting)
    expect(page.locator("[data-show=estimate]")).to_contain_text("to learn from")


@pytest.mark.parametrize("is_streamed", [True, False], ids=["events", "polling"])
def test_it_follows_a_run_until_it_ends(world, window, live_server, is_streamed: bool) -> None:
    """By events where there is an ASGI server; by asking where there is none, as in tests and behind some proxies."""
    active = world[2]
    with serving() if is_streamed else nullcontext((live_server.url, 0)) as (address, _pid):
        page = window(address)
        page.goto(address_of("run_change", active.pk))
        expect(page.locator("[data-show=link]")).to_have_attribute(
            "data-link", "listening" if is_streamed else "polling"
        )
        slider = page.get_by_role("slider", name="Loss")
        expect(slider).to_have_attribute("aria-valuemax", "12")
        add_steps(active, 13, 20)
        attempts.folder(active.pk, 0).mkdir(parents=True, exist_ok=True)
        (attempts.folder(active.pk, 0) / "log.txt").write_text("a new line")
        Run.objects.filter(pk=active.pk).update(system={"rss_mb": 1234.0})
        expect(slider).to_have_attribute("aria-valuemax", "20")
        expect(page.locator("[data-show=steps]")).to_have_text("20 / 40")
        expect(page.locator(".al-log")).to_have_text("a new line")
        expect(page.locator("[data-figure=rss_mb]")).to_have_text("1,234")
        Run.objects.filter(pk=active.pk).update(status="failed", error="The disk is full.")
        expect(page.get_by_role("alert")).to_have_text("The disk is full.")
        expect(page.locator("[data-show=link]")).to_have_count(0)
        page.wait_for_load_state("networkidle")
        page.close()  # before the server ends
