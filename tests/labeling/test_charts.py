import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import charts


@given(st.integers(0, 10**9))
def test_it_ends_its_axis_at_a_round_number_above_everything(most):
    top, steps = charts.scale(most)
    assert top >= most
    assert steps[0] == 0
    assert steps[-1] == top
    assert 2 <= len(steps) <= 6


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 10**6)), max_size=80))
def test_it_draws_columns_inside_the_plot_in_proportion(values):
    drawn = charts.columns(values)
    assert [column.value for column in drawn.columns] == [value for _, value in values]
    for column in drawn.columns:
        assert column.x >= 0
        assert column.x + column.width <= 100.0001
        assert column.y >= -0.0001
        assert column.y + column.height == pytest.approx(100)
    assert len(drawn.x_ticks) <= charts.N_LABELS


def test_it_draws_a_curve_with_its_band():
    drawn = charts.curve([("a", 0.5, 0.25, 0.75), ("b", 1, 0.75, 1)], 0, 1, [0, 0.5, 1])
    assert drawn.line == "0.00,50.00 100.00,0.00"
    assert drawn.band == "0.00,25.00 100.00,0.00 100.00,25.00 0.00,75.00"
    assert [tick.at for tick in drawn.y_ticks] == [100, 50, 0]


def test_it_draws_what_lies_outside_at_the_edge():
    drawn = charts.curve([("a", -2, None, None)], 0, 1, [0])
    assert (drawn.points[0].x, drawn.points[0].y, drawn.band) == (50, 100, "")
    assert charts.interval(2, -1, 3, 0, 1, 0.5) == charts.Interval(100, 0, 100, 50)


def test_it_draws_no_interval_without_a_value():
    assert charts.interval(None, None, None, 0, 1) is None
    assert charts.interval(0.5, None, None, 0, 1) == charts.Interval(50, None, None, None)


def test_it_keeps_the_newest_label():
    drawn = charts.columns([(str(day), 1) for day in range(30)])
    assert drawn.x_ticks[-1].label == "29"
