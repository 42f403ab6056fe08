"""Objectives that need more than a perturbation gives are refused before any training."""

import pytest
import torch
from torch import nn

from latentrobust.errors import InputError
from latentrobust.robustness.objectives import NoiseConsistency
from latentrobust.robustness.training import Curriculum, Gaussian, PairedData
from latentrobust.schedules import PiecewiseLinear
from latentrobust.tasks.classification import ClassificationTask


def task(perturbation):
    return ClassificationTask(
        nn.Flatten(), perturbation, NoiseConsistency(), torch.optim.Adam, PiecewiseLinear([1.0], [0]), select_on="clean"
    )


@pytest.mark.parametrize("perturbation", [PairedData(), Gaussian(sigma=1.0), Curriculum(Gaussian(sigma=1.0))])
def test_consistency_of_one_draw_is_refused(perturbation):
    with pytest.raises(InputError, match=r"compares several draws per image, and there is one: .*draws=2"):
        task(perturbation)


def test_consistency_of_two_draws_is_taken():
    for perturbation in (Gaussian(sigma=1.0, draws=2), Curriculum(Gaussian(sigma=1.0, draws=2))):
        assert task(perturbation).training_perturbation is perturbation
