"""Figures of sampled responses: how long they are, whether they end, repeat themselves or refuse. No torch.

A response is a list of token ids that ends with the end-of-turn token, unless it ran to the limit.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

NGRAM = 4
REFUSAL_CHARS = 200  # a refusal comes first; "I can't help but smile" may come later

# Beginnings of sentences in which an assistant declines, in lower case with straight apostrophes. Simple on purpose:
# the gate compares the share with that of the model before, on prompts that nobody needs to decline.
REFUSALS = re.compile(
    r"\b(?:"
    r"(?:i'm|i am) (?:very |really |so |truly )?sorry,? but"
    r"|(?:i'm|i am) (?:unable|not able|not allowed|not permitted|not comfortable)"
    r"|(?:i|we) (?:can't|cannot|can not|won't|will not|must not) "
    r"(?:help|assist|answer|provide|do|comply|fulfil|fulfill|discuss|continue|respond|engage|support|give|share)"
    r"|i (?:must|have to|need to) (?:decline|refuse)"
    r"|i (?:decline|refuse) to"
    r"|(?:i|we)'d rather not (?:answer|say|discuss)"
    r"|as an? (?:ai|artificial intelligence|language model)\b[^.]{0,60}\b(?:can't|cannot|don't|do not|unable)"
    r"|(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|rules|programming)"
    r")"
)


def mean_length(responses: Sequence[Sequence[int]]) -> float:
    """Tokens of a response, the end of turn included."""
    return sum(map(len, responses)) / len(responses)


def unfinished(responses: Sequence[Sequence[int]], end: int) -> float:
    """Share of responses that ran to the limit without an end."""
    return sum(response[-1] != end for response in responses) / len(responses)


def repetition(responses: Sequence[Sequence[int]], n: int = NGRAM) -> float:
    """Share of n-grams that stood in the same response before; 0 where all are too short to have any."""
    grams = [Counter(_ngrams(response, n)) for response in responses]
    total = sum(map(Counter.total, grams))
    return sum(counted.total() - len(counted) for counted in grams) / total if total else 0.0


def distinct(responses: Sequence[Sequence[int]], n: int = 2) -> float:
    """Different n-grams of all responses together, as a share of all (Li et al. 2016, arXiv 1510.03055: distinct-n)."""
    grams = [gram for response in responses for gram in _ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether a response declines to answer, or has no word in it."""
    head = text.strip()[:REFUSAL_CHARS].casefold().replace("’", "'")
    return not re.search(r"\w", head) or bool(REFUSALS.search(head))


def refusal_rate(texts: Sequence[str]) -> float:
    return sum(map(is_refusal, texts)) / len(texts)


def _ngrams(response: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(response[i:] for i in range(n)), strict=False)
