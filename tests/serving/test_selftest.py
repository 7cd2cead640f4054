import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import selftest

RANDOM = np.random.default_rng(0)
EFFECTS = RANDOM.normal(scale=0.4, size=800)
NOISE = RANDOM.normal(scale=0.06, size=800)  # bf16 against fp32, on an adapter of a short run


def test_it_passes_an_adapter_that_does_what_it_did_in_training() -> None:
    result = selftest.compare(EFFECTS, EFFECTS + NOISE)
    assert result.is_passed
    assert result.slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "measured",
    [
        np.zeros(800),  # the adapter is not applied
        EFFECTS * 0,  # zeroed weights
        EFFECTS * 0.5,  # scale alpha/r instead of alpha/sqrt(r), or half of the layers
        EFFECTS * 2,
        EFFECTS * -1,
        RANDOM.normal(scale=0.4, size=800),  # another adapter of the same size
        np.full(800, 0.4),
    ],
)
def test_it_fails_one_that_does_not(measured: np.ndarray) -> None:
    assert not selftest.compare(EFFECTS, measured + NOISE).is_passed


@pytest.mark.parametrize(("scale", "is_passed"), [(0.0, False), (0.5, False), (1.0, True), (2.0, False)])
def test_it_tells_scales_apart_where_rounding_is_as_large_as_the_effect(scale: float, is_passed: bool) -> None:
    small = EFFECTS / 8  # 0.05 nats, as after a few steps
    result = selftest.compare(small, scale * small + NOISE)
    assert result.correlation < 0.9
    assert result.is_passed == is_passed


def test_it_counts_what_texts_have_in_common_once() -> None:
    texts = [[1, 2, 3, 4], [1, 2, 3, 5], [2, 3, 4]]
    assert selftest.is_first(texts).tolist() == [True, True, True, False, False, True, True, True]


def test_it_fails_when_there_is_nothing_to_compare() -> None:
    assert not selftest.compare(np.array([]), np.array([])).is_passed


def test_it_fails_an_adapter_without_effect_in_training() -> None:
    result = selftest.compare(np.zeros(800), np.zeros(800))
    assert not result.is_passed
    assert (result.slope, result.correlation) == (0, 0)


@settings(deadline=None)
@given(st.floats(0.01, 100))
def test_it_measures_the_scale(scale: float) -> None:
    result = selftest.compare(EFFECTS, scale * EFFECTS)
    assert result.slope == pytest.approx(scale)
    assert result.correlation == pytest.approx(1)
    assert result.is_passed == (0.8 <= result.slope <= 1.2)


def test_it_says_the_numbers_in_words() -> None:
    assert "0.500" in selftest.compare(EFFECTS, EFFECTS / 2).verdict()
    assert selftest.compare(EFFECTS, EFFECTS).to_dict()["is_passed"] is True
