from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_django import Settings

from serving import adapters
from serving.models import Adapter, Deployment

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]


def test_it_resolves_aliases_and_names(good_adapter: Maker) -> None:
    row = good_adapter(1)
    base = adapters.base()
    assert {adapters.resolve(name).adapter for name in ("current", "base", base.name)} == {base}
    adapters.publish(row)
    assert adapters.resolve("current") == adapters.Choice(row, alias="current", is_canary=False)
    for name in (row.name, f"adapter-{row.pk}"):
        assert adapters.resolve(name, "somebody") == adapters.Choice(row, alias="", is_canary=False)


def test_it_does_not_resolve_what_may_not_answer(adapter: Maker) -> None:
    row = adapter(1)
    for name in ("nobody", row.name, f"adapter-{row.pk}", f"adapter-{adapters.base().pk}", "adapter-99", ""):
        with pytest.raises(adapters.UnknownModel):
            adapters.resolve(name)


def test_it_moves_an_alias_to_the_new_base(settings: Settings, good_adapter: Maker, base_model: Path) -> None:
    adapters.publish(good_adapter(1))
    (base_model / "alignapp-model.json").write_text('{"sha256": "' + "e" * 64 + '"}')
    assert adapters.current().name == "base-eeeeee"
    assert adapters.deployment().previous is None  # the old version can never answer again
    assert adapters.deployment().generation == 3


def on_trial(alias: str, share: float, canary: Adapter) -> Deployment:
    return Deployment(alias=alias, adapter=adapters.base(), canary=canary, canary_share=share)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.999, 1.0])
def test_it_gives_the_canary_its_share_of_conversations(base_model: Path, adapter: Maker, share: float) -> None:
    row = on_trial("current", share, adapter(1))
    n = 40_000
    n_canary = sum(adapters.choose(row, str(i)).is_canary for i in range(n))
    assert n_canary / n == pytest.approx(share, abs=0.01)
    assert share not in (0.0, 1.0) or n_canary == share * n


def test_it_keeps_conversations_on_the_canary_as_its_share_grows(base_model: Path, adapter: Maker) -> None:
    canary = adapter(1)
    row, more = on_trial("current", 0.1, canary), on_trial("current", 0.3, canary)
    early = {i for i in range(2000) if adapters.choose(row, str(i)).adapter == canary}
    assert early < {i for i in range(2000) if adapters.choose(more, str(i)).adapter == canary}


def test_it_tries_each_canary_on_other_conversations(base_model: Path, adapter: Maker) -> None:
    one, other = adapter(1), adapter(2)
    first, second = on_trial("current", 0.5, one), on_trial("current", 0.5, other)
    elsewhere = on_trial("beta", 0.5, one)
    chosen = [[adapters.choose(row, str(i)).is_canary for i in range(200)] for row in (first, second, elsewhere)]
    assert chosen[0] != chosen[1] != chosen[2] != chosen[0]


def test_it_asks_no_canary_for_nobody(base_model: Path, adapter: Maker) -> None:
    assert not adapters.choose(on_trial("current", 1.0, adapter(1)), "").is_canary
