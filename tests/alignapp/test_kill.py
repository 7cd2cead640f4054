"""kill -9 of every process in the middle of a run: it goes on or is retried, and no row is lost or doubled."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.site import Client, Site
from training import catalog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

N_PAIRS = 40
SECONDS = 150.0
PREPARE = f"""
import uuid
from django.contrib.auth.models import User
from django.utils import timezone
from labeling import choices, exchange, judgments, leases, starter
from labeling.models import Campaign, Prompt

starter.ensure()
Prompt.objects.update(candidates_state="none")
campaign = Campaign.objects.create(name="Kill", slug="kill", n_candidates=0)
lines = [
    {{"prompt": f"Question {{i}}?", "responses": [{{"text": f"A good answer to {{i}}."}}, {{"text": f"Bad {{i}}"}}]}}
    for i in range({N_PAIRS})
]
exchange.import_pairs(campaign, lines)
anna = User.objects.create_user("anna")
while held := leases.claim(campaign, anna, timezone.now(), 4):
    for lease in held:
        good = lease.comparison.responses.get(text__startswith="A good").pk
        choice = choices.Choice("preference", lease.order, good, 2)
        judgments.record(lease, anna, uuid.uuid4(), choice, timezone.now())
"""
VICTIMS = {
    "trainer": ("training.ml.train",),
    "train worker": ("celery", "train-worker@alignapp"),
    "worker": ("celery", "worker@alignapp", "default"),
    "engine": ("serving.engine",),
    "web": ("uvicorn",),
}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def kill(site: Site, words: tuple[str, ...]) -> int | None:
    """Kills the site's process whose command line holds all `words`; None when there is none at the moment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("VAR_DIR") != str(site.var) or process.pid == os.getpid():
                continue
            if all(word in " ".join(process.cmdline()) for word in words):
                os.kill(process.pid, signal.SIGKILL)
                return process.pid
        except (psutil.Error, ProcessLookupError):
            continue
    return None


def step(site: Site) -> int:
    return int(site.rows("SELECT coalesce(max(step), 0) FROM training_metric")[0][0])


@pytest.fixture(scope="module")
def site(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("kill")
    with Site(folder, model=tiny_model_dir, prepare=PREPARE, RUN_LEASE_SECONDS="4", RUN_MAX_ATTEMPTS="6") as site:
        yield site


def start_run(client: Client, site: Site) -> None:
    params = catalog.to_dict(
        catalog.DPO(epochs=16.0, batch_pairs=2, learning_rate=0.001, max_tokens=128, lora_rank=4, lora_alpha=8.0)
    )
    fields = {name: str(value) for name, value in params.items() if value is not False}  # an unticked box is not sent
    fields |= {"campaign": str(site.rows("SELECT id FROM labeling_campaign WHERE slug = 'kill'")[0][0])}
    client.post("/admin/training/run/add/", data={**fields, "method": "dpo"})


def test_it_survives_the_death_of_every_process(site: Site) -> None:
    client = site.client()
    judged = site.rows("SELECT id, comparison_id, verdict, ranks FROM labeling_judgment ORDER BY id")
    assert len(judged) == N_PAIRS
    start_run(client, site)
    for name, words in VICTIMS.items():
        before = step(site)
        wait_until(lambda before=before: step(site) > before, f"a step before {name} is killed")  # type: ignore[misc]
        if name == "train worker":  # the last steps of the trainer before it may be counted only now
            wait_until(lambda: any(site.var.rglob("attempt-2/metrics.jsonl")), "the second attempt to train")
        assert kill(site, words) is not None, f"no {name} to kill"
    status = "SELECT status, error, attempt FROM training_run"
    wait_until(lambda: site.rows(status)[0][0] not in ("queued", "running"), "the run to end")
    wait_until(lambda: f"{list(VICTIMS)[-1]} is back" in site.log.read_text(), "web to be back")

    [(ended, error, attempt)] = site.rows(status)  # one run, not two
    assert (ended, error) == ("succeeded", "")
    assert attempt >= 3  # the trainer's and its worker's death each cost one
    assert site.rows("SELECT id, comparison_id, verdict, ranks FROM labeling_judgment ORDER BY id") == judged
    [(n_steps, n_metrics, last)] = site.rows(
        "SELECT r.n_steps, count(m.id), max(m.step) FROM training_run r JOIN training_metric m ON m.run_id = r.id"
    )
    assert n_metrics == n_steps == last
    assert site.rows("SELECT count(*) FROM serving_adapter WHERE NOT is_base") == [(1,)]
    assert site.rows("SELECT count(*) FROM training_evaluation") == [(1,)]
    assert "resumed at step" in "".join(path.read_text() for path in site.var.rglob("attempt-*/log.txt"))
