"""What each strategy saves on pairs whose answers are known: labeling simulated from a file of judged pairs.

    python -m benchmarks.selection TRAIN.jsonl.gz HELDOUT.jsonl.gz [--seeds 5] [--labels 800]

(or SELECTION_TRAIN and SELECTION_HELDOUT in the environment). A line of a file: {"prompt", "response_a", "response_b",
"outcome": "a" or "b"}, or {"prompt", "chosen", "rejected"} with lists of messages. Every strategy chooses its next pairs in
rounds, from what it was told so far, with 20 % of the places left to chance; the same small reward model learns from each. Told
are held-out accuracy and log loss by number of labels, mean and standard deviation over the seeds; how much lower the loss was
than random choice's with the same seed, over all sizes (`gap`); and `median_saved`, the labels saved until the loss was as
low as random choice's last one (null: never). Prints a table and one JSON line last.
"""

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from labeling import features, linear, selection

Floats = NDArray[np.float64]
STRATEGIES = ("random", "diversity", "different", "uncertainty", "d_optimal")
RANDOM_SHARE = 0.2
POOL = 2500  # pairs that a seed chooses from: without that, seeds would differ in chance's draws only


class Data:
    """The pairs of a file. `first`, `second` (n, d) features, `answers` their responses' vectors, `outcome` (n,) 1 or −1."""

    def __init__(self, pairs: list[tuple[str, str, str, int]]) -> None:
        prompts = [pair[0] for pair in pairs]
        firsts, seconds = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
        described = features.describe(firsts + seconds, prompts + prompts)
        self.first, self.second = described[: len(pairs)], described[len(pairs) :]
        self.prompts = features.embed(prompts)
        self.outcome = np.array([pair[3] for pair in pairs], dtype=float)
        self.delta = self.first - self.second


def read(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Prompt, two responses, and 1 when the first is better; the sides of chosen and rejected alternate."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if "outcome" in row:
                yield row["prompt"], row["response_a"], row["response_b"], 1 if row["outcome"] == "a" else -1
            elif number % 2:
                yield _text(row["prompt"]), _text(row["chosen"]), _text(row["rejected"]), 1
            else:
                yield _text(row["prompt"]), _text(row["rejected"]), _text(row["chosen"]), -1


def _text(turns: Any) -> str:
    return turns if isinstance(turns, str) else "\n".join(turn["content"] for turn in turns)


def choose(name: str, data: Data, pool: NDArray, taken: list[int], rng: np.random.Generator) -> selection.Choices:
    """The strategy over `pool`, knowing the outcomes of `taken`."""
    delta, known = data.delta[pool], data.delta[taken]
    if name == "random":
        return selection.in_order(rng.random(len(pool)))
    if name == "diversity":
        return selection.k_centre(data.prompts[pool], data.prompts[taken])
    if name == "different":
        return selection.most_different(data.first[pool], data.second[pool], np.zeros(len(pool)), 0.0)
    theta = linear.fit(known * data.outcome[taken][:, None])
    if name == "uncertainty":
        return selection.most_uncertain(delta @ theta)
    information = selection.fisher(known, known @ theta)
    return selection.d_optimal(delta, delta @ theta, information, ridge=linear.ridge(len(theta)))


def label(name: str, data: Data, heldout: Data, sizes: list[int], seed: int) -> Floats:
    """(len(sizes), 2) held-out accuracy and log loss after so many labels."""
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(data.outcome))[:POOL]
    taken: list[int] = []
    found = []
    for size in sizes:
        rest = np.array([index for index in pool if index not in set(taken)])
        draws = selection.draw(choose(name, data, rest, taken, rng), len(rest), size - len(taken), RANDOM_SHARE, rng)
        taken += rest[draws.index].tolist()
        theta = linear.fit(data.delta[taken] * data.outcome[taken][:, None])
        right = heldout.delta * heldout.outcome[:, None]
        found.append([(right @ theta > 0).mean(), linear.log_loss(right, theta).mean()])
    return np.array(found)


def labels_to_reach(curve: Floats, sizes: list[int], target: float) -> float:
    """The first number of labels (interpolated in its logarithm) at which the loss is as low; inf where it never is."""
    lowest = np.minimum.accumulate(curve)
    if lowest[-1] > target:
        return np.inf
    return float(np.exp(np.interp(-target, -lowest, np.log(sizes))))


def measure(train: Path, heldout: Path, sizes: list[int], n_seeds: int) -> dict[str, Any]:
    told, asked = list(read(train)), list(read(heldout))
    both = Data(told + asked)  # together: features of two calls must not be mixed
    data, rest = _part(both, slice(0, len(told))), _part(both, slice(len(told), None))
    curves = {name: np.array([label(name, data, rest, sizes, seed) for seed in range(n_seeds)]) for name in STRATEGIES}
    return {name: _summary(name, curves, sizes) for name in STRATEGIES}


def _part(data: Data, rows: slice) -> Data:
    part = Data.__new__(Data)
    for name, values in vars(data).items():
        setattr(part, name, values[rows])
    return part


def _summary(name: str, curves: dict[str, Floats], sizes: list[int]) -> dict[str, Any]:
    """Figures of one strategy; `saved` by seed against random choice with the same seed, at random's last loss."""
    mean, deviation = curves[name].mean(axis=0), curves[name].std(axis=0)
    saved = [
        1 - labels_to_reach(own[:, 1], sizes, chance[-1, 1]) / sizes[-1]
        for own, chance in zip(curves[name], curves["random"], strict=True)
    ]
    gap = curves["random"][:, :, 1].mean(axis=1) - curves[name][:, :, 1].mean(axis=1)  # per seed, over all sizes
    return {
        "accuracy": mean[:, 0].round(4).tolist(),
        "accuracy_sd": deviation[:, 0].round(4).tolist(),
        "log_loss": mean[:, 1].round(4).tolist(),
        "log_loss_sd": deviation[:, 1].round(4).tolist(),
        "gap": round(float(gap.mean()), 4),
        "gap_se": round(float(gap.std(ddof=1) / np.sqrt(len(gap))), 4),
        "seeds_that_saved": sum(one > 0.005 for one in saved),
        "median_saved": None if np.isinf(np.median(saved)) else round(float(np.median(saved)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for which in ("train", "heldout"):
        variable = f"SELECTION_{which.upper()}"
        parser.add_argument(
            which, type=Path, nargs="?", default=os.environ.get(variable), help=f"or {variable} in the environment"
        )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=800)
    arguments = parser.parse_args()
    if not arguments.train or not arguments.heldout:
        parser.error("Name the two files, or set SELECTION_TRAIN and SELECTION_HELDOUT.")
    print(machine.describe())
    sizes = [n for n in (25, 50, 100, 200, 400, 800, 1600) if n <= arguments.labels]
    figures = measure(Path(arguments.train), Path(arguments.heldout), sizes, arguments.seeds)
    print(f"held-out accuracy / log loss after n labels, mean of {arguments.seeds} seeds")
    print(f"{'strategy':12}" + "".join(f"{n:>16}" for n in sizes) + "   gap in log loss to random ± s.e.")
    for name, row in figures.items():
        cells = "".join(f"{a:>9.3f} {loss:.3f} " for a, loss in zip(row["accuracy"], row["log_loss"], strict=True))
        print(f"{name:12}{cells}   {row['gap']:+.4f} ± {row['gap_se']:.4f}")
    print(json.dumps({"benchmark": "selection", "labels": sizes, "seeds": arguments.seeds, **figures}))


if __name__ == "__main__":
    main()
