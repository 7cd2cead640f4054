"""The matrix of test_access_matrix.py: who may use which address, and a world to try it in.

One line per address. Codes stand in the order of PEOPLE; L is the way to the login page; one code stands for all. What
belongs to one person (lease, judgment, conversation, key) is Anna's, the annotator of the campaign `cats`: for everybody
else, also for administrators, it does not exist.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from labeling import accounts
from labeling.models import (
    Campaign,
    Guidelines,
    Import,
    Invitation,
    Judgment,
    Lease,
    Preferences,
    Retraction,
    Statistics,
)
from serving import adapters, keys, requests
from serving.models import Adapter, ApiKey, Conversation, DeploymentEvent, Message
from tests.labeling import make
from tests.serving import folders
from training.models import Policy, RewardModel, Run, Scoring, Snapshot

PEOPLE = ("anonymous", "outsider", "neighbour", "annotator", "reviewer", "manager", "staff", "root")
ACTIONS = ("changelist", "add", "history", "delete", "change")
UNNAMED = {"admin/login/", "admin/(?P<url>.*)$"}


@dataclass
class World:
    people: dict[str, User]
    campaign: Campaign
    lease: Lease  # all from here on are Anna's
    judgment: Judgment
    talk: Conversation
    question: Message  # answered twice
    answers: list[Message]
    reply: Message  # to a question answered once
    key: ApiKey
    rows: dict[str, Model] = field(default_factory=dict)  # one of each model of the admin


class Row(NamedTuple):
    get: str
    post: str
    args: Callable[[World], list[Any]] = lambda world: []
    body: Callable[[World], dict[str, Any]] = lambda world: {}
    others: dict[str, str] = {}  # by method, where there is more than GET and POST


def told(codes: str) -> dict[str, str]:
    """Person → code."""
    each = codes.split()
    return dict(zip(PEOPLE, each * len(PEOPLE) if len(each) == 1 else each, strict=True))


def anna(code: str, *, others: str = "404", stranger: str = "L") -> str:
    return " ".join([stranger, others, others, code, *[others] * 4])


# --- the matrix -------------------------------------------------------------------------------------------------------
def _judgment(world: World) -> dict[str, Any]:
    return {"client_key": uuid.uuid4(), "verdict": "tie", "order": world.lease.order}


def slug(world: World) -> list[Any]:
    return [world.campaign.slug]


def talk(world: World) -> list[Any]:
    return [world.talk.pk]


def answer(world: World) -> list[Any]:
    return [world.reply.pk]


def lease(world: World) -> list[Any]:
    return [world.lease.pk]


def key(world: World) -> list[Any]:
    return [world.key.pk]


def of_campaign(*more: Any) -> Callable[[World], list[Any]]:
    return lambda world: [world.campaign.slug, *more]


def comparison(world: World) -> list[Any]:
    return [world.judgment.comparison_id]


def dispute(world: World) -> list[Any]:
    return [world.campaign.slug, world.judgment.comparison_id]


def upload(world: World) -> list[Any]:
    made = {"filename": "a.jsonl", "created_by": world.people["manager"], "created_at": timezone.now()}
    return [Import.objects.get_or_create(campaign=world.campaign, client_key=uuid.UUID(int=7), defaults=made)[0].pk]


def prompt(world: World) -> list[Any]:
    return [world.judgment.comparison.prompt_id]


def annotator(world: World) -> list[Any]:
    return [world.campaign.slug, world.people["annotator"].pk]


def membership(world: World) -> list[Any]:
    return [world.campaign.slug, world.campaign.memberships.get(user=world.people["reviewer"]).pk]


def retraction(world: World) -> list[Any]:
    made = {"annotator": world.people["annotator"], "by": world.people["manager"], "at": timezone.now()}
    return [
        world.campaign.slug,
        Retraction.objects.get_or_create(campaign=world.campaign, reason="x", defaults=made)[0].pk,
    ]


def row_of(model: str) -> Callable[[World], list[Any]]:
    return lambda world: [world.rows[model].pk]


def json_of(**body: Any) -> Callable[[World], dict[str, Any]]:
    return lambda world: body


LOGGED_IN = "L 200 200 200 200 200 200 200"
MEMBERS = "L 404 404 200 200 200 200 200"
NO_PAGE = "L 405 405 405 405 405 405 405"  # the method is not allowed, which strangers are not told
NO_ENDPOINT = "401 405 405 405 405 405 405 405"
API_MEMBERS = "401 404 404 200 200 200 200 200"
API_ANNA = {"stranger": "401"}
PAIR = {"prompt": "Why?", "responses": [{"text": "a"}, {"text": "b"}]}
OWN = "401 200 200 200 200 200 200 200"
MANAGERS = "L 404 404 403 403 200 200 200"
REVIEWERS = "L 404 404 403 200 200 200 200"
GOLD = "401 404 404 404 404 204 204 204"
API_MANAGERS = "401 404 404 403 403 200 200 200"
ADMINS = "L L L L L L 200 200"
ROOT = "L L L L L L 403 200"
NO_ADMIN_PAGE = "L L L L L L 405 405"

MATRIX: dict[str, Row] = {
    # open to all
    "healthz": Row("200", "200"),
    "login": Row("200", "200"),
    "logout": Row("405", "L"),
    "invitation": Row("404 409 409 409 409 409 409 409", "404 409 409 409 409 409 409 409", lambda world: ["x"]),
    # own account
    "password_change": Row(LOGGED_IN, LOGGED_IN),
    "password_change_done": Row(LOGGED_IN, NO_PAGE),
    "api_schema": Row("401 200 200 200 200 200 200 200", NO_ENDPOINT),
    "api_docs": Row(LOGGED_IN, NO_PAGE),
    "api_keys": Row(LOGGED_IN, LOGGED_IN),
    "api_key_rotate": Row(NO_PAGE, anna("200"), key),
    "api_key_revoke": Row(NO_PAGE, anna("302"), key),
    # labeling
    "home": Row(LOGGED_IN, "405"),
    "label": Row(MEMBERS, "405", slug),
    "lease_claim": Row(NO_ENDPOINT, API_MEMBERS, slug),
    "import_pairs": Row(NO_ENDPOINT, "401 404 404 403 403 201 201 201", slug, json_of(pairs=[PAIR])),
    "lease_renew": Row(NO_ENDPOINT, anna("200", **API_ANNA), lease),
    "lease_release": Row(NO_ENDPOINT, anna("204", **API_ANNA), lease),
    "judgment_create": Row(
        OWN, anna("201", **API_ANNA), body=lambda world: {**_judgment(world), "lease": world.lease.pk}
    ),
    "judgment_revise": Row(
        NO_ENDPOINT,
        anna("201", **API_ANNA),
        body=lambda world: {**_judgment(world), "judgment": world.judgment.client_key, "order": world.judgment.order},
    ),
    "judgment_undo": Row(
        NO_ENDPOINT, anna("200", **API_ANNA), body=lambda world: {"client_key": world.judgment.client_key}
    ),
    "chat_comparison": Row(
        NO_ENDPOINT,
        anna("201", others="400", **API_ANNA),
        body=lambda world: {
            "messages": [message.pk for message in world.answers],
            "client_key": uuid.uuid4(),
            "verdict": "tie",
        },
    ),
    "own_preferences": Row(OWN, NO_ENDPOINT, others={"patch": OWN}),
    "chat_consent": Row(OWN, NO_ENDPOINT, others={"put": OWN.replace("200", "400")}),  # nothing said
    "chat_rating": Row(NO_ENDPOINT, OWN.replace("200", "400")),  # nothing said
    "preferences": Row(LOGGED_IN, LOGGED_IN),
    "my_statistics": Row(LOGGED_IN, "405"),
    # a campaign by the API; 400 and 404 stand for those who may, but said nothing, or ask for what was not made yet
    "campaign_list": Row(OWN, "401 403 403 403 403 400 400 400"),
    "campaign_detail": Row(API_MEMBERS, NO_ENDPOINT, slug, others={"patch": API_MANAGERS}),
    "guidelines_list": Row(API_MEMBERS, API_MANAGERS.replace("200", "400"), slug),
    "member_list": Row(API_MANAGERS, NO_ENDPOINT, slug),
    "member_detail": Row(
        NO_ENDPOINT,
        NO_ENDPOINT,
        of_campaign("rita"),
        others={"put": API_MANAGERS.replace("200", "400"), "delete": API_MANAGERS.replace("200", "204")},
    ),
    "prompt_list": Row(API_MANAGERS, API_MANAGERS.replace("200", "400"), slug),
    "prompt_responses": Row("401 404 404 404 404 200 200 200", "401 404 404 404 404 400 400 400", prompt),
    "campaign_responses": Row(API_MANAGERS, NO_ENDPOINT, slug),
    "comparison_list": Row(API_MEMBERS, API_MANAGERS.replace("200", "400"), slug),
    "comparison_detail": Row(API_MEMBERS, NO_ENDPOINT, comparison),
    "comparison_gold": Row(
        NO_ENDPOINT, NO_ENDPOINT, comparison, others={"put": OWN.replace("200", "400"), "delete": GOLD}
    ),
    "comparison_decide": Row(NO_ENDPOINT, "401 404 404 403 404 404 404 404", comparison),
    "campaign_judgments": Row(API_MANAGERS, NO_ENDPOINT, slug),
    "campaign_statistics": Row(API_MANAGERS, NO_ENDPOINT, slug),
    "import_list": Row(API_MANAGERS, API_MANAGERS.replace("200", "415"), slug),  # a file is wanted
    "import_status": Row("401 404 404 404 404 200 200 200", NO_ENDPOINT, upload),
    "import_problem_list": Row("401 404 404 404 404 200 200 200", NO_ENDPOINT, upload),
    "api_export": Row(API_MANAGERS, NO_ENDPOINT, of_campaign("preference")),
    "api_nothing_here": Row("404", "404", lambda world: ["x"]),
    # a campaign's own pages
    "campaign_dashboard": Row(MANAGERS, "405", slug),
    "campaign_annotators": Row(MANAGERS, "405", slug),
    "campaign_annotator": Row(MANAGERS, "405", annotator),
    "campaign_leaderboard": Row(REVIEWERS, "405", slug),
    "campaign_disputes": Row(REVIEWERS, "405", slug),
    "adjudicate": Row(REVIEWERS, REVIEWERS.replace("200", "422"), dispute),
    "decision_undo": Row("405", "L 404 404 403 404 404 404 404", dispute),
    "gold_set": Row("405", REVIEWERS.replace("200", "302"), dispute),
    "campaign_gold": Row(REVIEWERS, "405", slug),
    "campaign_import": Row(MANAGERS, MANAGERS.replace("200", "422"), slug),
    "import_detail": Row(MANAGERS.replace("200", "404"), "405", of_campaign(1)),
    "import_start": Row("405", MANAGERS.replace("200", "404"), of_campaign(1)),
    "import_discard": Row("405", MANAGERS.replace("200", "404"), of_campaign(1)),
    "import_problems": Row(MANAGERS.replace("200", "404"), "405", of_campaign(1)),
    "campaign_export": Row(MANAGERS, "405", slug),
    "export_file": Row(MANAGERS, "405", slug),
    "campaign_settings": Row(MANAGERS, MANAGERS, slug),
    "campaign_delete": Row("405", "L 404 404 403 403 403 302 302", slug),
    "campaign_guidelines": Row(MANAGERS, MANAGERS, slug),
    "guidelines_version": Row(MANAGERS.replace("200", "404"), "405", of_campaign(1)),
    "campaign_members": Row(MANAGERS, MANAGERS, slug),
    "member_invite": Row("405", MANAGERS.replace("200", "422"), slug),
    "member_change": Row("405", MANAGERS.replace("200", "302"), membership),
    "invitation_revoke": Row("405", MANAGERS.replace("200", "404"), of_campaign(1)),
    "campaign_retractions": Row(MANAGERS, "405", slug),
    "retraction_start": Row(MANAGERS.replace("200", "404"), MANAGERS.replace("200", "404"), slug),  # of nothing
    "retraction_detail": Row(MANAGERS, "405", retraction),
    "run_again": Row(
        "405",
        "L 403 403 403 403 403 403 302",  # back to the page: it learned nothing of it
        lambda world: [*retraction(world), world.rows["training.run"].pk],
    ),
    "reward_model_put_away": Row(
        "405",
        "L 403 403 403 403 403 403 302",  # likewise
        lambda world: [*retraction(world), world.rows["training.rewardmodel"].pk],
    ),
    # models, for programs: a session is no key
    "v1_chat_completions": Row("405", "401"),
    "v1_completions": Row("405", "401"),
    "v1_models": Row("401", "405"),
    "v1_model": Row("401", "405", lambda world: ["current"]),
    "v1_nothing_here": Row("404", "404"),
    # chat
    "chat": Row(LOGGED_IN, NO_PAGE),
    "chat_current": Row(LOGGED_IN, NO_PAGE),
    "chat_versions": Row(LOGGED_IN, NO_PAGE),
    "chat_context": Row(LOGGED_IN, NO_PAGE),
    "chat_settings": Row(NO_PAGE, LOGGED_IN, body=json_of(seed=1)),
    "conversations": Row(LOGGED_IN, NO_PAGE),
    "chat_start": Row(NO_PAGE, LOGGED_IN.replace("200", "201"), body=json_of(content="Hello?")),
    "conversation": Row(anna("200"), NO_PAGE, talk),
    "message_create": Row(
        NO_PAGE, anna("201"), talk, lambda world: {"content": "More?", "parent": str(world.reply.pk)}
    ),
    "conversation_rename": Row(NO_PAGE, anna("200"), talk, json_of(title="Cats")),
    "conversation_delete": Row(NO_PAGE, anna("302"), talk),
    "conversation_settings": Row(NO_PAGE, anna("200"), talk, json_of(seed=1)),
    "conversation_json": Row(anna("200"), NO_PAGE, talk),
    "conversation_markdown": Row(anna("200"), NO_PAGE, talk),
    "message": Row(anna("200"), NO_PAGE, answer),
    "message_stream": Row(anna("200"), NO_PAGE, answer),
    "message_stop": Row(NO_PAGE, anna("200"), answer),
    "message_regenerate": Row(NO_PAGE, anna("201"), answer),
    "message_challenge": Row(NO_PAGE, anna("201"), answer),
    "message_continue": Row(NO_PAGE, anna("400"), answer),  # it is complete
    "message_go_on": Row(NO_PAGE, anna("200"), answer),
    "message_versions": Row(anna("200"), NO_PAGE, answer),
    "message_version_stream": Row(NO_PAGE, anna("200"), lambda world: [world.reply.pk, world.reply.adapter_id]),
    "message_rate": Row(NO_PAGE, anna("200"), answer, json_of(rating=1)),
    "comparison_choose": Row(
        NO_PAGE, anna("200"), lambda world: [world.question.pk], json_of(choice="left", client_key="1")
    ),
    # the admin: pages that are of no model, and what can be done with one row
    "admin:index": Row(ADMINS, ADMINS),
    "admin:login": Row("L", "L"),
    "admin:logout": Row("302 302 302 302 302 302 405 405", "302 302 302 302 302 302 L L"),
    "admin:jsi18n": Row(ADMINS, NO_ADMIN_PAGE),
    "admin:password_change": Row(ADMINS, ADMINS),
    "admin:password_change_done": Row(ADMINS, NO_ADMIN_PAGE),
    "admin:search": Row(ADMINS, ADMINS),
    "admin:autocomplete": Row("L L L L L L 403 403", NO_ADMIN_PAGE),
    "admin:view_on_site": Row("L L L L L L 404 404", "L L L L L L 404 404", lambda world: [0, 0]),
    "admin:app_list": Row("L L L L L L 404 200", "L L L L L L 404 200", lambda world: ["labeling"]),
    "admin:auth_user_password_change": Row(ROOT, ROOT, row_of("auth.user")),
    "admin:serving_adapter_publish": Row(ROOT, ROOT, row_of("serving.adapter")),
    **{
        f"admin:serving_deployment_{action}": Row(ROOT, ROOT, row_of("serving.deployment"))
        for action in ("roll_back", "start_canary", "change_canary", "promote_canary", "stop_canary", "remove_alias")
    },
    "admin:training_rewardmodel_use": Row(ROOT, ROOT, row_of("training.rewardmodel")),
    "admin:training_run_rollback": Row(NO_ADMIN_PAGE, ROOT.replace("200", "302")),
    "admin:training_run_live": Row(ROOT, NO_ADMIN_PAGE, row_of("training.run")),
    **{
        f"admin:training_run_{name}": Row(ROOT, NO_ADMIN_PAGE, row_of("training.run"))
        for name in ("curves", "csv", "jsonl")
    },
    "admin:training_run_events": Row(ROOT.replace("200", "204"), NO_ADMIN_PAGE, row_of("training.run")),  # under WSGI
    "admin:training_run_compare": Row(ROOT.replace("200", "302"), NO_ADMIN_PAGE),  # of no runs: back to the list
    "admin:training_run_estimate": Row(ROOT.replace("200", "404"), NO_ADMIN_PAGE),  # of no campaign
    "admin:training_lineage": Row(ROOT, NO_ADMIN_PAGE, lambda world: ["run", world.rows["training.run"].pk]),
    "admin:training_run_annotate": Row(NO_ADMIN_PAGE, ROOT.replace("200", "302"), row_of("training.run")),
    "admin:training_run_cancel": Row(NO_ADMIN_PAGE, ROOT.replace("200", "302"), row_of("training.run")),
    "admin:training_run_retry": Row(NO_ADMIN_PAGE, ROOT.replace("200", "302"), row_of("training.run")),
    "admin:training_run_publish": Row(NO_ADMIN_PAGE, ROOT.replace("200", "404"), row_of("training.run")),
}
# What the superuser may do with the rows of each model; all can be listed and looked at.
ADMIN: dict[str, str] = {
    "auth.user": "add change delete",
    "auth.group": "add change delete",
    "axes.accessattempt": "change delete",
    "axes.accesslog": "change delete",
    "axes.accessfailurelog": "change delete",
    "django_celery_beat.crontabschedule": "add change delete",
    "django_celery_beat.intervalschedule": "add change delete",
    "django_celery_beat.periodictask": "add change delete",
    "labeling.campaign": "add change",  # deleted on its settings page
    "labeling.invitation": "add delete",
    "labeling.comparison": "",
    "labeling.guidelines": "",
    "labeling.import": "",
    "labeling.judgment": "",
    "labeling.prompt": "add change delete",
    "labeling.statistics": "",
    "serving.adapter": "",
    "serving.apikey": "change",  # its limits
    "serving.deployment": "",
    "serving.deploymentevent": "",
    "serving.servedrequest": "",
    "training.policy": "add change delete",
    "training.rewardmodel": "",
    "training.run": "add",
    "training.scoring": "",
    "training.snapshot": "",
}


# --- the world --------------------------------------------------------------------------------------------------------
def described_model(folder: Path) -> Path:
    """A model's folder with its card only."""
    (folder / "alignapp-model.json").write_text(json.dumps({"sha256": folders.BASE_SHA256}))
    return folder


def make_world() -> World:
    """Anna holds a lease, has judged, chats and has a key; Ben labels in another campaign."""
    cats, dogs = make.campaign("cats"), make.campaign("dogs")
    people = {
        "outsider": make.person("otto"),
        "neighbour": make.person("ben", dogs),
        "annotator": make.person("anna", cats),
        "reviewer": make.person("rita", cats, role="reviewer"),
        "manager": make.person("mia", cats, role="manager"),
        "staff": make.person("stan", is_staff=True),
        "root": make.person("root", is_staff=True, is_superuser=True),
    }
    owner, now = people["annotator"], timezone.now()
    for person in people.values():
        Preferences.objects.create(user=person, chat_consent_at=now)
    judged = make.judge(make.lease(make.comparison(cats), owner, now), at=now)
    held = make.lease(make.comparison(cats), owner, now)
    key_of_anna, _ = keys.create(owner, "nightly", list(keys.SCOPES), now)
    world = World(people, cats, held, judged, *_chat(owner), key_of_anna)
    world.rows = _rows(world)
    return world


def _chat(owner: User) -> tuple[Conversation, Message, list[Message], Message]:
    conversation = Conversation.objects.create(owner=owner)
    question = Message.objects.create(conversation=conversation, role="user", content="Why?")
    said = {"conversation": conversation, "parent": question, "role": "assistant", "adapter": adapters.base()}
    answers = [Message.objects.create(**said, content=text) for text in ("Because.", "It depends.")]
    question.comparison = {"left": str(answers[0].pk), "right": str(answers[1].pk), "client_key": "1"}
    question.save()
    other = Message.objects.create(conversation=conversation, role="user", content="How?")
    reply = Message.objects.create(conversation=conversation, parent=other, role="assistant", adapter=adapters.base())
    return conversation, question, answers, reply


def _rows(world: World) -> dict[str, Model]:
    root, now = world.people["root"], timezone.now()
    deployment = adapters.deployment()
    invitation = Invitation(role="annotator", expires_at=now + accounts.VALID_FOR)
    accounts.prepare(invitation, root)
    invitation.save()
    snapshot = Snapshot.objects.create(
        campaign=world.campaign, sha256="5" * 64, counts={"train": 1, "heldout": 0, "judgments": 1}
    )
    interval = IntervalSchedule.objects.create(every=1, period="days")
    version = Adapter.objects.create(name="adapter-9-aaaaaa", sha256="a" * 64, base_sha256=folders.BASE_SHA256)
    run = Run.objects.create(campaign=world.campaign, snapshot=snapshot, method="dpo", status="failed")
    reward_model = RewardModel.objects.create(campaign=world.campaign, run=run, sha256="6" * 64, is_passed=False)
    elsewhere = Campaign.objects.create(name="Elsewhere", slug="elsewhere", status="closed")
    rows = [
        root, Group.objects.create(name="helpers"), world.campaign, world.judgment, world.judgment.comparison.prompt,
        invitation, version, deployment, world.key, snapshot, interval,
        DeploymentEvent.objects.create(alias="current", generation=99, adapter=version),
        requests.record(requests.Served("page", version)),
        run, reward_model, Scoring.objects.create(reward_model=reward_model, status="failed"),
        Policy.objects.create(campaign=world.campaign),
        world.judgment.comparison,
        Guidelines.objects.create(campaign=world.campaign, number=99, created_at=now),
        Import.objects.create(campaign=elsewhere, created_by=root, filename="x", format="csv", created_at=now),
        Statistics.objects.create(campaign=world.campaign, computed_at=now),
        CrontabSchedule.objects.create(), PeriodicTask.objects.create(name="x", task="x", interval=interval),
        AccessAttempt.objects.create(username="x", failures_since_start=1),
        AccessLog.objects.create(username="x"), AccessFailureLog.objects.create(username="x"),
    ]  # fmt: skip
    return {row._meta.label_lower: row for row in rows}
