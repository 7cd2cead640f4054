"""What a run would learn from is what it learns from."""

from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse

from labeling.models import Campaign, Judgment
from labeling.retractions import retract_judgment
from serving import adapters
from serving.models import Adapter, Deployment
from tests.training.rows import NOW, add_annotator, add_campaign, add_comparison, add_judged, add_prompt, judge
from training import catalog, estimates
from training.models import Run
from training.snapshots import freeze
from training.split import is_heldout

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_cache() -> None:
    cache.clear()


@pytest.fixture
def campaign() -> Campaign:
    campaign = add_campaign()
    add_judged(campaign, 20, 5)
    for verdict in ("tie", "tie", "both_bad"):
        judge(add_comparison(train_prompt(campaign)), verdict)
    return campaign


def train_prompt(campaign: Campaign) -> Any:
    while is_heldout((prompt := add_prompt(campaign)).sha256):
        pass
    return prompt


def of(campaign: Campaign, method: str = "dpo", **params: Any) -> estimates.Estimate:
    return estimates.of_run(campaign, catalog.METHODS[method], params)


def test_it_counts_what_would_be_frozen(campaign: Campaign) -> None:
    estimate, counts = of(campaign, batch_pairs=4, epochs=2.0), freeze(campaign).counts
    assert estimate.available.counts == counts
    assert (estimate.n, estimate.available.n_ties, estimate.available.waiting) == (20, 2, 28)
    assert estimate.n_steps == 10
    assert (estimate.missing, estimate.seconds, estimate.measured_in) == (0, None, None)


def test_it_counts_by_what_the_method_learns_from(campaign: Campaign) -> None:
    assert of(campaign, "rao_kupper").n == 22
    assert of(campaign, "kto", splits_pairs=False).n == 2
    assert of(campaign, "kto", splits_pairs=True).n == 2 + 2 * 20
    edits = of(campaign, "sft")
    assert (edits.n, edits.n_steps, edits.missing) == (0, 0, 4)
    assert of(campaign, "kto", splits_pairs=False).missing == 0, "pairs count when judgments are frozen"


def test_it_counts_anew_when_somebody_judged(campaign: Campaign) -> None:
    before = of(campaign).n
    judge(add_comparison(train_prompt(campaign)))
    assert of(campaign).n == before + 1


def put_in_chat(campaign: Campaign) -> Adapter:
    """A version of this campaign that learned from all judgments so far."""
    made = Adapter.objects.create(name="adapter-2-a", sha256="a" * 64, base_sha256="b" * 64, status="ready")
    Run.objects.create(
        campaign=campaign, snapshot=freeze(campaign), method="dpo", status="succeeded", adapter=made,
        params={"start": "base"},
    )  # fmt: skip
    Deployment.objects.create(alias=adapters.CURRENT, adapter=made)
    return made


def test_it_learns_new_pairs_and_replays_old_ones_when_it_continues(campaign: Campaign) -> None:
    put_in_chat(campaign)
    for _number in range(3):
        judge(add_comparison(train_prompt(campaign)))
    assert of(campaign, start="incumbent", replay=2.0).n == 9
    assert of(campaign, start="incumbent", replay=0.5).n == 3 + 2
    assert of(campaign, start="incumbent", replay=100.0).n == of(campaign).n == 23
    assert of(campaign, "kto", start="incumbent", replay=0.0).n == 2 * 3
    assert of(campaign, start="incumbent").missing == 0, "freezing asks for lines, new or not"


def test_it_counts_as_new_what_the_current_version_has_not_seen(campaign: Campaign) -> None:
    """Another run learned from everything since, and is not in chat."""
    version = put_in_chat(campaign)
    judge(add_comparison(train_prompt(campaign)))
    Run.objects.create(campaign=campaign, snapshot=freeze(campaign, version), method="dpo", status="succeeded")
    estimate = of(campaign, start="incumbent", replay=1.0)
    assert (estimate.n, estimate.available.waiting) == (2, 0)


def test_it_begins_anew_where_the_current_version_learned_from_what_was_taken_back(campaign: Campaign) -> None:
    put_in_chat(campaign)
    said = Judgment.objects.filter(comparison__campaign=campaign, verdict="tie").first()
    assert said
    retract_judgment(said, add_annotator(), "a mistake", NOW)
    assert of(campaign, start="incumbent").n == 20


def test_it_counts_once_at_a_time(admin_client: Client, campaign: Campaign) -> None:
    lock = f"training.estimates.{campaign.pk}.counting"
    cache.add(lock, True)
    answer = ask(admin_client, campaign)
    assert (answer.status_code, "being counted" in answer.content.decode()) == (202, True)
    cache.delete(lock)
    assert ask(admin_client, campaign).status_code == 200
    assert cache.get(lock) is None
    cache.add(lock, True)
    assert ask(admin_client, campaign).status_code == 200, "what was counted needs no lock"


def test_it_takes_as_long_as_the_newest_run_of_the_method(campaign: Campaign) -> None:
    def done(method: str, seconds: float) -> Run:
        return Run.objects.create(
            campaign=campaign, method=method, status="succeeded", n_steps=10, params={"batch_pairs": 8},
            timings={"training": seconds, "startup": 5.0, "publish": 99.0},
        )  # fmt: skip

    own, other = done("dpo", 80.0), done("ipo", 160.0)
    estimate = of(campaign, epochs=2.0)
    assert (estimate.measured_in, estimate.seconds) == (own, 1.0 * 20 * 2 + 5)
    assert of(campaign, "rpo").measured_in == other


def ask(client: Client, campaign: Campaign, **data: Any) -> Any:
    values = {"campaign": campaign.pk, "method": "dpo", **data}
    return client.get(reverse("admin:training_run_estimate"), values)


def test_it_tells_the_form(admin_client: Client, campaign: Campaign) -> None:
    estimate = ask(admin_client, campaign, epochs="2", batch_pairs="4").context["estimate"]
    assert (estimate.n, estimate.n_steps) == (20, 10)
    assert ask(admin_client, campaign, epochs="many", batch_pairs="4").context["estimate"].n_steps == 5
    assert b"Too little to begin" in ask(admin_client, campaign, method="sft").content
    for values in ({"method": "magic"}, {"method": "dpo", "campaign": "x"}, {"method": "dpo", "campaign": "9" * 30}):
        assert admin_client.get(reverse("admin:training_run_estimate"), values).status_code == 404
