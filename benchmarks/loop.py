"""The whole loop without a browser: from the last judgment's acknowledgement to the first token of the new version.

    python -m benchmarks.loop [--pairs 64] [--data FILE.jsonl.gz] [--set epochs=2 …]

A real site (`manage.py up`), engine and model. Pairs are imported and judged through the API as the file records,
a DPO run is started from the admin, its adapter published, and the chat asked. Prints a table and one JSON line last.
A line of the file: {"prompt", "response_a", "response_b", "outcome": "a" or "b", "domain"}.
"""

import argparse
import gzip
import json
import re
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.site import REPOSITORY, Client, MemoryWatch, Site
from training import catalog

DATA = REPOSITORY.parent / "shared" / "data" / "alpaca_eval_pairs_train.jsonl.gz"
# A campaign of its own; the starter campaign's candidates would compete for the two cores.
PREPARE = """
from labeling import starter
from labeling.models import Campaign, Prompt
starter.ensure()
Prompt.objects.update(candidates_state="none")
Campaign.objects.create(name="Benchmark", slug="benchmark", n_candidates=0)
"""


MESSAGES = re.compile(r'role="alert"[^>]*>(.*?)</', re.DOTALL)


def read_pairs(path: Path, n: int) -> list[dict[str, Any]]:
    """The first `n` pairs of different prompts whose two responses differ."""
    pairs: dict[str, dict[str, Any]] = {}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            pair = json.loads(line)
            if pair["response_a"].strip() and pair["response_b"].strip() and pair["response_a"] != pair["response_b"]:
                pairs.setdefault(pair["prompt"], pair)
            if len(pairs) == n:
                return list(pairs.values())
    raise SystemExit(f"{path} has only {len(pairs)} usable pairs.")


def judge(client: Client, pairs: list[dict[str, Any]]) -> float:
    """Imports and judges all; returns when the last judgment was acknowledged."""
    lines = [
        {
            "prompt": pair["prompt"],
            "responses": [{"text": pair["response_a"]}, {"text": pair["response_b"]}],
            "domain": pair["domain"],
        }
        for pair in pairs
    ]
    report = client.post("/api/campaigns/benchmark/import/", json={"pairs": lines}).json()
    assert report["added"] == len(pairs), report
    better = {pair[f"response_{pair['outcome']}"].strip() for pair in pairs}
    n_judged = 0
    while leases := client.post("/api/campaigns/benchmark/leases/", json={"n": 4}).json()["leases"]:
        for lease in leases:
            chosen = [response["id"] for response in lease["responses"] if response["text"].strip() in better]
            assert len(chosen) == 1, "each pair has one recorded winner"
            answer = {"lease": lease["id"], "client_key": str(uuid.uuid4()), "verdict": "preference"}
            answer |= {"order": lease["order"], "choice": chosen[0], "strength": 2}
            client.post("/api/judgments/", json=answer)
            n_judged += 1
    assert n_judged == len(pairs), n_judged
    return time.monotonic()


def train(site: Site, client: Client, settings: dict[str, str]) -> int:
    """Starts a run with the form's defaults (and `settings`), waits for it, returns its id."""
    (campaign,) = site.rows("SELECT id FROM labeling_campaign WHERE slug = 'benchmark'")[0]
    fields = {**defaults(), **settings, "campaign": str(campaign), "method": "dpo"}
    page = client.post("/admin/training/run/add/", data=fields)
    runs = site.rows("SELECT id FROM training_run")
    if len(runs) != 1:
        raise RuntimeError(f"No run was started: {page.text[:2000]}")
    run = int(runs[0][0])
    while (state := client.http.get(f"/admin/training/run/{run}/live.json?after=999999999&log=0").json())["is_active"]:
        time.sleep(0.1)
    if state["status"] != "succeeded":
        raise RuntimeError(f"The run {state['status']}: {state['error']}")
    return run


def defaults() -> dict[str, str]:
    """What the form shows before anybody changes it; a switch that is off is not sent."""
    values = catalog.to_dict(catalog.get("dpo").params())
    return {name: "on" if value is True else str(value) for name, value in values.items() if value is not False}


def measure(site: Site, pairs: list[dict[str, Any]], settings: dict[str, str]) -> dict[str, Any]:
    assert site.process is not None
    watch = MemoryWatch(site.process.pid)
    watch.start()
    client = site.client()
    client.ask("Say hello.")  # the base is warm, as in use
    judged_at = judge(client, pairs)
    run = train(site, client, settings)
    trained_at = time.monotonic()
    page = client.post(f"/admin/training/run/{run}/publish/", data={"reason": "benchmark"})
    published_at = time.monotonic()
    if not site.rows("SELECT 1 FROM serving_deployment d JOIN training_run r ON r.adapter_id = d.adapter_id"):
        raise RuntimeError(f"The adapter was not published: {MESSAGES.findall(page.text)}")
    message, first_token_at = client.ask("Give me three tips for a good night of sleep.")
    watch.end()
    (name,) = site.rows(
        "SELECT a.name FROM serving_message m JOIN serving_adapter a ON a.id = m.adapter_id WHERE m.id = ?",
        uuid.UUID(message).hex,
    )[0]
    assert name.startswith("adapter-"), f"answered by {name}"
    (timings, evidence) = site.rows(
        "SELECT r.timings, e.evidence FROM training_run r JOIN training_evaluation e ON e.run_id = r.id"
    )[0]
    return {
        "seconds_judgment_to_token": first_token_at - judged_at,
        **{f"seconds_{stage}": seconds for stage, seconds in json.loads(timings).items()},
        "seconds_run": trained_at - judged_at,
        "seconds_publish": published_at - trained_at,
        "seconds_first_token": first_token_at - published_at,
        "rss_total_mb": watch.peak_total,
        **{f"rss_{role}_mb": peak for role, peak in sorted(watch.peaks.items())},
        "pairs": len(pairs),
        "accuracy": json.loads(evidence).get("accuracy"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of DPO")
    arguments = parser.parse_args()
    print(machine.describe())
    pairs = read_pairs(arguments.data, arguments.pairs)
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    with tempfile.TemporaryDirectory(prefix="alignapp-loop-") as folder, Site(Path(folder), prepare=PREPARE) as site:
        figures = measure(site, pairs, settings)
    for name, value in figures.items():
        print(f"{name:32} {value:10.2f}" if isinstance(value, float) else f"{name:32} {value!s:>10}")
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"benchmark": "loop", **rounded}))


if __name__ == "__main__":
    main()
