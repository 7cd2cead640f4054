"""The pages of import and export, and who may open them."""

import csv
import io
import json
import uuid

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connections
from django.http import HttpResponseBase
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils import timezone

from labeling import exchange, intake
from labeling.formats.records import make as make_record
from labeling.formats.records import ranked
from labeling.models import Campaign, Import, Prompt
from tests.labeling import make

pytestmark = pytest.mark.django_db
LINES = "\n".join(json.dumps({"prompt": f"Why {n}?", "responses": ["So.", "Thus."]}) for n in range(3))


@pytest.fixture(autouse=True)
def _own_folder(settings, tmp_path):
    settings.ARTIFACTS_DIR = tmp_path


@pytest.fixture
def campaign() -> Campaign:
    return make.campaign()


@pytest.fixture
def manager(client: Client, campaign: Campaign) -> User:
    user = make.person("manager", campaign, role="manager")
    client.force_login(user)
    return user


def upload(campaign: Campaign, user: User, content: str = LINES) -> Import:
    return exchange.upload(campaign, user, uuid.uuid4(), SimpleUploadedFile("x.jsonl", content.encode()), make.NOW)


PAGES = [
    ("campaign_import", "get"), ("campaign_import", "post"), ("import_detail", "get"), ("import_start", "post"),
    ("import_discard", "post"), ("import_problems", "get"), ("campaign_export", "get"), ("export_file", "get"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), PAGES)
@pytest.mark.parametrize(("who", "status"), [
    ("nobody", 302), ("annotator", 403), ("reviewer", 403), ("manager of another", 404), ("somebody", 404),
])  # fmt: skip
def test_it_lets_in_managers_of_the_campaign_only(client, campaign, name, method, who, status):
    row = upload(campaign, make.person())
    other = make.campaign("dogs")
    user = {
        "annotator": lambda: make.person("", campaign),
        "reviewer": lambda: make.person("", campaign, role="reviewer"),
        "manager of another": lambda: make.person("", other, role="manager"),
        "somebody": make.person,
    }.get(who, lambda: None)()
    if user:
        client.force_login(user)
    args = [campaign.slug, row.pk] if name.startswith("import_") else [campaign.slug]
    answer = getattr(client, method)(reverse(name, args=args), {"format": "lines", "on_warning": "keep"})
    assert answer.status_code == status
    assert status != 302 or answer.url.startswith(reverse("login"))
    assert list(Import.objects.values_list("options", flat=True)) == [{}]


@pytest.mark.parametrize("name", ["import_detail", "import_start", "import_discard", "import_problems"])
def test_it_does_not_find_the_import_of_another_campaign(client, manager, name):
    row = upload(make.campaign("dogs"), manager)
    send = client.post if name in ("import_start", "import_discard") else client.get
    assert send(reverse(name, args=["cats", row.pk])).status_code == 404


def test_it_leads_from_the_upload_over_the_preview_to_the_report(client, manager, campaign):
    file = SimpleUploadedFile("pairs.jsonl", f"{LINES}\nbroken".encode())
    page = client.get(reverse("campaign_import", args=["cats"]))
    key = page.context["form"].initial["client_key"]
    answer = client.post(reverse("campaign_import", args=["cats"]), {"client_key": key, "file": file})
    row = Import.objects.get()
    assert answer.url == reverse("import_detail", args=["cats", row.pk])
    preview = client.get(answer.url).content.decode()
    assert "Why 0?" in preview
    assert "would be refused" in preview
    assert not Prompt.objects.exists()
    client.post(reverse("import_start", args=["cats", row.pk]), {"format": "lines", "on_warning": "keep"})
    waiting = client.get(answer.url).content.decode()
    assert 'hx-trigger="every 2s"' in waiting
    exchange.run(row.pk, timezone.now())
    report = client.get(answer.url).content.decode()
    assert "hx-trigger" not in report
    assert "not valid JSON" in report
    assert "pairs.jsonl" in client.get(reverse("campaign_import", args=["cats"])).content.decode()
    assert Prompt.objects.count() == 3


def test_it_asks_for_the_progress_alone(client, manager, campaign):
    row = upload(campaign, manager)
    exchange.start(row, "lines", "keep")
    content = client.get(
        reverse("import_detail", args=["cats", row.pk]), headers={"HX-Request": "true"}
    ).content.decode()
    assert content.strip().startswith("<section")
    assert "<html" not in content
    exchange.run(row.pk, timezone.now())
    over = client.get(reverse("import_detail", args=["cats", row.pk]), headers={"HX-Request": "true"})
    assert over.headers["HX-Refresh"] == "true"


def test_it_previews_another_format(client, manager, campaign):
    row = upload(campaign, manager)
    address = reverse("import_detail", args=["cats", row.pk])
    assert "chosen" in client.get(address, {"format": "preference"}).content.decode()
    assert client.get(address, {"format": "../../etc"}).status_code == 200


@pytest.mark.parametrize(("content", "why"), [
    (b"", "This file is empty."),
    (b"PK\x03\x04", "Unpack it"),
    (b"words", "no CSV header"),
    (None, "Choose a file first."),
])  # fmt: skip
def test_it_says_why_a_file_is_not_taken(client, manager, content, why):
    data: dict[str, object] = {"client_key": str(uuid.uuid4())}
    if content is not None:
        data["file"] = SimpleUploadedFile("x", content)
    answer = client.post(reverse("campaign_import", args=["cats"]), data)
    assert answer.status_code == 422
    assert why in answer.content.decode()
    assert not Import.objects.exists()


def test_it_shows_hostile_records_as_text(client, manager, campaign):
    attack = "<script>alert(1)</script>"
    line = {"prompt": attack, "responses": [{"text": attack, "generator": attack}, "b"]}
    line["judgments"] = [{"ranks": [1, 2], "annotator": attack, "rationale": attack}]
    row = upload(campaign, manager, json.dumps(line))
    Import.objects.filter(pk=row.pk).update(filename=attack)
    for address in (reverse("import_detail", args=["cats", row.pk]), reverse("campaign_import", args=["cats"])):
        assert "<script>alert" not in client.get(address).content.decode()


def test_it_throws_an_upload_away(client, manager, campaign):
    row = upload(campaign, manager)
    client.post(reverse("import_discard", args=["cats", row.pk]))
    assert not Import.objects.exists()
    assert not exchange.path(row).exists()


def test_it_starts_with_a_known_format_only(client, manager, campaign):
    row = upload(campaign, manager)
    answer = client.post(
        reverse("import_start", args=["cats", row.pk]), {"format": "x", "on_warning": "keep"}, follow=True
    )
    assert "Choose one of the formats" in answer.content.decode()
    assert Import.objects.get().options == {}


def test_it_offers_the_problems_as_a_table(client, manager, campaign):
    row = upload(campaign, manager, f'{LINES}\n{{"=1+1": 1}}\n')
    exchange.start(row, "lines", "keep")
    exchange.run(row.pk, timezone.now())
    answer = client.get(reverse("import_problems", args=["cats", row.pk]))
    header, problem = csv.reader(io.StringIO(answer.content.decode("utf-8-sig"), newline=""))
    assert header == ["line", "is_refused", "why", "excerpt"]
    assert problem[:2] == ["4", "True"]


def judge(campaign: Campaign) -> None:
    vote = ranked((1, 2), annotator="ida")
    intake.store(campaign, [make_record("Why?", [("So.", ""), ("Thus.", "")], [vote])])


async def body(answer: HttpResponseBase) -> bytes:
    return b"".join([chunk async for chunk in answer.streaming_content])  # type: ignore[attr-defined]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
async def test_it_streams_the_file(async_client: AsyncClient, format):
    campaign = await Campaign.objects.acreate(name="Cats", slug="cats")
    manager = await User.objects.acreate(username="m", is_staff=True)
    await sync_to_async(judge)(campaign)
    await async_client.aforce_login(manager)
    query = {"kind": "judgments", "format": format, "with_names": "on"}
    answer = await async_client.get(reverse("export_file", args=["cats"]), query)
    assert answer.status_code == 200
    assert f"cats-judgments-{timezone.now():%Y-%m-%d}.{format}" in answer.headers["Content-Disposition"]
    content = await body(answer)
    assert b"import-" in content or format == "parquet"
    assert format != "parquet" or content.endswith(b"PAR1")
    await sync_to_async(connections.close_all)()


def test_it_shows_what_can_be_exported(client, manager, campaign):
    judge(campaign)
    page = client.get(reverse("campaign_export", args=["cats"])).content.decode()
    assert "1 judgment can be learned from" in page
    assert "Unpaired preference" in page


@pytest.mark.parametrize("query", [{"kind": "x"}, {"format": "xlsx"}, {"ties": "maybe"}])
def test_it_leads_back_from_an_export_that_there_is_none_of(client, manager, query):
    answer = client.get(reverse("export_file", args=["cats"]), query)
    assert answer.url == reverse("campaign_export", args=["cats"])
