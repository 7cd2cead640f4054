from collections.abc import Callable

import pytest

from serving import adapters, picker
from serving.models import Adapter, Deployment

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]


def words(row: Adapter) -> list[str]:
    return [word for word, _kind in picker.badges(row, adapters.deployment())]


def test_it_says_what_each_version_is_by_now(good_adapter: Maker) -> None:
    first, second, third, fourth = [good_adapter(seed) for seed in (1, 2, 3, 4)]
    for row in (first, second, third):
        adapters.publish(row)
    Adapter.objects.filter(pk=fourth.pk).update(status=Adapter.Status.READY)
    assert [words(row) for row in (adapters.base(), first, second, third, fourth)] == [
        [], [], ["previous"], ["current"], ["candidate"],
    ]  # fmt: skip
    Deployment.objects.update(canary=fourth, canary_share=0.25)
    assert words(fourth) == ["on trial for 25 %"]
    shown = [option.adapter for option in picker.options(adapters.deployment())]
    assert shown == [third, fourth, second, first, adapters.base()]


def test_it_offers_only_what_can_answer(good_adapter: Maker) -> None:
    rejected = good_adapter(1)
    Adapter.objects.filter(pk=rejected.pk).update(status=Adapter.Status.REJECTED)
    assert [option.adapter for option in picker.options(adapters.deployment())] == [adapters.base()]


def test_it_offers_the_base_and_what_is_current_however_many_versions_there_are(
    good_adapter: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = good_adapter(1)
    adapters.publish(old)
    newer = good_adapter(2)
    Adapter.objects.filter(pk=newer.pk).update(status=Adapter.Status.READY)
    monkeypatch.setattr(picker, "MAX_OPTIONS", 1)
    assert [option.adapter for option in picker.options(adapters.deployment())] == [old, adapters.base(), newer]


def test_it_says_in_words_what_changed(good_adapter: Maker) -> None:
    row = good_adapter(1)
    Adapter.objects.filter(pk=row.pk).update(notes="Learned from 212 judgments.\nPassed the gate.")
    adapters.publish(row)
    row.refresh_from_db()
    assert picker.describe(row) == [
        "Learned from 212 judgments.", "Passed the gate.", "Passed its checks on this server.",
    ]  # fmt: skip
    assert "before it learned" in picker.describe(adapters.base())[0]
