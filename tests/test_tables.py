"""What a test has committed is gone before the next begins."""

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.db import models

from tests import tables
from tests.labeling import make


def _counts() -> dict[type[models.Model], int]:
    every = apps.get_models(include_auto_created=True)
    return {model: n for model in every if (n := model._base_manager.count())}


@pytest.mark.django_db(transaction=True)
def test_it_leaves_only_what_migrating_makes() -> None:
    campaign = make.campaign()
    ada = make.person("ada", campaign)
    ada.groups.add(Group.objects.create(name="readers"))
    make.judge(make.lease(make.comparison(campaign), ada))
    before = _counts()
    assert len(before) > 10  # of tables that refer to each other
    tables.empty()
    assert _counts() == {model: before[model] for model in (ContentType, Permission)}
