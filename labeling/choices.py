"""What a person decided, and whether the campaign offers it."""

from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

from labeling import texts
from labeling.errors import Invalid
from labeling.models import Campaign, Judgment

Verdict = Judgment.Verdict
THUMBS = (Verdict.GOOD, Verdict.BAD)
FLAGS = ("unsafe", "private_data", "broken_prompt")
SKIP_REASONS = ("unsure", "too_long", "language", "expertise", "uncomfortable", "other")
CRITERION_SCALES = ("seven", "three", "binary", "rating")
MAX_REASON = 5_000
RATING = (1, 5)


@dataclass(frozen=True)
class Choice:
    """One decision. `order` are the response ids as they were shown, left to right.

    Of two responses, a preference names the `chosen` one and, on the seven-grade scale, a `strength` of 1 to 3. Of
    three or four it gives `ranks`, response id → rank, 1 best, equal ranks are ties. The rest is optional: `criteria`
    as in `Judgment.criteria`, `edit` the best response as improved by hand.
    """

    verdict: str
    order: list[int]
    chosen: int | None = None
    strength: int | None = None
    ranks: dict[int, int] | None = None
    reason: str = ""
    tags: list[str] = field(default_factory=list)
    criteria: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    skip_reason: str = ""
    edit: str = ""
    shown_ms: int | None = None
    attention: dict[str, Any] = field(default_factory=dict)

    @property
    def as_ranks(self) -> dict[str, int]:
        """Response id (as text) to rank, 1 best; empty for verdicts that rank nothing."""
        if self.verdict == Verdict.TIE:
            return dict.fromkeys(map(str, self.order), 1)
        if self.verdict != Verdict.PREFERENCE:
            return {}
        if self.ranks is not None:
            return {str(response): rank for response, rank in self.ranks.items()}
        return {str(response): 1 if response == self.chosen else 2 for response in self.order}

    @property
    def best(self) -> int | None:
        """The response preferred to all others; None without a preference, or when several share the first place."""
        ranks = self.as_ranks
        first = [response for response, rank in ranks.items() if rank == min(ranks.values())]
        return int(first[0]) if self.verdict == Verdict.PREFERENCE and len(first) == 1 else None


def check(campaign: Campaign, choice: Choice) -> None:
    """Raises Invalid when the choice is not one that the campaign offers; the message says what it does offer."""
    if len(choice.order) == 1 or choice.verdict in THUMBS:
        _check_thumb(choice)
    elif choice.verdict == Verdict.PREFERENCE:
        _check_preference(campaign, choice)
    elif choice.chosen is not None or choice.strength is not None or choice.ranks is not None:
        raise Invalid(_("Only a preference has a chosen response, ranks or a strength."))
    if choice.verdict == Verdict.TIE and not (campaign.allow_tie and campaign.scale != Campaign.Scale.BINARY):
        raise Invalid(_("This campaign does not offer ties."))
    if choice.verdict == Verdict.BOTH_BAD and not campaign.allow_both_bad:
        raise Invalid(_("This campaign does not offer “both bad”."))
    if choice.verdict not in (*THUMBS, Verdict.PREFERENCE, Verdict.TIE, Verdict.BOTH_BAD, Verdict.SKIP):
        raise Invalid(_("verdict must be preference, tie, both_bad or skip."))
    _check_reasons(campaign, choice)
    _check_edit(campaign, choice)
    if choice.verdict != Verdict.SKIP:
        for criterion in campaign.criteria:
            _check_criterion(criterion, choice)
    if unknown := set(choice.criteria) - {criterion["key"] for criterion in campaign.criteria}:
        raise Invalid(_("This campaign has no criterion %(key)s.") % {"key": sorted(unknown)[0][:40]})


def _check_thumb(choice: Choice) -> None:
    """One response is good or bad, whatever the campaign's scale; several are compared."""
    is_bare = choice.chosen is None and choice.strength is None and choice.ranks is None
    if len(choice.order) != 1 or choice.verdict not in (*THUMBS, Verdict.SKIP) or not is_bare:
        raise Invalid(_("A single response is good or bad, or skipped; two or more are compared."))


def _check_preference(campaign: Campaign, choice: Choice) -> None:
    if len(choice.order) > 2:
        _check_ranks(campaign, choice)
        return
    if choice.ranks is not None or choice.chosen not in choice.order:
        raise Invalid(_("The response that is preferred must be one of the two shown."))
    is_graded = campaign.scale == Campaign.Scale.SEVEN
    if choice.strength not in ((1, 2, 3) if is_graded else (None,)):
        raise Invalid(_("strength must be 1, 2 or 3 on the seven-grade scale, and left out on the others."))


def _check_ranks(campaign: Campaign, choice: Choice) -> None:
    ranks = choice.ranks or {}
    if set(ranks) != set(choice.order) or choice.chosen is not None or choice.strength is not None:
        raise Invalid(_("Give every response shown a rank, and neither choice nor strength."))
    if not all(1 <= rank <= len(choice.order) for rank in ranks.values()):
        raise Invalid(_("A rank is a number from 1 (best) to %(n)d.") % {"n": len(choice.order)})
    n_distinct = len(set(ranks.values()))
    if n_distinct == 1:
        raise Invalid(_("All responses have the same rank: send the verdict tie."))
    if n_distinct < len(ranks) and not campaign.allow_tie:
        raise Invalid(_("This campaign does not offer ties: give every response a rank of its own."))


def _check_reasons(campaign: Campaign, choice: Choice) -> None:
    if len(choice.reason) > MAX_REASON:
        raise Invalid(_("The reason is too long: at most %(n)d characters.") % {"n": MAX_REASON})
    if choice.reason and campaign.rationale == Campaign.Rationale.OFF:
        raise Invalid(_("This campaign asks for no reason."))
    if needs_rationale(campaign, choice) and not texts.clean(choice.reason):
        raise Invalid(_("This campaign wants a reason for ties and for strong preferences. Write one."))
    for name, given, known in (("tags", choice.tags, campaign.reason_tags), ("flags", choice.flags, FLAGS)):
        if unknown := [one for one in given if one not in known]:
            raise Invalid(_("Unknown in %(name)s: %(what)s.") % {"name": name, "what": str(unknown[0])[:40]})
    if choice.skip_reason and (choice.verdict != Verdict.SKIP or choice.skip_reason not in SKIP_REASONS):
        raise Invalid(_("skip_reason goes with a skip, and is one of %(known)s.") % {"known": ", ".join(SKIP_REASONS)})


def needs_rationale(campaign: Campaign, choice: Choice) -> bool:
    """Whether the campaign requires a reason for this choice: a tie, or a preference of the highest strength."""
    is_strong = choice.verdict == Verdict.PREFERENCE and choice.strength == 3
    return campaign.rationale == Campaign.Rationale.REQUIRED and (is_strong or choice.verdict == Verdict.TIE)


def _check_edit(campaign: Campaign, choice: Choice) -> None:
    if not choice.edit:
        return
    if not campaign.allow_edit:
        raise Invalid(_("This campaign does not offer editing."))
    if choice.best is None:
        raise Invalid(_("Only the one response that you prefer can be edited."))
    if not texts.clean(choice.edit):
        raise Invalid(_("The edited response is empty."))


def _check_criterion(criterion: dict[str, str], choice: Choice) -> None:
    """An answer may be missing: reasons never block."""
    given = choice.criteria.get(criterion["key"])
    if given is None:
        return
    if criterion["scale"] == "rating":
        is_known = isinstance(given, dict) and set(given) <= set(map(str, choice.order))
        is_right = is_known and all(type(one) is int and RATING[0] <= one <= RATING[1] for one in given.values())
    else:
        most = 3 if criterion["scale"] == "seven" else 1
        is_right = type(given) is int and -most <= given <= most and (given != 0 or criterion["scale"] != "binary")
    if not is_right or (len(choice.order) > 2 and criterion["scale"] != "rating"):
        raise Invalid(_("The answer to “%(label)s” is not on its scale.") % {"label": criterion["label"]})


def check_criteria(criteria: object) -> list[dict[str, str]]:
    """A campaign's criteria as a manager wrote them: a list of {"key", "label", "scale", "help"?}, keys distinct.

    Raises Invalid, saying which entry is wrong.
    """
    if not isinstance(criteria, list) or len(criteria) > 12:
        raise Invalid(_("Criteria are a list of at most 12 objects with key, label and scale."))
    for number, criterion in enumerate(criteria, 1):
        is_object = isinstance(criterion, dict) and {"key", "label", "scale"} <= set(criterion)
        if not is_object or not set(criterion) <= {"key", "label", "scale", "help"}:
            raise Invalid(_("Criterion %(n)d must have key, label, scale and optionally help.") % {"n": number})
        if not all(isinstance(value, str) and 0 < len(value) <= 200 for value in criterion.values()):
            raise Invalid(_("Criterion %(n)d: every value is a text of 1 to 200 characters.") % {"n": number})
        if not criterion["key"].isidentifier() or criterion["scale"] not in CRITERION_SCALES:
            known = ", ".join(CRITERION_SCALES)
            raise Invalid(
                _("Criterion %(n)d: key is a word like truth, scale one of %(known)s.") % {"n": number, "known": known}
            )
    if len({criterion["key"] for criterion in criteria}) < len(criteria):
        raise Invalid(_("Two criteria have the same key."))
    return criteria
