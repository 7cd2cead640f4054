import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from pytest_django import Settings

from alignapp import installation
from labeling.models import Campaign


@pytest.mark.django_db
def test_it_makes_the_first_administrator_with_a_random_password() -> None:
    made = installation.ensure_administrator("root", "")
    assert made is not None
    assert len(made.password) >= 16
    assert User.objects.get(username="root").check_password(made.password)
    assert User.objects.get(username="root").is_superuser


@pytest.mark.django_db
def test_it_takes_the_given_password_and_never_shows_it() -> None:
    assert installation.ensure_administrator("root", "given by hand") == installation.Administrator("root", "")
    assert User.objects.get(username="root").check_password("given by hand")


@pytest.mark.django_db
@pytest.mark.parametrize("password", ["password123", "administrator", "1234567"])
def test_it_refuses_a_weak_password_in_production(settings: Settings, password: str) -> None:
    settings.IS_PRODUCTION, settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD = True, "administrator", password
    with pytest.raises(CommandError, match=r"^Set ADMIN_PASSWORD to a better one: "):
        call_command("prepare")
    assert not User.objects.exists()


@pytest.mark.django_db
def test_it_takes_a_strong_password_in_production(settings: Settings) -> None:
    settings.IS_PRODUCTION = True
    assert installation.ensure_administrator("root", "qx7LMwB0aT4vZ1Kc") is not None


@pytest.mark.django_db
def test_it_leaves_administrators_alone_once_there_is_one() -> None:
    User.objects.create_superuser("first", password="theirs")
    assert installation.ensure_administrator("root", "given by hand") is None
    assert list(User.objects.values_list("username", flat=True)) == ["first"]


@pytest.mark.django_db
def test_it_can_be_repeated() -> None:
    assert installation.prepare() is not None
    n_campaigns = Campaign.objects.count()
    assert n_campaigns > 0
    assert installation.prepare() is None
    assert (Campaign.objects.count(), User.objects.filter(is_superuser=True).count()) == (n_campaigns, 1)


@pytest.mark.django_db
def test_it_sees_that_nothing_is_left_to_migrate() -> None:
    assert installation.n_pending_migrations() == 0
