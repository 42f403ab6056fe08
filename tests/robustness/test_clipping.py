"""Searches over sets whose images are cut to [0, 1], on images with 0s and 1s, against closed forms."""

import warnings

import pytest
import torch
from scipy.optimize import brentq

from latentrobust.batch import Batch
from latentrobust.errors import RobustnessWarning
from latentrobust.perturbation_sets import PixelBall
from latentrobust.perturbation_sets.base import PerturbationSet, SetAt
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.perturbation_sets.quality import over_error, pgd_error
from latentrobust.robustness.attacks import APGD, PGD, latent_autoattack
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, Setting
from latentrobust.transforms import random

from .conftest import SHAPE, Linear

NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])
RADII = {"l2": 0.6, "linf": 0.25}
ATTACKS = {
    "pgd": PGD(steps=60, relative_step=0.2, checks=False),
    "pgd_zero": PGD(steps=60, relative_step=0.2, start="zero", checks=False),
    "apgd": APGD(steps=60, checks=False),
    "apgd_dlr": APGD(steps=60, loss="dlr", checks=False),
    "autoattack": latent_autoattack(steps=60, restarts=1, targets=1, draws=5, refinements=20, checks=False),
}


@pytest.fixture
def digits_like():
    """Most pixels are 0 or 1, as in MNIST."""
    x = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return ((x - 0.5) * 4 + 0.5).clamp(0, 1)


def best_gain(slope, x, norm, radius):
    """``max ⟨slope, u⟩`` over ``‖u‖ ≤ radius`` with ``x + u`` in [0, 1], one example at a time."""
    low, high = -x.flatten(), 1 - x.flatten()
    if norm == "linf":
        u = torch.where(slope > 0, high, low).clamp(-radius, radius)
        return float(slope @ u)

    def along(step):  # where the gradient flow ends: u = clip(step · slope)
        return torch.minimum(torch.maximum(step * slope, low), high)

    if along(1e6).norm() <= radius:
        return float(slope @ along(1e6))
    step = brentq(lambda t: float(along(t).norm()) - radius, 0, 1e6)
    return float(slope @ along(step))


@NORMS
@pytest.mark.parametrize("name", list(ATTACKS))
def test_searches_reach_the_optimum_over_ball_and_box(linear, digits_like, norm, name):
    x, radius = digits_like, RADII[norm]
    logits = linear(x).detach()
    y = logits.argmax(1)
    difference = (linear.weight[1] - linear.weight[0]).detach()
    signs = torch.where(y == 0, 1.0, -1.0)
    gains = [best_gain(sign * difference, one, norm, radius) for sign, one in zip(signs, x, strict=True)]
    expected = (logits[:, 0] - logits[:, 1]).abs() - torch.tensor(gains, dtype=torch.float64)
    assert 0.1 < (expected < 0).double().mean() < 0.9
    found = ATTACKS[name](linear, PixelBall(SHAPE, norm, radius), x, y)
    standing = ~found.fooled[0]
    assert torch.equal(found.fooled[0], expected < 0)
    torch.testing.assert_close(found.score[0][standing], expected[standing], atol=2e-3, rtol=0)


@NORMS
def test_projected_offsets_lie_in_the_ball_and_make_images(digits_like, norm):
    perturbations = PixelBall(SHAPE, norm, RADII[norm])
    s = perturbations.at(digits_like)
    u = s.project(3 * torch.randn(5, *digits_like.shape, generator=torch.Generator().manual_seed(0)).double())
    assert (perturbations.ball.size(u) <= perturbations.ball.radius * (1 + 1e-9)).all()
    torch.testing.assert_close(digits_like + u, s.decode(u), atol=1e-12, rtol=0)  # nothing is left to cut
    torch.testing.assert_close(s.project(u), u)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_pixel_is_cut_at_the_border_of_what_is_allowed(dtype):
    """Else it has no gradient there: in every precision of images, and where the whole ball is a corner of the box."""
    levels = (torch.arange(256) / 255).to(dtype).reshape(256, 1, 1, 1)
    s = PixelBall((1, 1, 1), "linf", 2.0).at(levels)
    for end in (-2.0, 2.0):
        u = s.project(torch.full((256, 1, 1, 1), end)).requires_grad_()
        assert ((levels + u >= 0) & (levels + u <= 1)).all()
        (gradient,) = torch.autograd.grad(s.decode(u).sum(), u)
        assert (gradient == 1).all()
    x = torch.rand(3000, 1, 2, 2)
    for number in range(0, 3000, 100):
        part = x[number : number + 100]
        corner = 1 - part
        radius = float(corner[0].norm())
        projected = PixelBall((1, 2, 2), "l2", radius).at(part).project(5 * corner)
        assert projected.isfinite().all()
        assert (projected.flatten(1).norm(dim=1) <= radius * (1 + 1e-6)).all()


def test_the_farthest_and_the_nearest_point_of_the_exact_ball_are_found():
    x = (torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(3)) * 2 - 0.5).clamp(0, 1)
    x_tilde = (x + 0.3 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) - 1)).clamp(0, 1)
    perturbations = PixelBall((1, 6, 6), "linf", 0.3)
    s, ball = perturbations.at(x), perturbations.ball
    keys = random.example_keys(0, torch.arange(20))
    observed = s.encode(x_tilde)
    found = over_error(s, x_tilde, observed, ball, squared_error, steps=50, relative_step=0.05, keys=keys)
    ends = torch.stack([(x - 0.3).clamp(0, 1), (x + 0.3).clamp(0, 1)])
    torch.testing.assert_close(found.values, (ends - x_tilde).square().amax(0).mean((1, 2, 3)))
    start = ball.uniform(keys)
    near = pgd_error(s, x_tilde, start, ball, squared_error, steps=200, relative_step=0.02)
    assert near.values.max() < 2e-4


def test_training_searches_reach_the_corner_of_ball_and_box(linear, digits_like):
    y = linear(digits_like).argmax(1)
    batch, keys = Batch.of(digits_like, y), random.example_keys(0, torch.arange(len(y)))
    setting = Setting(linear, PixelBall(SHAPE, "linf", 0.25), batch, keys, Standard().attack_loss)
    slope = (linear.weight[1] - linear.weight[0]).detach().reshape(SHAPE)
    sign = torch.where(y == 0, 1.0, -1.0).reshape(-1, 1, 1, 1) * slope.sign()
    for start in ("zero", "random"):
        images = Adversarial(steps=7, relative_step=0.3, start=start)(setting).images
        torch.testing.assert_close(images, (digits_like + 0.25 * sign).clamp(0, 1))


class Clips(PerturbationSet):
    """A set of somebody's own, whose decoder clips and which does not say so."""

    def __init__(self, inner):
        super().__init__(inner.image_shape, inner.ball, "gaussian")

    finish = staticmethod(torch.nn.Identity())

    def condition(self, x, y=None):
        finish = self.finish

        class At(SetAt):
            def encode(self, x_tilde, offset=None):
                return x_tilde - self.x

            def decode(self, u):
                return finish((self.x + u).clamp(0, 1))

        return At(x, self.ball)


class Roots(Clips):
    """A set whose decoder takes a root of 0: its gradient is 0 times infinity, NaN."""

    finish = staticmethod(lambda images: images + (0 * images).sqrt())


def test_nan_gradients_of_a_decoder_are_warned_about(digits_like):
    with pytest.warns(RobustnessWarning, match="no gradient in .* % of the coordinates"):
        PGD(steps=5)(
            Linear(),
            Roots(PixelBall(SHAPE, "linf", 0.01)),
            torch.full_like(digits_like, 0.5),
            torch.zeros(len(digits_like), dtype=torch.int64),
        )


def test_coordinates_without_gradient_are_warned_about(digits_like):
    model, ball = Linear(), PixelBall(SHAPE, "linf", 0.25)
    y = model(digits_like).argmax(1)
    with pytest.warns(RobustnessWarning, match="no gradient in .* % of the coordinates"):
        PGD(steps=5)(model, Clips(ball), digits_like, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(steps=5, relative_step=0.3)(model, ball, digits_like, y)
