"""Agreement against krippendorff and scikit-learn on random data, and at its edges."""

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from labeling import agreement

pytestmark = pytest.mark.slow  # many simulations

SEEDS = st.integers(0, 2**32 - 1)
FEW_RESAMPLES = 20


def table(rng: np.random.Generator, n_items: int, n_people: int, n_values: int = 7, missing: float = 0.4) -> np.ndarray:
    """(people, items) grades around zero that people share in part, NaN where missing."""
    shared = rng.integers(0, n_values, n_items)
    values = np.where(rng.random((n_people, n_items)) < 0.5, shared, rng.integers(0, n_values, (n_people, n_items)))
    return np.where(rng.random(values.shape) < missing, np.nan, values - n_values // 2)


def long(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    annotator, item = np.nonzero(~np.isnan(values))
    return item, annotator, values[annotator, item].astype(int)


def alpha(values: np.ndarray, metric: agreement.Metric = "ordinal", n_resamples: int = 0) -> agreement.Estimate | None:
    return agreement.krippendorff_alpha(*long(values), metric, np.random.default_rng(0), n_resamples)


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, n_items=st.integers(2, 30), n_people=st.integers(2, 6), n_values=st.integers(2, 7))
def test_it_agrees_with_krippendorff(metric: agreement.Metric, seed: int, n_items: int, n_people: int, n_values: int):
    values = table(np.random.default_rng(seed), n_items, n_people, n_values)
    ours = alpha(values, metric)
    paired = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        assert ours is None
    else:
        assert ours is not None
        assert ours.value == pytest.approx(krippendorff.alpha(values, level_of_measurement=metric), abs=1e-9)


@pytest.mark.parametrize("weighting", [None, "linear", "quadratic"])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(3, 60))
def test_it_agrees_with_scikit_learn(weighting: agreement.Weighting | None, seed: int, n: int):
    first, second = table(np.random.default_rng(seed), n, 2, missing=0)
    ours = agreement.cohen_kappa(first, second, np.random.default_rng(0), weighting, n_resamples=0)
    theirs = cohen_kappa_score(first, second, labels=range(-3, 4), weights=weighting)
    assert (ours is None) if np.isnan(theirs) else (ours is not None and ours.value == pytest.approx(theirs, abs=1e-9))


def test_it_computes_fleiss_own_example():
    """Fleiss 1971, table 1 in the form that textbooks print: 14 raters, 10 subjects, 5 categories, kappa 0.210."""
    counts = """0 0 0 0 14  0 2 6 4 2  0 0 3 5 6  0 3 9 2 0  2 2 8 1 1
                7 7 0 0 0  3 2 6 3 0  2 5 3 2 2  6 5 2 1 0  0 2 2 3 7"""
    rows = np.array(counts.split(), dtype=int).reshape(10, 5)
    value = np.concatenate([np.repeat(np.arange(5), row) for row in rows])
    item, annotator = np.repeat(np.arange(10), 14), np.tile(np.arange(14), 10)
    found = agreement.fleiss_kappa(item, annotator, value, np.random.default_rng(0))
    assert found is not None
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.n_items == 10
    assert found.n_values == 140


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n_items=st.integers(3, 30), n_people=st.integers(2, 5))
def test_it_ties_fleiss_to_krippendorff(seed: int, n_items: int, n_people: int):
    """With nothing missing, nominal alpha is Fleiss' kappa with his chance term made unbiased."""
    values = table(np.random.default_rng(seed), n_items, n_people, 3, missing=0)
    nominal = alpha(values, "nominal")
    kappa = agreement.fleiss_kappa(*long(values), np.random.default_rng(0), 0)
    if nominal is None or kappa is None:
        assert nominal is kappa is None
    else:
        n = n_items * n_people
        assert nominal.value == pytest.approx(1 - (1 - kappa.value) * (n - 1) / n)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_it_ignores_the_order_of_people_items_and_sides(seed: int):
    rng = np.random.default_rng(seed)
    values = table(rng, 20, 4)
    mixed = values[rng.permutation(4)][:, rng.permutation(20)]
    for metric in ("nominal", "ordinal", "interval"):
        expected = alpha(values, metric)
        for same in (mixed, -values):  # a grade seen from the other side has the other sign
            found = alpha(same, metric)
            assert (found is None) == (expected is None)
            if found and expected:
                assert found.value == pytest.approx(expected.value)


def test_it_draws_the_same_interval_as_resampling_item_by_item():
    values = table(np.random.default_rng(1), 60, 3, missing=0.2)
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    found = alpha(values, n_resamples=4000)
    rng = np.random.default_rng(2)
    draws = [
        krippendorff.alpha(values[:, rng.integers(0, values.shape[1], values.shape[1])], level_of_measurement="ordinal")
        for _ in range(4000)
    ]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_it_covers_the_truth_about_as_often_as_it_says():
    """The alpha of a large sample of the same process lies in 90 to 99 of 100 intervals."""
    truth = alpha(table(np.random.default_rng(3), 50_000, 3, missing=0.2))
    assert truth is not None
    samples = [alpha(table(np.random.default_rng(seed), 150, 3, missing=0.2), n_resamples=400) for seed in range(200)]
    covered = [s is not None and s.low is not None and s.low <= truth.value <= (s.high or 0) for s in samples]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_it_counts_pairs_that_agree():
    found = agreement.percent_agreement([1, 1, 1, 2, 2, 3], [1, 2, 3, 1, 2, 1], [0, 0, 1, 1, 1, 0], rng_of(0), 50)
    assert found is not None
    assert found.value == pytest.approx((1 / 3 + 1) / 2)  # item 3 has one value: nobody to agree with
    assert (found.n_items, found.n_values) == (2, 5)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("item", "annotator", "value"),
    [([], [], []), ([1, 2, 3], [1, 1, 1], [0, 1, 2]), ([1, 2], [1, 2], [0, 1])],
    ids=["nothing", "one annotator", "no item twice"],
)
def test_it_says_not_enough_without_two_values_on_an_item(item: list[int], annotator: list[int], value: list[int]):
    for statistic in (agreement.fleiss_kappa, agreement.percent_agreement):
        assert statistic(item, annotator, value, rng_of(0)) is None
    assert agreement.krippendorff_alpha(item, annotator, value, "ordinal", rng_of(0)) is None
    assert agreement.cohen_kappa([], [], rng_of(0)) is None


def test_it_says_not_enough_when_everybody_always_says_the_same():
    item, annotator, value = [1, 1, 2, 2], [1, 2, 1, 2], [3, 3, 3, 3]
    assert agreement.krippendorff_alpha(item, annotator, value, "interval", rng_of(0)) is None
    assert agreement.fleiss_kappa(item, annotator, value, rng_of(0)) is None
    assert agreement.cohen_kappa([3, 3], [3, 3], rng_of(0)) is None
    everybody = agreement.percent_agreement(item, annotator, value, rng_of(0))
    assert everybody is not None
    assert (everybody.value, everybody.low, everybody.high) == (1, 1, 1)


def test_it_gives_no_interval_for_one_item():
    found = agreement.krippendorff_alpha([1, 1, 1], [1, 2, 3], [0, 0, 1], "nominal", rng_of(0))
    assert found is not None
    assert found.value == pytest.approx(0.0)
    assert found.low is None
    assert found.high is None


def test_it_finds_full_agreement_and_full_disagreement():
    values = np.array([[1, 2, 1, 2], [1, 2, 1, 2]], dtype=float)
    found = alpha(values, "nominal", FEW_RESAMPLES)
    assert found is not None
    assert found.value == 1
    opposite = agreement.cohen_kappa(values[0], values[1][::-1], rng_of(0))
    assert opposite is not None
    assert opposite.value == pytest.approx(-1)


def test_it_is_deterministic_by_its_rng():
    values = table(rng_of(5), 40, 3)
    assert alpha(values, n_resamples=FEW_RESAMPLES) == alpha(values, n_resamples=FEW_RESAMPLES)


def test_it_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="twice"):
        agreement.fleiss_kappa([1, 1], [1, 1], [0, 1], rng_of(0))
    with pytest.raises(ValueError, match="one length"):
        agreement.percent_agreement([1, 1], [1], [0, 1], rng_of(0))
    with pytest.raises(ValueError, match="one length"):
        agreement.cohen_kappa([1, 1], [1], rng_of(0))
    with pytest.raises(ValueError, match="metric"):
        agreement.krippendorff_alpha([1, 1], [1, 2], [0, 1], "ratio", rng_of(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weighting"):
        agreement.cohen_kappa([1, 2], [2, 1], rng_of(0), "cubic")  # type: ignore[arg-type]
