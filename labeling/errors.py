"""What labeling refuses, and with which HTTP status; `labeling.api` maps them once. Messages say what to do."""

from typing import ClassVar


class Refused(Exception):
    """A request that the rules do not allow. `code` is for programs, the message for people."""

    code: ClassVar[str] = "refused"
    status: ClassVar[int] = 409


class Invalid(Refused):
    """Malformed or out of place; the same request will never pass."""

    code = "invalid"
    status = 400


class LeaseLost(Refused):
    """The pair went to somebody else while this person's lease had run out."""

    code = "lease_lost"


class AlreadyJudged(Refused):
    """This person has a judgment in force on the comparison."""

    code = "already_judged"


class Frozen(Refused):
    """A snapshot holds the judgment, so a model may have learned from it."""

    code = "frozen"
