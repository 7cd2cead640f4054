"""Which prompts are held out, for the gate to ask; and which are left out, since the other side holds nearly the same."""

import hashlib

from django.db.models import Min

from labeling.models import Campaign, Judgment
from training import near_duplicates

SPLIT_SALT = "alignapp held-out split 1"
HELDOUT_SHARE = 0.2


def is_heldout(prompt_sha256: str) -> bool:
    """Whether a prompt's judgments are held out: a fixed function of the prompt, so that none ever changes sides, in any
    campaign.
    """
    digest = hashlib.sha256(f"{SPLIT_SALT}:{prompt_sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


def find_leaving(campaign: Campaign) -> set[str]:
    """sha256s of the prompts that are left out: near-duplicates of one on the other side that was judged before.

    The earlier one stays. So a prompt that is in stays in as data grow, none comes into the held-out ones that the
    incumbent may have learned the like of, and none into training that the gate asks for. Judged means ever judged:
    what is taken back later changes nothing. Two prompts that both stay, on different sides, are no near-duplicates.
    """
    said = Judgment.objects.filter(comparison__campaign=campaign).values("comparison__prompt").order_by()
    first = dict(said.annotate(first=Min("pk")).values_list("comparison__prompt", "first"))
    prompts = {pk: (sha256, turns) for pk, sha256, turns in campaign.prompts.values_list("pk", "sha256", "messages")}
    rows = [prompts[pk] for pk in sorted(first, key=first.__getitem__)]
    texts = ["\n".join(turn["content"] for turn in messages) for _sha256, messages in rows]
    leaving = near_duplicates.find_leaving(texts, [is_heldout(sha256) for sha256, _messages in rows])
    return {sha256 for (sha256, _messages), leaves in zip(rows, leaving, strict=True) if leaves}


def describe() -> dict[str, object]:
    """The rule, for a snapshot's card."""
    return {
        "by": "prompt_sha256",
        "salt": SPLIT_SALT,
        "heldout_share": HELDOUT_SHARE,
        "near_duplicates": {
            "jaccard": near_duplicates.JACCARD,
            "shingle": f"{near_duplicates.SHINGLE} characters",
            "leaves": "the one whose prompt was judged later",
        },
    }
