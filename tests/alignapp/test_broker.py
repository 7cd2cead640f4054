import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection, Consumer, Producer, Queue

import alignapp.celery  # noqa: F401  registers the transport
from alignapp.broker import put_back_of_dead_consumers

QUEUE = Queue("numbers", routing_key="numbers")


def _connect(folder: Path, polling_interval: float = 0.001) -> Connection:
    return Connection("files://", transport_options={"folder": str(folder), "polling_interval": polling_interval})


def _publish(folder: Path, numbers: range) -> None:
    with _connect(folder) as connection, connection.channel() as channel:
        producer = Producer(channel)
        for number in numbers:
            producer.publish({"number": number}, routing_key="numbers", declare=[QUEUE])


def _consume(folder: Path, output: Path, n_expected: int) -> None:
    """Append every number that arrives to `output`, until all consumers together have `n_expected` lines."""
    with _connect(folder) as connection, output.open("a", buffering=1) as file:

        def receive(body: dict[str, int], message: Any) -> None:
            file.write(f"{body['number']}\n")
            message.ack()

        with Consumer(connection, [QUEUE], callbacks=[receive]):
            while len(_numbers(output.parent)) < n_expected:
                try:
                    connection.drain_events(timeout=0.05)
                except TimeoutError:
                    continue


def _numbers(folder: Path) -> list[int]:
    return [int(line) for file in folder.glob("*.out") for line in file.read_text().splitlines()]


def _files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Any]:
    with _connect(tmp_path) as connection, connection.channel() as channel:
        yield channel


def test_it_delivers_each_of_2000_messages_once_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = tmp_path / "results"
    results.mkdir()
    producers = [
        context.Process(target=_publish, args=(tmp_path / "broker", range(start, 2000, 2))) for start in range(2)
    ]
    consumers = [
        context.Process(target=_consume, args=(tmp_path / "broker", results / f"{i}.out", 2000)) for i in range(3)
    ]
    for process in producers + consumers:
        process.start()
    for process in producers + consumers:
        process.join()
    assert sorted(_numbers(results)) == list(range(2000))
    assert _files(tmp_path / "broker") == []


def test_it_keeps_the_order_of_one_producer(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(20))
    received = [channel.basic_get("numbers") for _ in range(20)]
    assert [message.payload["number"] for message in received] == list(range(20))
    with pytest.raises(Empty):
        channel._get("numbers")


def test_it_gives_back_what_a_killed_consumer_had_taken(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(2))
    code = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom tests.alignapp.test_broker import _connect\n"
        "channel = _connect(Path(sys.argv[1])).channel()\nassert channel.basic_get('numbers')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert killed.returncode == -signal.SIGKILL
    numbers = [channel.basic_get("numbers").payload["number"] for _ in range(2)]
    assert numbers == [0, 1]


def test_it_leaves_the_messages_of_a_living_consumer_alone(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(1))
    message = channel.basic_get("numbers")
    assert put_back_of_dead_consumers(tmp_path) == 0
    with _connect(tmp_path) as other:
        others: Any = other.default_channel
        assert others.basic_get("numbers") is None
    message.ack()
    assert put_back_of_dead_consumers(tmp_path) == 0


def test_it_gives_back_unacknowledged_messages_when_a_channel_closes(tmp_path: Path) -> None:
    _publish(tmp_path, range(3))
    with _connect(tmp_path) as connection:
        first: Any = connection.channel()
        second: Any = connection.channel()
        taken = [first.basic_get("numbers") for _ in range(3)]
        taken[1].ack()
        first.close()
        assert [second.basic_get("numbers").payload["number"] for _ in range(2)] == [0, 2]
        assert second.basic_get("numbers") is None
        second.close()


def test_it_requeues_a_rejected_message_once(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(1))
    channel.basic_get("numbers").reject(requeue=True)
    again = channel.basic_get("numbers")
    assert again.payload == {"number": 0}
    assert channel.basic_get("numbers") is None
    again.reject()
    assert [name for name in _files(tmp_path) if name.endswith(".msg")] == []


def test_it_drops_a_damaged_message_and_goes_on(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(2))
    sorted((tmp_path / "queue" / "numbers").iterdir())[0].write_text("")
    assert channel.basic_get("numbers").payload == {"number": 1}
    assert channel.basic_get("numbers") is None


def test_it_counts_and_purges_a_queue(tmp_path: Path, channel: Any) -> None:
    _publish(tmp_path, range(5))
    assert channel._size("numbers") == 5
    assert channel.queue_purge("numbers") == 5
    assert channel._size("numbers") == 0


def test_it_keeps_odd_queue_names_inside_the_folder(tmp_path: Path, channel: Any) -> None:
    channel._put("../../escape", {"properties": {"delivery_tag": "1"}})
    assert channel._size("../../escape") == 1
    assert not (tmp_path.parent / "escape").exists()
    assert channel._get("../../escape")["properties"]["delivery_tag"] == "1"


def test_it_refuses_consumers_that_never_acknowledge(channel: Any) -> None:
    with pytest.raises(NotImplementedError, match="no_ack=False"):
        channel.basic_consume("numbers", True, print, "tag")
