"""Publishing on the real engine and the real model: what the scripted engine can only claim."""

from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from pytest_django import Settings

from serving import adapters, chat, database, writing
from serving.client import engines
from serving.models import Adapter, DeploymentEvent, Message
from tests.serving import real
from tests.serving.real import Maker, RealEngine, matrices

pytestmark = [pytest.mark.slow, pytest.mark.ml, pytest.mark.django_db(transaction=True)]
GREEDY = {"temperature": 0.0, "max_tokens": 48}


@pytest.fixture(scope="module")
def maker(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(model_dir, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def trained(maker: Maker, model_dir: Path) -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Two adapters: their matrices and their true probes."""
    made = {name: matrices(model_dir, seed) for seed, name in enumerate(("one", "two"))}
    return {name: (tensors, maker.probes(tensors, name)) for name, tensors in made.items()}


@pytest.fixture(scope="module")
def process(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    with real.running(model_dir, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def site(process: RealEngine, settings: Settings, model_dir: Path) -> Iterator[RealEngine]:
    with real.on(process, settings, model_dir) as engine:
        yield engine


@pytest.fixture
def registered(maker: Maker, trained: dict[str, Any], site: RealEngine, tmp_path: Path) -> Callable[[str], Adapter]:
    def register(name: str) -> Adapter:
        tensors, probes = trained[name]
        return adapters.register(maker.write(str(tmp_path / name), tensors=tensors, probes=probes))

    return register


def test_it_publishes_an_adapter_that_works_as_in_training(registered: Callable[[str], Adapter]) -> None:
    row = registered("one")
    adapters.publish(row)
    row.refresh_from_db()
    assert row.status == Adapter.Status.READY
    assert row.self_test["rms_expected"] > 0.1
    assert row.self_test["slope"] == pytest.approx(1, abs=0.1)
    assert row.self_test["correlation"] > 0.95
    assert adapters.current() == row


@pytest.mark.parametrize("fault", ["zeroed", "swapped", "scaled"])
def test_it_rejects_an_adapter_that_does_not(
    maker: Maker, trained: dict[str, Any], site: RealEngine, tmp_path: Path, fault: str
) -> None:
    tensors, probes = trained["one"]
    if fault == "zeroed":
        tensors = {name: value * ("lora_A" in name) for name, value in tensors.items()}
    if fault == "swapped":
        tensors = trained["two"][0]
    alpha = 4 if fault == "scaled" else 8  # half of what it was trained with
    row = adapters.register(maker.write(str(tmp_path / fault), tensors=tensors, probes=probes, alpha=alpha))
    with pytest.raises(adapters.NotServable):
        adapters.publish(row)
    assert Adapter.objects.get(pk=row.pk).status == Adapter.Status.REJECTED
    assert adapters.current().is_base


def asked(ada: User) -> Message:
    answer = chat.start(ada, "Tell me about the sea and the ships that sail on it.").children.get()
    Message.objects.filter(pk=answer.pk).update(sampling=GREEDY)
    return answer


async def read(answer: Message, meanwhile: Callable[[], Any] | None = None) -> str:
    """The whole answer; `meanwhile` runs once, after the fifth piece."""
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    n_pieces = 0
    async with aclosing(writing.write(claimed)) as texts:
        async for _text in texts:
            n_pieces += 1
            if n_pieces == 5 and meanwhile is not None:
                await sync_to_async(meanwhile)()
    await answer.arefresh_from_db()
    return answer.content


@pytest.mark.usefixtures("closed_connections")
async def test_it_finishes_on_the_old_version_token_for_token_while_the_alias_moves(
    registered: Callable[[str], Adapter], ada: User
) -> None:
    old, new = await sync_to_async(registered)("one"), await sync_to_async(registered)("two")
    await sync_to_async(adapters.publish)(old)
    undisturbed = await read(await sync_to_async(asked)(ada))
    disturbed = await read(await sync_to_async(asked)(ada), lambda: adapters.publish(new))
    assert len(undisturbed.split()) > 20
    assert disturbed == undisturbed
    after = await read(await sync_to_async(asked)(ada))
    assert after != undisturbed
    await sync_to_async(adapters.rollback)()
    assert await read(await sync_to_async(asked)(ada)) == undisturbed
    generations = [event.generation async for event in DeploymentEvent.objects.exclude(alias="").order_by("generation")]
    assert generations == [1, 2, 3, 4]


@pytest.mark.usefixtures("closed_connections")
async def test_it_survives_a_killed_engine(registered: Callable[[str], Adapter], site: RealEngine, ada: User) -> None:
    row = await sync_to_async(registered)("one")
    await sync_to_async(adapters.publish)(row)
    answer = await sync_to_async(asked)(ada)
    partial = await read(answer, site.kill)
    assert (answer.status, bool(partial)) == (Message.Status.FAILED, True)
    assert "stopped in the middle" in answer.error
    starting = await sync_to_async(asked)(ada)
    assert await read(starting) == ""
    assert "starting" in starting.error
    await sync_to_async(site.start)()
    await sync_to_async(adapters.reconcile)()
    assert row.name in await sync_to_async(engines()[0].models)()
    assert (await read(await sync_to_async(asked)(ada))).startswith(partial)
