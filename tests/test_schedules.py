from types import SimpleNamespace

import pytest

from latentrobust.schedules import Exponential, Moment, PiecewiseConstant, PiecewiseLinear, WarmUp, end, now


def test_values_over_epochs():
    schedule = PiecewiseLinear([0, 1e-3, 5e-4, 1e-4], [0, 10, 15, 20])
    assert [schedule(Moment(e)) for e in (0, 5, 10, 12.5, 20, 30)] == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 1e-4, 1e-4])


def test_stretched_to_a_shorter_run():
    schedule = PiecewiseLinear([0, 1, 0], [0, 40, 100], stretch_to=10)
    assert [schedule(Moment(e)) for e in (0, 4, 10)] == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    ("values", "epochs"), [([], []), ([1, 2], [0]), ([1, 2], [1, 2]), ([1, 2, 3], [0, 5, 5]), ([1, 2], [0, -1])]
)
def test_lists_that_do_not_fit_are_refused(values, epochs):
    with pytest.raises(ValueError, match="schedule needs"):
        PiecewiseLinear(values, epochs)


def test_constant_between_the_epochs_of_a_change():
    schedule = PiecewiseConstant([1, 0.2, 0.04], [0, 60, 120], total=200, stretch_to=20)
    assert [schedule(Moment(e)) for e in (0, 5.99, 6, 11.9, 12, 30)] == [1, 1, 0.2, 0.2, 0.04, 0.04]
    assert schedule(end(20)) == 0.04
    for total in (0, -5):
        with pytest.raises(ValueError, match="total must be a number above 0"):
            PiecewiseConstant([1], [0], total=total, stretch_to=20)


def test_exponential_decay_in_steps_or_epochs():
    assert Exponential(0.1, steps=10_000)(Moment(3, step=5_000)) == pytest.approx(0.1**0.5)
    assert Exponential(0.9, epochs=1)(Moment(2.5, step=7)) == pytest.approx(0.9**2.5)
    for arguments in ({"rate": 0}, {"rate": 0.5}, {"rate": 0.5, "steps": 3, "epochs": 1}, {"rate": 0.5, "steps": 0}):
        with pytest.raises(ValueError, match=r"a decay needs|must be a number above 0"):
            Exponential(**{"steps": None, **arguments})


def test_a_step_of_several_batches_is_one_step():
    """Five batches an epoch, four a step: an epoch has two steps, as Lightning takes one of what is left at its end."""
    trainer = SimpleNamespace(
        num_training_batches=5, accumulate_grad_batches=4, world_size=1, datamodule=SimpleNamespace(batch_size=10),
        train_dataloader=SimpleNamespace(count=57),
    )  # fmt: skip
    module = SimpleNamespace(trainer=trainer)

    def steps(epoch):
        trainer.current_epoch = epoch
        return [now(module, batch).step for batch in range(5)]

    assert [steps(0), steps(1)] == [[0, 0, 0, 0, 1], [2, 2, 2, 2, 3]]
    # As of batches as large as a step's, two an epoch.
    assert [now(module, batch) for batch in range(5)] == [Moment(1.0, 2, 50)] * 4 + [Moment(1.5, 3, 90)]


def test_a_batch_of_fewer_images_than_asked_counts_those():
    trainer = SimpleNamespace(
        num_training_batches=1, accumulate_grad_batches=1, world_size=1, datamodule=SimpleNamespace(batch_size=2048),
        train_dataloader=SimpleNamespace(count=1300), current_epoch=2,
    )  # fmt: skip
    assert now(SimpleNamespace(trainer=trainer), 0).images == 2600


def test_warm_up_counts_images():
    schedule = WarmUp(500_000)
    assert [schedule(Moment(0, 0, n)) for n in (0, 250_000, 500_000, 1e9)] == [0, 0.5, 1, 1]
    assert WarmUp(0)(Moment(0)) == 1
    with pytest.raises(ValueError, match="images must be a number at least 0, got -1"):
        WarmUp(-1)
