"""What soft labels are worth, and who is found out: simulated campaigns whose truth is known.

    python -m benchmarks.reliability [--campaigns 40]

Every row is the mean over campaigns of 12 annotators with a random clicker, one who always says left and an inverted one
among them. `right`: how often the response that is truly better is named (a draw is half right); `loss`: log loss of its
probability, clipped to 0.01 … 0.99; `brier`: squared distance to the probability that a typical annotator would choose the
first. Then a linear reward model is trained on each kind of label, and judged on pairs that nobody has voted on. Then the share of planted annotators found and of honest ones accused, and seconds for
50,000 judgments. Prints a table and one JSON line last.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene
from django.conf import settings
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks import machine
from benchmarks.annotators import Simulation, simulate
from labeling import agreement, reliability, suspects
from labeling.reliability import Votes

Floats = NDArray[np.float64]
PLANTED = {0: "random", 1: "always_left", 2: "inverted"}
FOUND_AS = {"random": suspects.Kind.RANDOM, "always_left": suspects.Kind.ONE_SIDE, "inverted": suspects.Kind.INVERTED}
N_ANNOTATORS = 12
N_FEATURES = 100
DECAYS = (1.0, 5.0, 20.0, 60.0)


@dataclass(frozen=True)
class Setting:
    name: str
    n_items: int
    overlap: int
    gold_share: float
    planted: dict[int, str]


SETTINGS = [
    Setting("3 votes, 3 of 12 bad", 1200, 3, 0.0, PLANTED),
    Setting("3 votes, all honest", 1200, 3, 0.0, {}),
    Setting("2 votes, 3 of 12 bad", 1800, 2, 0.0, PLANTED),
    Setting("1 vote, 20 % gold, 3 bad", 3600, 1, 0.2, PLANTED),
    Setting("5 votes, 3 of 12 bad", 720, 5, 0.0, PLANTED),
]


def by_majority(votes: Votes) -> tuple[Floats, Floats]:
    share = reliability.share_votes(votes).label
    return share, share


def by_crowd_kit(votes: Votes) -> tuple[Floats, Floats]:
    """Its Dawid–Skene on three classes; a tie counts half for each side. Gold is given as true labels."""
    frame = pd.DataFrame({"task": votes.item, "worker": votes.annotator, "label": votes.value.astype(int)})
    gold = np.flatnonzero(~np.isnan(votes.known))
    true = pd.Series(votes.known[gold].astype(int), index=gold) if len(gold) else None
    found = (
        DawidSkene(n_iter=100).fit_predict_proba(frame, true).reindex(columns=[-1, 0, 1], fill_value=0.0).sort_index()
    )
    better = (found[1] + found[0] / 2).to_numpy()
    return better, better


def by_reliability(votes: Votes) -> tuple[Floats, Floats]:
    found = reliability.fit(votes)
    return found.label, found.preference


METHODS: dict[str, Callable[[Votes], tuple[Floats, Floats]]] = {
    "majority": by_majority,
    "crowd-kit Dawid–Skene": by_crowd_kit,
    "soft labels": by_reliability,
}


def score(made: Simulation, better: Floats, label: Floats) -> dict[str, float]:
    """On the items whose answer is not known."""
    asked = np.isnan(made.votes.known)
    better, label, truth = better[asked], label[asked], made.difference[asked]
    chance = np.clip(np.where(truth > 0, better, 1 - better), 0.01, 0.99)
    right = np.where(better == 0.5, 0.5, (better > 0.5) == (truth > 0))
    return {
        "right": float(right.mean()),
        "loss": float(-np.log(chance).mean()),
        "brier": float(((label - expit(truth)) ** 2).mean()),
    }


def campaign(setting: Setting, seed: int, difference: Floats | None = None) -> Simulation:
    return simulate(
        np.random.default_rng(seed),
        setting.n_items,
        N_ANNOTATORS,
        setting.overlap,
        gold_share=setting.gold_share,
        planted=setting.planted,
        difference=difference,
    )


def compare(setting: Setting, n_campaigns: int) -> dict[str, dict[str, float]]:
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(n_campaigns):
        made = campaign(setting, seed)
        for name, method in METHODS.items():
            scores[name].append(score(made, *method(made.votes)))
    return {name: {key: float(np.mean([s[key] for s in found])) for key in found[0]} for name, found in scores.items()}


def train(features: Floats, label: Floats, weight: Floats, decay: float) -> Floats:
    """The linear reward model of least weighted cross-entropy, which is DPO's loss, with L2 `decay`."""

    def loss(beta: Floats) -> tuple[float, Floats]:
        margin = features @ beta
        value = weight @ (np.logaddexp(0, margin) - label * margin) + decay * beta @ beta / 2
        return float(value), features.T @ (weight * (expit(margin) - label)) + decay * beta

    return minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x


def train_on_labels(setting: Setting, n_campaigns: int) -> dict[str, float]:
    """Accuracy, on 2,000 unseen pairs, of models trained on each kind of label; decay chosen on 2,000 others."""
    right: dict[str, list[float]] = {}
    for seed in range(n_campaigns):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(setting.n_items + 4000, N_FEATURES))
        truth = features @ rng.normal(0, np.sqrt(0.7 / N_FEATURES) * 1.5, N_FEATURES)
        truth += rng.normal(0, np.sqrt(0.3) * 1.5, len(truth))  # what no feature shows
        votes = campaign(setting, seed, truth[: setting.n_items]).votes
        soft, share = reliability.fit(votes), reliability.share_votes(votes)
        once = np.ones(setting.n_items)
        labels = {
            "majority": (np.sign(share.label - 0.5) / 2 + 0.5, once),
            "vote shares, by votes": (share.label, share.weight),
            "soft labels, by weight": (soft.label, soft.weight),
            "preference, by weight": (soft.preference, soft.weight),
        }
        is_better = truth[setting.n_items :] > 0
        for name, (label, weight) in labels.items():
            models = [train(features[: setting.n_items], label, weight, decay) for decay in DECAYS]
            hits = [(features[setting.n_items :] @ beta > 0) == is_better for beta in models]
            right.setdefault(name, []).append(max(hits, key=lambda hit: hit[:2000].mean())[2000:].mean())
    return {name: float(np.mean(found)) for name, found in right.items()}


def find_out(setting: Setting, n_campaigns: int) -> dict[str, float]:
    """Share of campaigns in which each planted annotator is found as what it is, and of honest annotators accused."""
    found = dict.fromkeys(FOUND_AS, 0)
    n_accused = 0
    for seed in range(n_campaigns):
        votes = campaign(setting, seed).votes
        for suspect in suspects.find_suspects(votes, reliability.fit(votes)):
            kind = setting.planted.get(suspect.annotator)
            n_accused += kind is None
            if kind and suspect.kind == FOUND_AS[kind]:
                found[kind] += 1
    honest = N_ANNOTATORS - len(setting.planted)
    return {**{kind: n / n_campaigns for kind, n in found.items()}, "accused": n_accused / n_campaigns / honest}


def measure_speed() -> dict[str, float]:
    """Seconds for 50,000 judgments of 50 annotators."""
    votes = simulate(np.random.default_rng(0), 16_667, 50, 3, planted=PLANTED).votes
    started = time.perf_counter()
    reliability.fit(votes)
    fitted = time.perf_counter()
    agreement.krippendorff_alpha(votes.item, votes.annotator, votes.value, "ordinal", np.random.default_rng(0))
    return {"fit_50k_s": fitted - started, "alpha_50k_s": time.perf_counter() - fitted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=40)
    n_campaigns = parser.parse_args().campaigns
    settings.configure(USE_I18N=False)  # evidence in words, without a site
    print(machine.describe())
    figures: dict[str, object] = {"benchmark": "reliability", "campaigns": n_campaigns}
    for setting in SETTINGS:
        print(f"\n{setting.name:34} {'right':>8} {'loss':>8} {'brier':>8}")
        scores = compare(setting, n_campaigns)
        for method, row in scores.items():
            print(f"  {method:32} " + " ".join(f"{value:8.4f}" for value in row.values()))
        figures[setting.name] = {method: {k: round(v, 4) for k, v in row.items()} for method, row in scores.items()}
    for setting in SETTINGS:
        print(f"\n{'trained on ' + setting.name:48} {'right':>8}")
        accuracies = train_on_labels(setting, max(1, n_campaigns // 2))
        for name, accuracy in accuracies.items():
            print(f"  {name:46} {accuracy:8.4f}")
        figures[f"trained on {setting.name}"] = {name: round(value, 4) for name, value in accuracies.items()}
    print(f"\n{'found':34} {'random':>8} {'left':>8} {'inverted':>8} {'accused':>8}")
    for n_items in (400, 800, 1600, 3200):
        name = f"3 votes, {3 * n_items // N_ANNOTATORS} per annotator"
        shares = find_out(Setting(name, n_items, 3, 0.0, PLANTED), n_campaigns)
        print(f"  {name:32} " + " ".join(f"{value:8.3f}" for value in shares.values()))
        figures[f"found_{3 * n_items // N_ANNOTATORS}"] = {key: round(value, 4) for key, value in shares.items()}
    speed = {key: round(value, 2) for key, value in measure_speed().items()}
    print(f"\nseconds for 50,000 judgments: fit {speed['fit_50k_s']}, alpha with interval {speed['alpha_50k_s']}")
    print(json.dumps({**figures, **speed}))


if __name__ == "__main__":
    main()
