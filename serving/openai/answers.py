"""What an engine answered, on its way out: the bytes as they came, but for the names of model and version.

In JSON a quotation mark inside a text is written with a backslash, so `"model":` can only be a key: what a model says is
never taken for one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from serving.client import EngineError, Usage, error_of
from serving.openai.bodies import Asked
from serving.requests import Outcome, Served

MODEL = re.compile(r'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
FINGERPRINT = re.compile(r'"system_fingerprint"\s*:\s*(?:null|"(?:[^"\\]|\\.)*")')
NO_USAGE = re.compile(r',\s*"usage"\s*:\s*null')
USAGE = re.compile(r'"usage"\s*:\s*\{')
ERROR = re.compile(r'\s*\{\s*"(?:error"|object"\s*:\s*"error")')
DONE = b"data: [DONE]\n\n"


@dataclass
class Renaming:
    """`model` as it was asked for, and the version's name as `system_fingerprint`."""

    asked: Asked
    served: Served
    n_events: int = 0  # with a piece of an answer, about a token each

    def whole(self, answer: bytes) -> bytes:
        """Raises EngineError when it is no answer."""
        text = answer.decode()
        self.served.usage = _usage(text)
        return self._renamed(text).encode()

    def batch(self, events: list[str]) -> bytes:
        """Events of a stream. Raises EngineError when one is an error."""
        return b"".join(b"data: %s\n\n" % self._renamed(data).encode() for data in self._passed_on(events))

    def note_use(self) -> None:
        """What the request used where the engine had no chance to say it: its reader left, or the answer broke off. Who
        leaves does not get the prompt for nothing; who was told of a failure before the answer began does.
        """
        served = self.served
        has_left = served.is_asked and served.outcome == Outcome.CANCELLED
        if served.usage is None and (has_left or self.n_events):
            served.usage = Usage(self.asked.n_prompt_tokens, self.n_events)

    def _passed_on(self, events: list[str]) -> Iterator[str]:
        for data in events:
            if ERROR.match(data):
                raise error_of(data)
            if USAGE.search(data):
                self.served.usage = _usage(data)
                if not self.asked.wants_usage and '"choices":[]' in data.replace(" ", ""):
                    continue
            else:
                self.n_events += 1
            yield data if self.asked.wants_usage else NO_USAGE.sub("", data, count=1)

    def _renamed(self, text: str) -> str:
        model = f'"model":{json.dumps(self.asked.model)}'
        fingerprint = f'"system_fingerprint":{json.dumps(self.served.adapter.name)}'
        text, n = FINGERPRINT.subn(lambda _match: fingerprint, text, count=1)
        return MODEL.sub(lambda _match: model if n else f"{model},{fingerprint}", text, count=1)


def _usage(text: str) -> Usage:
    try:
        usage = json.loads(text)["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(cached))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(500, "The model server's answer does not follow the protocol.") from error
