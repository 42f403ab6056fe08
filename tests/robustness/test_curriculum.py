"""A curriculum: ordinary perturbations first, then growing radii."""

import pytest
import torch
from torch import nn

from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, Curriculum, Gaussian, Setting, Unperturbed
from latentrobust.trained_for import trained_for
from latentrobust.transforms import random


def setting(epoch, pairs=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(5, 1, 4, 4)
    batch = Batch(
        x, torch.arange(5), torch.zeros(5).long(), torch.arange(5) % 3, x.flip(0) if pairs else None, None, epoch
    )
    keys = random.example_keys(0, batch.index)
    return Setting(model, PixelBall((1, 4, 4), "l2", 0.2), batch, keys, Standard().attack_loss)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0), (9, 0), (11, 0.25), (12, 0.5), (14, 1), (99, 1)])
def test_the_radius_grows_after_the_warm_up(epoch, share):
    curriculum = Curriculum(Adversarial(steps=3, relative_step=0.5), values=[0, 0, 1], epochs=[0, 10, 14])
    at = setting(epoch)
    images, targets = curriculum(at)
    assert torch.equal(targets, at.batch.labels)
    if share == 0:
        assert torch.equal(images, at.batch.perturbed)
        return
    norms = (images - at.batch.x).flatten(1).norm(dim=1)
    assert norms.max() == pytest.approx(0.2 * share, rel=1e-3)  # a linear model: the search ends at the surface
    alone = Adversarial(0.2 * share, steps=3, relative_step=0.5)(setting(epoch))
    assert torch.allclose(images, alone.images, atol=1e-6)


def test_the_warm_up_is_what_there_is():
    curriculum = Curriculum(Adversarial())
    assert torch.equal(curriculum(setting(0, pairs=False)).images, setting(0).batch.x)
    assert torch.equal(Curriculum(Adversarial(), Unperturbed())(setting(0)).images, setting(0).batch.x)


def test_noise_grows_too():
    whole, half = (
        Curriculum(Gaussian(sigma=0.01), values=[share], epochs=[0])(setting(0)).images - setting(0).batch.x
        for share in (1, 0.5)
    )
    inside = (setting(0).batch.x > 0.1) & (setting(0).batch.x < 0.9)
    assert torch.allclose(whole[inside], 2 * half[inside], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": [0, 1, 0.5], "epochs": [0, 1, 2]}, "must not fall"),
        ({"values": [0, 2], "epochs": [0, 1]}, "from 0 to 1"),
        ({"values": [0, 1], "epochs": [0]}, "as many values as epochs"),
        ({"values": [0, 1], "epochs": [0, 0]}, "rising from 0"),
        ({"values": [0, 1], "epochs": [1, 2]}, "rising from 0"),
        ({"values": [0, 0], "epochs": [0, 1]}, "never uses"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Curriculum(Adversarial(), **options)


def test_it_stretches_and_says_when_it_begins():
    curriculum = Curriculum(Adversarial(), values=[0, 0, 1], epochs=[0, 10, 20], stretch_to=40)
    assert [curriculum.share(epoch) for epoch in (20, 30, 40)] == [0, 0.5, 1]
    assert curriculum.last_begins == 21
    for values, epochs, begins in (
        ([1], [0], 0),
        ([0.5, 1], [0, 9], 0),
        ([0, 0, 1], [0, 9.9, 10], 10),
        ([0, 1], [0, 5], 1),
    ):
        curriculum = Curriculum(Adversarial(), values=values, epochs=epochs)
        assert curriculum.last_begins == begins
        assert curriculum.share(begins) > 0
        assert not begins or curriculum.share(begins - 1) == 0
    assert Curriculum(Adversarial(), values=[0, 0, 1], epochs=[0, 1e12, 2e12]).last_begins == 10**12 + 1  # at once
    target = "latentrobust.robustness.training."
    inner = {"_target_": f"{target}Adversarial", "radius": "p75"}
    curriculum = {"_target_": f"{target}Curriculum", "perturbation": inner}
    assert trained_for(curriculum) == "p75"
    curriculum |= {"values": [0, 0, 0.5, 1, 1], "epochs": [0, 49.9, 50, 65, 100], "stretch_to": 32}
    for epochs, steps, radius in ((32, -1, "p75"), (20, -1, None), (32, 100, None)):  # of a name there are no shares
        assert trained_for(curriculum, trainer={"max_epochs": epochs, "max_steps": steps}) == radius
    for given, share in (
        ({"epochs": [0, 1, 2, 3, 4]}, 1),
        ({"values": [0, 1, 1]}, None),
        ({"stretch_to": "${x}"}, None),
    ):
        own = {"_target_": f"{target}Curriculum", "perturbation": {**inner, "radius": 2.0}, **given}
        assert trained_for(own, trainer={"max_epochs": 9}) == (share and 2.0 * share)
    own = {"_target_": f"{target}Curriculum", "perturbation": {**inner, "radius": 2.0}}
    assert trained_for(own, trainer={"max_epochs": 60}) == pytest.approx(2 * (0.5 + 0.5 * 9 / 15))
    short = {**curriculum, "perturbation": {**inner, "radius": 2.0}, "stretch_to": 2}
    assert trained_for(short, trainer={"max_epochs": 2, "max_steps": -1}) == pytest.approx(1.0)  # half of it
