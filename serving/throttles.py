"""How much one key, or one person, may ask for in a while.

A window of fixed length is counted by one number in the cache, so that a request costs the same whatever the rate.
At the seam of two windows up to twice the rate passes, which is fine for a limit that protects a server.
"""

import time
from typing import Any

from django.contrib.auth.models import User
from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle

from serving.models import ApiKey

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


class PerKeyOrPerson(BaseThrottle):
    """The rate is that of the view's `throttle` (a name in DEFAULT_THROTTLE_RATES); else of reading or writing."""

    seconds_left = 0.0

    def allow_request(self, request: Request, view: Any) -> bool:
        is_reading = request.method in ("GET", "HEAD", "OPTIONS")
        name = getattr(view, "throttle", None) or ("reading" if is_reading else "writing")
        most, length = RATES[name]
        window, passed = divmod(self.now(), length)
        self.seconds_left = length - passed
        return _count(f"throttle:{name}:{_who(request)}:{int(window)}", length) <= most

    def now(self) -> float:
        return time.time()

    def wait(self) -> float:
        return self.seconds_left


def parse(rate: str) -> tuple[int, int]:
    """Requests and seconds of a rate like 600/minute. Raises ValueError, saying what a rate looks like."""
    number, _, unit = rate.partition("/")
    if not number.isdigit() or unit not in SECONDS:
        raise ValueError(f"The rate {rate!r} must look like 600/minute; units are {', '.join(SECONDS)}.")
    return int(number), SECONDS[unit]


# Read when the process starts, so that a rate that is none stops it then and there.
RATES = {name: parse(str(rate)) for name, rate in api_settings.DEFAULT_THROTTLE_RATES.items()}


def _who(request: Request) -> str:
    if isinstance(request.auth, ApiKey):
        return f"key-{request.auth.pk}"
    return f"person-{request.user.pk}" if isinstance(request.user, User) else "anybody"


def _count(name: str, seconds: int) -> int:
    """Counts this one, too. A counter that ran out between the two steps begins anew."""
    if cache.add(name, 1, timeout=seconds + 1):
        return 1
    try:
        return cache.incr(name)
    except ValueError:
        cache.set(name, 1, timeout=seconds + 1)
        return 1
