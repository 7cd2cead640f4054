"""The site's own ASGI application under uvicorn, and the official clients that talk to it."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import openai
import pytest
import uvicorn
from django.contrib.auth.models import User
from django.utils import timezone

from alignapp.asgi import application
from serving import keys
from serving.models import ApiKey


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a web process's server; it reads what a test has committed."""
    config = uvicorn.Config(
        application, port=0, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def shown_key(transactional_db: None, ada: User) -> str:
    """The text of a key of Ada's that may chat."""
    return keys.create(ada, "program", ["chat"], timezone.now(), timezone.now() + timedelta(days=1))[1]


@pytest.fixture
def key(shown_key: str) -> ApiKey:
    return ApiKey.objects.get()


Client = Callable[..., Any]


@pytest.fixture
def client(address: str, shown_key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=shown_key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(address: str, shown_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=shown_key, max_retries=0) as client:
        yield client
