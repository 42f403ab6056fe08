"""No two consumers of random numbers draw from the same stream."""

import sys
from collections import defaultdict

import pytest
import torch
from torch import nn

from latentrobust.data.images.base import Images, Split
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets import PixelBall, RTSSet
from latentrobust.perturbation_sets.quality import QualitySettings, measure_quality
from latentrobust.robustness.assess import RobustSettings, assess
from latentrobust.robustness.attacks import PGD, latent_autoattack
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.training import Adversarial, Gaussian, PairedData, Setting
from latentrobust.transforms import random
from latentrobust.transforms.affine import RotationTranslationScale


def test_no_two_purposes_give_an_equal_key():
    index = torch.arange(50)
    keys = [
        random.example_keys(seed, index, purpose, *epoch)
        for seed in (0, 1, 2)
        for purpose in Purpose
        for epoch in ((), (0,), (1,), (2,))
    ]
    roots = [random.example_keys(seed, index, Purpose.TRAINING, 0) for seed in (0, 1, 2)]
    keys += [random.fold_in(root, purpose) for root in roots for purpose in Purpose]
    keys += [random.example_keys(seed, index) for seed in (0, 1, 2)]  # permutations of a split
    together = torch.cat(keys)
    assert len(together.unique()) == len(together)


@pytest.fixture
def consumed(monkeypatch):
    """Keys that bits were drawn from, by the places in the code that asked for them."""
    found = defaultdict(set)
    original = random._bits

    def recording(keys, count):
        frame = sys._getframe(1)
        while frame.f_code.co_filename == random.__file__ or frame.f_code.co_filename.endswith("ball.py"):
            frame = frame.f_back
        place = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        found[place] |= set(keys.flatten().tolist())
        return original(keys, count)

    monkeypatch.setattr(random, "_bits", recording)
    return found


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_a_run_draws_from_each_key_in_one_place_only(consumed):
    """Data with k fixed pairs, training, attacks, measurements and certificates, all with seed 0."""
    split = Split(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 4)
    transform = RotationTranslationScale(shift=2)
    data = FormulaPairs(lambda: Images(split, split), transform, "toy", batch_size=4, validation=4, draws_per_example=2)
    data.setup()
    model, perturbations = Model(), RTSSet((1, 8, 8), transform)
    for epoch in (0, 1):
        pairs = data.pairs("train", torch.arange(8), epoch)
        keys = random.example_keys(0, pairs.index, Purpose.TRAINING, epoch)
        setting = Setting(model, perturbations, pairs, keys, Standard().attack_loss)
        for perturbation in (PairedData(ratio=0.5), Adversarial(start="random"), Gaussian(sigma=0.1)):
            perturbation(setting)
    for name in ("validation", "test"):
        pairs = data.pairs(name, torch.arange(4))
    keys = random.example_keys(0, pairs.index, Purpose.QUALITY)
    settings = QualitySettings(steps=1, draws=2, likelihood_draws=2)
    s, ball = perturbations.at(pairs.x), perturbations.ball
    measure_quality(
        s, pairs.perturbed, ball=ball, likelihood="gaussian", keys=keys, settings=settings, offset=pairs.offset
    )
    attack = latent_autoattack(steps=1, restarts=2, targets=2, draws=2, refinements=2, checks=False)
    attack(model, perturbations, pairs.x, model(pairs.x).argmax(1))
    SmoothedModel(model, perturbations, 0.1).certify(pairs.x, n0=2, n=20, alpha=0.01)
    assert len(consumed) > 8
    places = defaultdict(set)
    for place, keys in consumed.items():
        for key in keys:
            places[key].add(place)
    shared = {tuple(sorted(where)) for where in places.values() if len(where) > 1}
    assert not shared


def test_one_fixed_pair_per_example_is_perturbed_both_ways():
    """Which examples a ratio leaves out does not depend on how their perturbations were drawn."""
    split = Split(torch.zeros(800, 1, 8, 8, dtype=torch.uint8), torch.zeros(800, dtype=torch.int64))
    data = FormulaPairs(
        lambda: Images(split, split), RotationTranslationScale(), "toy", validation=1, draws_per_example=1
    )
    data.setup()
    pairs = data.pairs("train", torch.arange(799), 0)
    keys = random.example_keys(0, pairs.index, Purpose.TRAINING, 0)
    chosen = random.uniform(random.fold_in(keys, Purpose.CHOICE)) < 0.5
    angles = pairs.offset[chosen][:, 0]
    assert 0.4 < (angles > 0).double().mean() < 0.6


def test_every_walk_of_an_attack_starts_at_a_point_of_its_own():
    starts = []

    class Recorded(PixelBall):
        def condition(self, x, y=None):
            at = super().condition(x, y)
            project = at.project

            def noted(u, ball=None):
                starts.append(u[0].detach().clone())
                return project(u, ball)

            at.project = noted
            at.select = lambda chosen: at
            return at

    model, x = Model(), torch.full((1, 1, 8, 8), 0.5)
    attack = latent_autoattack(steps=0, restarts=3, targets=3, draws=0, refinements=0, checks=False)
    attack(model, Recorded((1, 8, 8), "linf", 1e-4), x, model(x).argmax(1))
    walks = torch.stack(starts)
    assert len(walks) == 1 + 3 + 3
    assert len(walks.flatten(1).unique(dim=0)) == len(walks)


def test_attacks_beside_each_other_start_at_points_of_their_own():
    starts = []

    class Recorded(PGD):
        def _begin(self, search, ball, restart, walk):
            starts.append(super()._begin(search, ball, restart, walk))
            return starts[-1]

    model, x = Model(), torch.rand(3, 1, 8, 8)
    settings = RobustSettings(attacks={name: Recorded(steps=1, checks=False) for name in "abc"}, radii=[1e-4])
    assess(model, PixelBall((1, 8, 8), "linf", 1e-4), (x, model(x).argmax(1)), robust=settings)
    assert len(torch.stack(starts).flatten(1).unique(dim=0)) == 3
