"""How long after a key press the next pair is painted, in real Chromium, a network round trip to the site away.

    python -m benchmarks.screen [--pairs 60]

A real web process, long responses (about 2,000 characters), one person who grades a pair every 0.7 s by keyboard. The
page measures itself: from the keydown event to the frame in which the next pair is painted ("label:next" among its
performance entries). Prints a table and one JSON line last.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks import machine
from benchmarks.site import PASSWORD, Site
from benchmarks.voters import percentile

# The starter campaign's candidates would compete for the two cores.
PREPARE = """
from labeling import pairs, prompts, responses, starter
from labeling.models import Campaign, Prompt
starter.ensure()
Prompt.objects.update(candidates_state="none")
campaign = Campaign.objects.create(name="Benchmark", slug="benchmark", n_candidates=0)
for number in range({n}):
    prompt = prompts.add_prompts(campaign, [{{"messages": f"What is question {{number}}?"}}], "benchmark")[0]
    for text in ("It **depends** on `what` one wants. " * 55, "One thing is sure, and the other is not. " * 50):
        responses.add_response(prompt, f"{{number}}. {{text}}")
    pairs.make_comparisons(prompt)
"""
PACE_MS = 700
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def judge(page: Page, address: str, n: int) -> list[float]:
    """Milliseconds from key press to paint, one for each pair judged."""
    page.goto(f"{address}/login/")
    page.fill("[name=username]", "admin")
    page.fill("[name=password]", PASSWORD)
    page.press("[name=password]", "Enter")
    page.goto(f"{address}/campaigns/benchmark/label/")
    page.wait_for_selector("#pair:not([hidden])")
    for number in range(n - 1):
        page.wait_for_timeout(PACE_MS)
        page.keyboard.press(str(number % 7 + 1))
    page.wait_for_timeout(PACE_MS)
    entries: list[float] = page.evaluate("performance.getEntriesByName('label:next').map((entry) => entry.duration)")
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screen", description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    print(machine.describe())
    with (
        tempfile.TemporaryDirectory(prefix="alignapp-bench-") as folder,
        Site(Path(folder), prepare=PREPARE.format(n=options.pairs)) as site,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        painted = judge(browser.new_page(), site.address, options.pairs)
    figures = {f"painted_p{share}_ms": round(percentile(painted, share / 100), 1) for share in (50, 95, 99)}
    print(f"{len(painted)} pairs: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    print(json.dumps({"benchmark": "screen", "judged": len(painted), **figures}))


if __name__ == "__main__":
    main()
