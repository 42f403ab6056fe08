"""Certificates: golden statistics, soundness where the true radius is known, and independence of how they are made."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from torch import nn

from latentrobust.errors import InputError
from latentrobust.perturbation_sets import CVAESet, PixelBall
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.smoothing import ABSTAIN, Certificate, SmoothedModel, level_for
from latentrobust.robustness.statistics import (
    Fixed,
    GroupSequential,
    certified_radius,
    count_p_values,
    decided,
    holm_rejections,
    lower_bound,
    noise_level,
    required_count,
    two_sided_p_value,
    upper_bound,
)
from latentrobust.transforms import random

from .conftest import SHAPE, Linear, ball

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "statistics.json").read_text())


def test_bounds_and_radii_equal_the_golden_ones():
    for row in GOLDEN["certify"]:
        p = lower_bound(row["k"], row["n"], row["alpha"])
        np.testing.assert_allclose(p, row["lower_bound"], rtol=1e-9)
        assert (p <= 0.5) == row["abstain"]
        if not row["abstain"]:
            np.testing.assert_allclose(certified_radius(p, 1.0), row["radius"], rtol=1e-9)
    for row in GOLDEN["smallest_certified"]:
        assert required_count(np.nextafter(0.5, 1), row["n"], row["alpha"]) == row["smallest_k_certified"]


def test_noise_levels_equal_the_golden_and_the_published_ones():
    for row in GOLDEN["noise_level"]:
        np.testing.assert_allclose(noise_level(row["epsilon"], row["n"], row["alpha"]), row["sigma"], rtol=1e-9)
    assert [round(noise_level(r), 2) for r in (2.7, 3.9, 10.2)] == [0.84, 1.22, 3.19]
    assert round(noise_level(17, n=1000), 2) == 6.90


def test_p_values_equal_the_golden_ones():
    for row in GOLDEN["predict"]:
        p = two_sided_p_value(row["count1"], row["count2"])
        np.testing.assert_allclose(p, row["p_value"], rtol=1e-9, atol=1e-300)
        assert (p > 0.001) == row["abstain_alpha_0.001"]
    for row in GOLDEN["predict_thresholds"]:
        k = row["smallest_count1_not_abstaining"]
        assert two_sided_p_value(k, row["n"] - k) <= row["alpha"] < two_sided_p_value(k - 1, row["n"] - k + 1)


def test_bounds_of_a_map_equal_those_of_its_pixels():
    k = np.random.default_rng(0).integers(0, 1001, (7, 9))
    whole = lower_bound(k, 1000, 0.001)
    np.testing.assert_array_equal(whole, [[lower_bound(int(c), 1000, 0.001) for c in row] for row in k])
    np.testing.assert_allclose(upper_bound(k, 1000, 0.001), 1 - lower_bound(1000 - k, 1000, 0.001))


def test_group_sequential_spends_exactly_alpha_and_ends_at_n():
    for n, alpha in ((10_000, 0.001), (1000, 0.001), (150, 0.05), (100, 0.01), (60, 0.01)):
        looks = GroupSequential(n, alpha).looks
        assert sum(spent for _, spent in looks) == pytest.approx(alpha, rel=1e-12)
        assert looks[-1][0] == n
        assert all(a[0] < b[0] for a, b in pairwise(looks))


@pytest.mark.parametrize("n", [20, 50, 64, 100, 1000, 10_000])
def test_unanimous_draws_at_the_noise_level_certify_its_radius(n):
    for procedure in (Fixed(n, 0.001), GroupSequential(n, 0.001)):
        last, spent = procedure.looks[-1]
        for radius in (0.5, 1.0, 2.7, 3.9, 10.2):
            sigma = noise_level(radius, procedure=procedure)
            assert lower_bound(last, last, spent) >= level_for(radius, sigma)
    with pytest.raises(InputError, match="can certify nothing"):
        GroupSequential(10, 0.001, first=5)


def test_noise_level_knows_the_procedure():
    procedure = GroupSequential(1000, 0.001)
    sigma = noise_level(2.0, procedure=procedure)
    assert sigma > noise_level(2.0, 1000, 0.001)
    last, spent = procedure.looks[-1]
    assert certified_radius(lower_bound(last, last, spent), sigma) == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("procedure", [Fixed(400, 0.05), GroupSequential(400, 0.05)], ids=["fixed", "adaptive"])
def test_bounds_exceed_the_truth_no_more_often_than_alpha(procedure):
    """20,000 certificates a true probability, by the procedure's own looks, stopping as late or early as it pleases."""
    generator = np.random.default_rng(1)
    for p in (0.55, 0.8, 0.97):
        trials, before, successes = 20_000, 0, 0
        best = np.zeros(20_000)
        for total, alpha in procedure.looks:
            successes = successes + generator.binomial(total - before, p, trials)
            before = total
            best = np.maximum(best, lower_bound(successes, total, alpha))  # never stopping is the worst rule
        violations = int((best > p).sum())
        assert stats.binomtest(violations, trials, 0.05, alternative="greater").pvalue > 1e-3


class Plane(nn.Module):
    """Two classes on the sides of a hyperplane through the middle of pixel space."""

    def __init__(self, pixels, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(pixels, generator=generator)
        self.weight = nn.Parameter(w / w.norm())

    def forward(self, x):
        side = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([side, -side], 1)


class Unclamped(PixelBall):
    """The identity generator: images may leave [0, 1], so the true radius is the distance to the hyperplane."""

    def condition(self, x):
        at = super().condition(x)
        at.decode = lambda u: at.x + u
        at.select = lambda chosen: self.condition(at.x[chosen])
        return at


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_certificates_of_a_linear_model_are_sound(adaptive):
    """Every radius against the distance to the hyperplane: at most a share alpha may exceed it."""
    count, alpha = 20_000, 0.05
    model = Plane(16)
    x = 0.5 + 0.3 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * torch.rand(count, 1, 1, 1)
    smoothed = SmoothedModel(model, Unclamped((1, 4, 4), "l2", 1.0), sigma=0.25, batch=4096)
    found = smoothed.certify(x, n0=20, n=200, alpha=alpha, adaptive=adaptive, targets=(0.1, 0.25))
    distance = ((x.flatten(1) - 0.5) @ model.weight).abs().detach().double()
    right = found.prediction == model(x).argmax(1)
    exceeds = (found.prediction != ABSTAIN) & (~right | (found.radius > distance))
    violations = int(exceeds.sum())
    assert stats.binomtest(violations, count, alpha, alternative="greater").pvalue > 1e-3, violations
    assert 0.2 < (found.radius > 0.1).double().mean() < 0.9
    if adaptive:
        assert found.draws.double().mean() < 195
    else:
        assert (found.draws == 200).all()


def test_an_example_is_given_up_once_an_optimistic_guess_falls_short():
    procedure = GroupSequential(2000, 0.001)
    last, spent = procedure.looks[-1]
    for look in (0, 3, len(procedure.looks) - 2):
        drawn, _ = procedure.looks[look]
        for level in (0.5, 0.9, 0.99):
            k = np.arange(drawn + 1)
            hopeful = upper_bound(k, drawn, procedure.futility)
            reach = k + stats.binom.ppf(1 - procedure.futility, last - drawn, hopeful)
            hopes = lower_bound(np.minimum(reach, last).astype(int), last, spent) >= level
            given_up = decided(k, np.zeros(len(k)), look, procedure, [level])
            assert (given_up == ~hopes).all()
            assert not given_up[-1]
            assert given_up[0]


def test_adaptive_decides_the_targets_as_fixed_does():
    """The same draws, so the decisions differ only through the error probability that the looks use up."""
    model = Plane(16)
    x = 0.5 + 0.4 * torch.randn(1500, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * torch.rand(1500, 1, 1, 1)
    smoothed = SmoothedModel(model, Unclamped((1, 4, 4), "l2", 1.0), sigma=0.25, batch=2048)
    targets = (0.1, 0.3)
    fixed = smoothed.certify(x, n0=20, n=1000, alpha=0.001)
    adaptive = smoothed.certify(x, n0=20, n=1000, alpha=0.001, adaptive=True, targets=targets)
    assert torch.equal(
        fixed.prediction[fixed.prediction != ABSTAIN],
        torch.where(adaptive.prediction == ABSTAIN, fixed.prediction, adaptive.prediction)[fixed.prediction != ABSTAIN],
    )
    for radius in (0.0, *targets):
        share = [found.certified(radius).double().mean() for found in (fixed, adaptive)]
        assert 0.1 < share[0] < 0.95
        assert abs(share[0] - share[1]) <= 0.005
        assert not (adaptive.certified(radius) & (adaptive.p_lower < level_for(radius, 0.25))).any()
    assert adaptive.draws.double().mean() < 700


def test_noise_is_keyed_by_example_not_by_batch_or_order(small_set):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    x = torch.rand(7, 1, 8, 8)
    keys = random.example_keys(3, torch.arange(7))
    options = {"n0": 30, "n": 200, "alpha": 0.01}
    whole = SmoothedModel(model, small_set, 1.0, batch=512).certify(x, keys, **options)
    small = SmoothedModel(model, small_set, 1.0, batch=3).certify(x, keys, **options)
    turned = SmoothedModel(model, small_set, 1.0, batch=64).certify(x.flip(0), keys.flip(0), **options)
    assert torch.equal(whole.counts, small.counts)
    assert torch.equal(whole.counts, turned.counts.flip(0))
    assert torch.equal(whole.prediction, turned.prediction.flip(0))
    torch.testing.assert_close(whole.radius, small.radius)
    adaptive = SmoothedModel(model, small_set, 1.0, batch=50).certify(x, keys, adaptive=True, targets=[0.2], **options)
    stopped = adaptive.draws == 200
    assert torch.equal(adaptive.counts[stopped], whole.counts[stopped])
    assert (adaptive.counts.sum(1) == adaptive.draws).all()


def test_no_offset_within_a_certified_radius_changes_the_smoothed_class(small_set):
    """On a learned set, condition held at x: search for an offset that does, and vote there with many draws."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    x = torch.rand(24, 1, 8, 8)
    sigma, alpha = 1.0, 0.001
    smoothed = SmoothedModel(model, small_set, sigma)
    found = smoothed.certify(x, n0=50, n=1000, alpha=alpha)
    certified = (found.prediction != ABSTAIN).nonzero()[:, 0]
    assert len(certified) >= 5
    s = small_set.at(x[certified])
    worst = []
    for row, index in enumerate(certified.tolist()):
        at_x = s.select(torch.tensor([row]))
        radius = float(found.radius[index])
        y = found.prediction[index : index + 1]
        attack = PGD(steps=30, relative_step=0.1, loss="margin", checks=False)(
            model, small_set, x[index : index + 1], y, radii=[min(radius, 3.0)]
        )
        u = attack.offsets[0]
        u = u / small_set.ball.size(u).clamp_min(1e-6)[:, None] * radius * 0.999  # to the border of what is certified
        noise = random.normal(
            random.fold_in(random.example_keys(9, torch.tensor([index])), torch.arange(4000)[:, None]), (5,)
        )
        votes = model(at_x.decode(u + sigma * noise).flatten(0, 1)).argmax(1)
        worst.append(int((votes == y).sum()) / 4000)
    # At the border the class still has at least half of the probability, up to the error of 4,000 votes.
    assert min(worst) > 0.5 - 4 * 0.5 / 4000**0.5


def test_predict_abstains_by_the_test(small_set):
    class Coin(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1)[:, 0], torch.full((len(x),), 0.5)], 1)

    x = torch.full((3, 1, 4, 4), 0.5)
    x[1] += 0.04
    x[2] += 2.0
    found = SmoothedModel(Coin(), Unclamped((1, 4, 4), "l2", 1.0), sigma=0.25).predict(x, n=100, alpha=0.001)
    assert found.prediction[0] == ABSTAIN
    assert found.prediction[2] == 0
    for row in range(3):
        top = found.counts[row].sort(descending=True).values.tolist()
        expected = stats.binomtest(top[0], sum(top), 0.5).pvalue
        assert found.p_value[row].item() == pytest.approx(expected)
        assert (found.prediction[row] == ABSTAIN) == (expected > 0.001)


def test_certificates_per_pixel():
    """Each pixel is a model of its own: the distance of its value to one half."""
    x = torch.rand(3, 1, 4, 5)
    smoothed = SmoothedModel(Threshold(), Unclamped((1, 4, 5), "l2", 1.0), sigma=0.2, batch=100)
    found = smoothed.certify(x, n0=30, n=500, alpha=0.001)
    assert found.prediction.shape == found.radius.shape == found.p_lower.shape == (3, 4, 5)
    assert found.counts.shape == (3, 2, 4, 5)
    assert (found.counts.sum(1) == 500).all()
    decided = found.prediction != ABSTAIN
    assert 0.4 < decided.double().mean() < 1
    assert torch.equal(found.prediction[decided], (x[:, 0] > 0.5).long()[decided])
    assert (found.radius <= (x[:, 0] - 0.5).abs())[decided].double().mean() > 0.95
    adaptive = smoothed.certify(x, n0=30, n=500, alpha=0.001, adaptive=True, targets=[0.1])
    assert adaptive.draws.shape == (3,)


class Threshold(nn.Module):
    """Two classes on the sides of one half, for each pixel."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


@pytest.mark.slow
def test_certificates_of_pixels_are_sound_each_and_all_of_an_image_at_once():
    """The true radius of a pixel is its distance to one half; most lie close to the radius that is asked for."""
    images, pixels, alpha, sigma = 4000, 12, 0.05, 0.2
    smoothed = SmoothedModel(Threshold(), Unclamped((1, 3, 4), "l2", 1.0), sigma=sigma, batch=4000)
    distance = 0.06 + 0.02 * (torch.rand(images, 3, 4, generator=torch.Generator().manual_seed(5)).double() - 0.7)
    side = torch.rand(images, 3, 4, generator=torch.Generator().manual_seed(6)) < 0.5
    x = (0.5 + torch.where(side, distance, -distance))[:, None].float()
    found = smoothed.certify(x, n0=20, n=200, alpha=alpha)
    for radius in (0.0, 0.05, 0.06):
        wrong = (found.prediction != side.long()) | (distance < radius)
        each = int((found.certified(radius) & wrong).sum())
        assert stats.binomtest(each, images * pixels, alpha, alternative="greater").pvalue > 1e-3
        together = found.certified_together(radius)
        whole = int((together & wrong).flatten(1).any(1).sum())
        assert stats.binomtest(whole, images, alpha, alternative="greater").pvalue > 1e-3, (radius, whole)
        assert not (together & ~found.certified(radius)).any()
        # One pixel at a time is no statement about an image: without the correction many images have an error.
        alone = int((found.certified(radius) & wrong).flatten(1).any(1).sum())
        if radius == 0.06:
            assert stats.binomtest(alone, images, alpha, alternative="greater").pvalue < 1e-3
        assert together.any()


def test_holm_agrees_with_statsmodels_and_never_rejects_less_than_bonferroni():
    generator = np.random.default_rng(0)
    p = generator.uniform(0, 1, (10, 30)) ** 9
    p.sort(-1)
    ours = holm_rejections(p, 0.05)
    for row, rejections in zip(p, ours, strict=True):
        np.testing.assert_array_equal(np.arange(30) < rejections, multipletests(row, 0.05, "holm")[0])
    bonferroni = (p <= 0.05 / 30).sum(-1)
    assert (ours >= bonferroni).all()
    assert (ours > bonferroni).any()


def test_pixels_certified_together_are_those_that_holm_rejects():
    """Counts with ties, and positions that abstain, through a call of statsmodels for each image."""
    k = torch.tensor([[100, 100, 97, 60, 40], [100, 92, 92, 92, 99], [50, 55, 60, 45, 52]])
    counts = torch.stack([100 - k, k], 1)
    prediction = torch.where(k > 64, 1, ABSTAIN)
    zeros = torch.zeros(3, 5)
    found = Certificate(prediction, zeros, zeros, counts, torch.tensor([100] * 3), 1.0, Fixed(100, 0.05))
    for radius in (0.0, 0.5, 1.0, 1.4):
        p = count_p_values(torch.where(prediction == 1, k, 0).numpy(), 100, level_for(radius, 1.0))
        expected = np.stack([multipletests(row, 0.05, "holm")[0] for row in p])
        np.testing.assert_array_equal(found.certified_together(radius).numpy(), expected)


def test_p_values_of_counts_decide_as_the_bounds_do():
    k = np.arange(0, 501)
    for level in (0.5, 0.8, 0.99):
        for alpha in (0.001, 1e-6):
            np.testing.assert_array_equal(count_p_values(k, 500, level) <= alpha, lower_bound(k, 500, alpha) >= level)


def test_of_an_image_with_one_class_all_at_once_is_each_alone():
    x = 0.4 + 0.2 * torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    certificate = SmoothedModel(Linear(), ball("l2", 1.0), 0.1).certify(x, n=200, alpha=0.01)
    for radius in (0.0, 0.05, 0.1):
        each = certificate.certified(radius)
        assert int(each.sum()) > 0
        assert torch.equal(certificate.certified_together(radius), each)
    for radius in (-1, float("nan"), None):
        with pytest.raises(InputError):
            certificate.certified_together(radius)


def test_all_pixels_at_once_need_a_fixed_number_of_draws():
    smoothed = SmoothedModel(Threshold(), Unclamped((1, 3, 4), "l2", 1.0), sigma=0.2)
    found = smoothed.certify(torch.rand(2, 1, 3, 4), n0=10, n=200, alpha=0.01, adaptive=True)
    with pytest.raises(InputError, match="adaptive=false"):
        found.certified_together(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 5}, "n = 5 draws can certify nothing"),
        ({"alpha": 0.7}, "alpha must be in"),
        ({"n0": 0}, "n0 must be a whole number at least 1, got 0"),
        ({"targets": [-1.0]}, "entry 0 is a number at least 0"),
        ({"targets": [float("nan")]}, "entry 0 is a number at least 0"),
    ],
)
def test_bad_budgets_are_refused(small_set, change, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(InputError, match=message):
        SmoothedModel(model, small_set, 1.0).certify(torch.rand(2, 1, 8, 8), **{"n": 100, **change})


def test_more_bad_input(small_set):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InputError, match="sigma"):
        SmoothedModel(model, small_set, 0.0)
    with pytest.raises(InputError, match="always abstain"):
        SmoothedModel(model, small_set, 1.0).predict(x, n=10, alpha=0.001)
    assert SmoothedModel(model, small_set, 1.0).predict(x, n=11, alpha=0.001).counts.sum() == 22
    with pytest.raises(ValueError, match="got a batch"):
        SmoothedModel(model, small_set, 1.0).certify(torch.rand(2, 1, 9, 9))
    with pytest.raises(InputError, match="NaN"):
        SmoothedModel(nn.Sequential(model, nn.Threshold(100, float("nan"))), small_set, 1.0).certify(x, n=100)
    small_set.needs_label = True
    with pytest.raises(InputError, match="would know the answer"):
        SmoothedModel(model, small_set, 1.0)
    with pytest.raises(InputError, match="radius must be a number above 0"):
        noise_level(-1.0)


def test_a_set_is_conditioned_once_an_example(small_set):
    calls = []
    encode = small_set.network.encode_prior
    small_set.network.encode_prior = lambda x: calls.append(len(x)) or encode(x)
    assert isinstance(small_set, CVAESet)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    SmoothedModel(model, small_set, 1.0, batch=16).certify(torch.rand(20, 1, 8, 8), n0=10, n=100, alpha=0.01)
    assert sum(calls) == 20


class Cramped(nn.Module):
    """Takes so many images at once, as a device does."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.failed = model, most, 0

    def forward(self, x):
        if len(x) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("too many")
        return self.model(x)


def test_batches_that_do_not_fit_are_halved_and_the_figures_stay(small_set, caplog):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x = torch.rand(6, 1, 8, 8)
    options = {"n0": 10, "n": 60, "alpha": 0.05}
    whole = SmoothedModel(model, small_set, 0.5, batch=64).certify(x, **options)
    cramped = Cramped(model, 3)
    found = SmoothedModel(cramped, small_set, 0.5, batch=64).certify(x, **options)
    assert torch.equal(found.counts, whole.counts)
    assert torch.equal(found.prediction, whole.prediction)
    said = [record.getMessage() for record in caplog.records if "do not fit into memory" in record.getMessage()]
    assert said[0].startswith("60 images at once do not fit into memory: going on with 30")
    assert len(said) == cramped.failed <= 5  # once each time, not for each batch
    with pytest.raises(torch.OutOfMemoryError):
        SmoothedModel(Cramped(model, 0), small_set, 0.5).certify(x, **options)


def test_a_model_of_one_output_is_not_certified():
    """Its largest logit is always the only one."""
    model = lambda images: images.flatten(1).mean(1, keepdim=True) - 0.5  # noqa: E731
    smoothed = SmoothedModel(model, PixelBall((1, 8, 8), "l2", 1.0), 0.5)
    for ask in (smoothed.certify, smoothed.predict):
        with pytest.raises(InputError, match="of two classes or more"):
            ask(torch.rand(2, 1, 8, 8), n=50)
