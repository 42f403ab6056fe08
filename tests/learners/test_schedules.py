import pytest

from latentrobust.learners.schedules import PiecewiseLinear


def test_values_over_epochs():
    schedule = PiecewiseLinear([0, 1e-3, 5e-4, 1e-4], [0, 10, 15, 20])
    assert [schedule(e) for e in (0, 5, 10, 12.5, 20, 30)] == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 1e-4, 1e-4])


def test_stretched_to_a_shorter_run():
    schedule = PiecewiseLinear([0, 1, 0], [0, 40, 100], stretch_to=10)
    assert [schedule(e) for e in (0, 4, 10)] == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    ("values", "epochs"), [([], []), ([1, 2], [0]), ([1, 2], [1, 2]), ([1, 2, 3], [0, 5, 5]), ([1, 2], [0, -1])]
)
def test_lists_that_do_not_fit_are_refused(values, epochs):
    with pytest.raises(ValueError, match="schedule needs"):
        PiecewiseLinear(values, epochs)
