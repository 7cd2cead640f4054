"""The admin's pages about runs: who may, what they show, and what their buttons do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils.html import escape
from pytest_django import Settings

from labeling.models import Campaign
from labeling.retractions import retract_judgment
from serving import adapters
from serving.models import Adapter, Deployment
from tests.serving.scripted import TOKEN, ScriptedEngine, running
from tests.training.rows import NOW, add_annotator, add_campaign, add_judged, model_card
from training import attempts, catalog, runs
from training.models import Evaluation, Metric, Run
from training.snapshots import freeze

pytestmark = pytest.mark.django_db

GET_VIEWS = {
    "training_run_add": "add_run",
    "training_run_change": "view_run",
    "training_run_live": "view_run",
    "training_run_events": "view_run",
    "training_run_curves": "view_run",
    "training_run_csv": "view_run",
    "training_run_jsonl": "view_run",
    "training_run_compare": "view_run",
    "training_run_estimate": "add_run",
}
POST_VIEWS = {
    "training_run_cancel": "change_run",
    "training_run_annotate": "change_run",
    "training_run_retry": "add_run",
    "training_run_publish": "change_deployment",
    "training_run_rollback": "change_deployment",
}
WITHOUT_RUN = {"training_run_add", "training_run_rollback", "training_run_compare", "training_run_estimate"}


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = model_card(tmp_path)


@pytest.fixture
def campaign() -> Campaign:
    return add_campaign(name="Manners")


@pytest.fixture
def run(campaign: Campaign) -> Run:
    return runs.create(campaign, "dpo", {"beta": 0.2})


def address(name: str, run: Run) -> str:
    return reverse(f"admin:{name}", args=[] if name in WITHOUT_RUN else [run.pk])


def client_of(*permissions: str, is_staff: bool = True) -> Client:
    user = User.objects.create_user("somebody", password="a long password", is_staff=is_staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def send(client: Client, name: str, run: Run) -> Any:
    return (client.post if name in POST_VIEWS else client.get)(address(name, run))


@pytest.mark.parametrize("name", [*GET_VIEWS, *POST_VIEWS])
def test_it_sends_strangers_to_the_login(run: Run, name: str) -> None:
    for client in (Client(), client_of(*GET_VIEWS.values(), is_staff=False)):
        answer = send(client, name, run)
        assert answer.status_code == 302
        assert answer["Location"].startswith(reverse("admin:login"))
    run.refresh_from_db()
    assert run.status == Run.Status.QUEUED


@pytest.mark.parametrize(("name", "permission"), [*GET_VIEWS.items(), *POST_VIEWS.items()])
def test_it_refuses_staff_without_the_permission(run: Run, name: str, permission: str) -> None:
    others = {*GET_VIEWS.values(), *POST_VIEWS.values(), "change_run"} - {permission}
    assert send(client_of(*others), name, run).status_code == 403
    run.refresh_from_db()
    assert (run.status, Run.objects.count()) == (Run.Status.QUEUED, 1)


@pytest.mark.parametrize("name", POST_VIEWS)
def test_it_changes_nothing_by_get(admin_client: Client, run: Run, name: str) -> None:
    assert admin_client.get(address(name, run)).status_code == 405


@pytest.mark.parametrize("name", [name for name in [*GET_VIEWS, *POST_VIEWS] if name not in WITHOUT_RUN])
def test_it_knows_no_run_that_is_none(admin_client: Client, name: str) -> None:
    assert send(admin_client, name, Run(pk=10**6)).status_code == 404


def test_it_starts_a_run_from_the_form(admin_client: Client, campaign: Campaign, admin_user: User) -> None:
    page = admin_client.get(reverse("admin:training_run_add"), {"campaign": str(campaign.pk), "method": "rpo"})
    assert b"NLL weight" in page.content
    fields = {name: value for name, value in _initial(page.context["form"]).items() if value is not False}
    answer = admin_client.post(reverse("admin:training_run_add"), fields | {"nll_weight": "0.5"})
    run = Run.objects.get()
    assert answer["Location"] == reverse("admin:training_run_change", args=[run.pk])
    assert (run.method, run.params["nll_weight"], run.requested_by) == ("rpo", 0.5, admin_user)


def _initial(form: Any) -> dict[str, Any]:
    return {field.name: field.value() for field in form}


def test_it_says_which_field_is_wrong(admin_client: Client, campaign: Campaign) -> None:
    form = admin_client.get(reverse("admin:training_run_add"), {"campaign": campaign.pk}).context["form"]
    fields = {name: value for name, value in _initial(form).items() if value is not False}
    page = admin_client.post(reverse("admin:training_run_add"), fields | {"beta": "-1", "epochs": "many"})
    assert set(page.context["form"].errors) == {"beta", "epochs"}
    assert not Run.objects.exists()


def test_it_says_at_the_field_what_the_catalog_has_against_it(admin_client: Client, campaign: Campaign) -> None:
    page = admin_client.get(reverse("admin:training_run_add"), {"campaign": str(campaign.pk), "method": "cdpo"})
    fields = {name: value for name, value in _initial(page.context["form"]).items() if value is not False}
    page = admin_client.post(reverse("admin:training_run_add"), fields | {"flip_rate": "-0.5", "warmup": "5"})
    assert set(page.context["form"].errors) == {"warmup"}
    assert b'<details class="al-fold" open>' in page.content, "the error is not folded away"
    page = admin_client.post(reverse("admin:training_run_add"), fields | {"flip_rate": "-0.5"})
    assert set(page.context["form"].errors) == {"flip_rate"}


@pytest.mark.parametrize("preset", catalog.PRESETS)
def test_it_fills_in_a_preset(admin_client: Client, campaign: Campaign, preset: str) -> None:
    page = admin_client.get(reverse("admin:training_run_add"), {"campaign": str(campaign.pk), "preset": preset})
    shown = _initial(page.context["form"])
    wanted = catalog.to_dict(catalog.METHODS["dpo"].params()) | catalog.PRESETS[preset].params
    assert {name: shown[name] for name in wanted} == wanted
    assert page.content.count(b'aria-pressed="true"') == 1


def test_it_clones_a_run(admin_client: Client, campaign: Campaign) -> None:
    origin = runs.create(campaign, "rpo", {"beta": 0.4, "nll_weight": 0.7, "rslora": False})
    runs.request_cancel(origin, NOW)
    page = admin_client.get(reverse("admin:training_run_add"), {"clone": origin.pk})
    shown = _initial(page.context["form"])
    assert (shown["campaign"], shown["method"]) == (campaign.pk, "rpo")
    assert {name: shown[name] for name in origin.params} == origin.params
    fields = {name: value for name, value in shown.items() if value is not False}
    admin_client.post(reverse("admin:training_run_add"), fields)
    again = Run.objects.latest("pk")
    assert (again.pk != origin.pk, again.params, again.retry_of) == (True, origin.params, None)
    for text in ("x", "²", "9" * 30):
        assert admin_client.get(reverse("admin:training_run_add"), {"clone": text}).status_code == 200


def test_it_keeps_of_a_clone_what_another_method_has_too(admin_client: Client, campaign: Campaign) -> None:
    origin = runs.create(campaign, "rpo", {"beta": 0.4, "nll_weight": 0.7})
    page = admin_client.get(reverse("admin:training_run_add"), {"clone": str(origin.pk), "method": "dpo"})
    shown = _initial(page.context["form"])
    assert (shown["beta"], "nll_weight" in shown) == (0.4, False)


def test_it_offers_every_method_by_what_it_learns_from(admin_client: Client, campaign: Campaign) -> None:
    page = admin_client.get(reverse("admin:training_run_add"))
    offered = [method.name for _words, methods in page.context["choices"] for method in methods]
    assert sorted(offered) == sorted(catalog.METHODS)
    for method in catalog.METHODS.values():
        assert escape(method.use) in page.content.decode()


def test_it_keeps_notes_and_tags(admin_client: Client, run: Run) -> None:
    annotate = reverse("admin:training_run_annotate", args=[run.pk])
    admin_client.post(annotate, {"notes": "The one <b>to beat</b>.", "tags": " Baseline,beta  SWEEP, baseline,, "})
    run.refresh_from_db()
    assert (run.notes, run.tags) == ("The one <b>to beat</b>.", ["baseline", "beta sweep"])
    page = admin_client.get(reverse("admin:training_run_change", args=[run.pk])).content
    assert b"baseline, beta sweep" in page
    assert b"<b>to beat" not in page
    answer = admin_client.post(annotate, {"notes": "", "tags": "x" * 31}, follow=True)
    assert b"At most 10 tags" in answer.content
    run.refresh_from_db()
    assert run.tags == ["baseline", "beta sweep"]


def test_it_finds_runs_by_tag(admin_client: Client, run: Run) -> None:
    other = Run.objects.create(campaign=add_campaign(), method="dpo", status="failed", tags=["größer", "x"])
    Run.objects.create(campaign=add_campaign(), method="dpo", status="failed", tags=["größ"])
    page = admin_client.get(reverse("admin:training_run_changelist"), {"tag": "größer"})
    assert list(page.context["cl"].queryset) == [other]
    assert len(admin_client.get(reverse("admin:training_run_changelist")).context["cl"].queryset) == 3


def test_it_says_that_a_run_is_active_already(admin_client: Client, run: Run) -> None:
    form = admin_client.get(reverse("admin:training_run_add"), {"campaign": run.campaign_id}).context["form"]
    fields = {name: value for name, value in _initial(form).items() if value is not False}
    page = admin_client.post(reverse("admin:training_run_add"), fields)
    assert b"has a run already" in page.content
    assert Run.objects.count() == 1


def test_it_shows_dpo_when_asked_for_a_method_that_is_none(admin_client: Client, campaign: Campaign) -> None:
    page = admin_client.get(reverse("admin:training_run_add"), {"method": "magic", "campaign": "x"})
    assert page.status_code == 200
    assert page.context["method"].name == "dpo"


def test_it_tells_what_changed_since_a_step(admin_client: Client, run: Run) -> None:
    for step in (1, 2, 3):
        Metric.objects.create(run=run, step=step, values={"step": step, "loss": 0.5})
    folder = attempts.folder(run.pk, run.attempt)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("start: 6.2 s <b>")
    live = reverse("admin:training_run_live", args=[run.pk])
    state = admin_client.get(live, {"after": 1}).json()
    assert [row["step"] for row in state["metrics"]] == [2, 3]
    assert (state["status"], state["is_active"], state["log"]) == ("queued", True, "start: 6.2 s <b>")
    assert len(admin_client.get(live).json()["metrics"]) == 3
    assert "log" not in admin_client.get(live, {"log": 0}).json()
    assert admin_client.get(live, {"after": "²"}).status_code == 200
    assert b"<b>" not in admin_client.get(reverse("admin:training_run_change", args=[run.pk])).content


def test_it_cancels_and_retries(admin_client: Client, run: Run) -> None:
    admin_client.post(reverse("admin:training_run_cancel", args=[run.pk]))
    run.refresh_from_db()
    assert run.status == Run.Status.CANCELLED
    answer = admin_client.post(reverse("admin:training_run_retry", args=[run.pk]))
    again = Run.objects.get(retry_of=run)
    assert answer["Location"] == reverse("admin:training_run_change", args=[again.pk])
    answer = admin_client.post(reverse("admin:training_run_retry", args=[run.pk]), follow=True)
    assert b"has a run already" in answer.content
    assert Run.objects.count() == 2


def finished(run: Run, *, is_passed: bool) -> Run:
    adapter = Adapter.objects.create(name="adapter-9-abcdef", sha256="a" * 64, base_sha256="b" * 64)
    Run.objects.filter(pk=run.pk).update(
        status=Run.Status.SUCCEEDED, adapter=adapter, timings={"training": 200.0, "snapshot": 0.02}
    )
    Evaluation.objects.create(run=run, adapter=adapter, is_passed=is_passed, verdict="better by 4.1 points")
    run.refresh_from_db()
    return run


def test_it_asks_for_a_reason_only_when_the_gate_did_not_pass(admin_client: Client, run: Run) -> None:
    page = reverse("admin:training_run_change", args=[finished(run, is_passed=False).pk])
    assert b'name="reason" required' in admin_client.get(page).content
    Evaluation.objects.update(is_passed=True, incumbent=Deployment.objects.get().adapter)
    content = admin_client.get(page).content
    assert b'name="reason"' not in content
    assert b"better by 4.1 points" in content
    assert content.index(b"freeze the judgments") < content.index(b"3 min 20 s")


def test_it_publishes_nothing_without_the_reason(admin_client: Client, run: Run) -> None:
    finished(run, is_passed=False)
    answer = admin_client.post(reverse("admin:training_run_publish", args=[run.pk]), follow=True)
    assert b"Give a reason" in answer.content


def test_it_says_what_learned_from_a_judgment_that_was_taken_back(admin_client: Client, run: Run) -> None:
    rows = add_judged(run.campaign, 4)
    Run.objects.filter(pk=run.pk).update(snapshot=freeze(run.campaign))
    page = reverse("admin:training_run_change", args=[finished(run, is_passed=True).pk])
    Evaluation.objects.update(incumbent=adapters.base())
    words = b"learned from judgments that were taken back since"
    assert words not in admin_client.get(page).content
    retract_judgment(rows[0], add_annotator(), "a mistake", NOW)
    content = admin_client.get(page).content
    assert words in content
    assert b"Give a reason for publishing it all the same.</label>" in content
    assert b'name="reason" required' in content


@pytest.mark.django_db(transaction=True)
def test_it_gives_way_to_who_published_first(admin_client: Client, run: Run, settings: Settings) -> None:
    theirs = Adapter.objects.create(name="adapter-3-b", sha256="d" * 64, base_sha256="b" * 64, status="ready")
    finished(run, is_passed=True)
    Adapter.objects.update(status=Adapter.Status.READY)
    Evaluation.objects.update(incumbent=adapters.base())
    engine = ScriptedEngine()

    def publish_theirs() -> None:
        engine.before_load = lambda: None
        try:
            adapters.publish(theirs)
        finally:
            connection.close()

    with running(engine) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        engine.before_load = publish_theirs
        answer = admin_client.post(reverse("admin:training_run_publish", args=[run.pk]), follow=True)
    assert "it is adapter-3-b now. Look again, then decide." in answer.content.decode()
    assert adapters.current() == theirs


def test_it_has_nothing_to_publish_of_a_run_without_adapter(admin_client: Client, run: Run) -> None:
    assert admin_client.post(reverse("admin:training_run_publish", args=[run.pk])).status_code == 404


def test_it_shows_the_buttons_only_to_those_who_may(run: Run) -> None:
    page = reverse("admin:training_run_change", args=[run.pk])
    content = client_of("view_run").get(page).content
    assert reverse("admin:training_run_cancel", args=[run.pk]).encode() not in content


@pytest.mark.parametrize("status", Run.Status.values)
def test_it_shows_a_run_in_every_state(admin_client: Client, campaign: Campaign, status: str) -> None:
    add_judged(campaign, 4)
    run = Run.objects.create(campaign=campaign, method="gone", params={"x": 1}, status=status, started_at=NOW)
    assert admin_client.get(reverse("admin:training_run_change", args=[run.pk])).status_code == 200
    assert admin_client.get(reverse("admin:training_run_changelist")).status_code == 200
    assert admin_client.get(reverse("admin:index")).status_code == 200


@pytest.fixture
def versions(settings: Settings) -> Iterator[list[Adapter]]:
    """The base, and two versions that answered after it; on an engine that can load them."""
    ready = {"base_sha256": "b" * 64, "status": Adapter.Status.READY}
    rows = [Adapter.objects.create(name=f"adapter-{n}-aaaaaa", sha256=str(n) * 64, **ready) for n in (1, 2)]
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        for row in rows:
            adapters.publish(row)
        yield [adapters.base(), *rows]


@pytest.mark.parametrize("page", ["admin:index", "admin:training_run_change"])
def test_it_rolls_back_once_from_two_pages(admin_client: Client, run: Run, versions: list[Adapter], page: str) -> None:
    Run.objects.filter(pk=run.pk).update(adapter=versions[2], status=Run.Status.SUCCEEDED)
    content = admin_client.get(reverse(page, args=[run.pk] if page != "admin:index" else [])).content.decode()
    assert reverse("admin:training_run_rollback") in content
    shown = re.findall(r'name="generation" value="(.*?)"', content)
    assert shown == ["3"]
    answers = [
        admin_client.post(reverse("admin:training_run_rollback"), {"generation": shown[0]}, follow=True)
        for _administrator in range(2)
    ]
    assert b"answers in chat again" in answers[0].content
    assert b"moved meanwhile" in answers[1].content
    assert adapters.current() == versions[1]


@pytest.mark.parametrize("posted", [{}, {"generation": ""}, {"generation": "x"}, {"generation": "9" * 5000}])
def test_it_rolls_nothing_back_without_the_generation(
    admin_client: Client, versions: list[Adapter], posted: dict[str, str]
) -> None:
    answer = admin_client.post(reverse("admin:training_run_rollback"), posted, follow=True)
    assert b"moved meanwhile" in answer.content
    assert adapters.current() == versions[2]


def test_it_offers_to_test_a_rejected_version_again(admin_client: Client, run: Run) -> None:
    rejected = finished(run, is_passed=True)
    Adapter.objects.update(status=Adapter.Status.REJECTED)
    content = admin_client.get(reverse("admin:training_run_change", args=[rejected.pk])).content
    assert b"refused by the self-test" in content
    assert b"Test again and publish" in content
