"""Exact and learned sets behind the one interface."""

import pytest
import torch

from latentrobust.batch import Batch
from latentrobust.data.images import digits
from latentrobust.errors import InputError
from latentrobust.perturbation_sets import PixelBall, RTSSet
from latentrobust.perturbation_sets.coverage import Coverage, CoverageSettings, measure_coverage
from latentrobust.transforms.affine import RotationTranslationScale, pad_to
from latentrobust.transforms.random import example_keys


@pytest.fixture(scope="module")
def digits42():
    return pad_to(digits().test.images[:8].float() / 255, 42)


def every_set(small_set):
    return [small_set, PixelBall((1, 8, 8), "linf", 0.3), PixelBall((1, 8, 8), "l2", 1.0), RTSSet((1, 8, 8), shift=2)]


def test_one_interface(small_set):
    x = torch.rand(3, 1, 8, 8)
    for perturbations in every_set(small_set):
        s = perturbations.at(x)
        keys = example_keys(0, torch.arange(3))
        u = s.sample(5, keys)
        shape = perturbations.ball.shape
        assert u.shape == (5, 3, *shape)
        assert (perturbations.ball.size(u) <= perturbations.ball.radius * (1 + 1e-5)).all()
        images = s.decode(u)
        assert images.shape == (5, 3, 1, 8, 8)
        assert images.min() >= 0
        assert images.max() <= 1 + 1e-6
        torch.testing.assert_close(s.decode(u[2]), images[2])
        assert s.encode(images[0], u[0]).shape == (3, *shape)
        assert torch.equal(s.sample(5, keys), u)
        assert s.reconstruct(images[0], keys, u[0]).shape == x.shape


def test_draws_do_not_depend_on_the_batch(small_set):
    x, keys = torch.rand(6, 1, 8, 8), example_keys(0, torch.arange(6))
    for perturbations in every_set(small_set):
        together = perturbations.at(x).sample(2, keys)
        apart = torch.cat([perturbations.at(x[i : i + 2]).sample(2, keys[i : i + 2]) for i in (0, 2, 4)], 1)
        assert torch.equal(together, apart)


def test_wrong_image_shape_is_named(small_set):
    for perturbations in every_set(small_set):
        with pytest.raises(ValueError, match=r"\[1, 8, 8\].*\[2, 1, 9, 8\]"):
            perturbations.at(torch.rand(2, 1, 9, 8))


def test_cvae_offset_divides_by_the_standard_deviation(small_set):
    x, x_tilde = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    s = small_set.at(x)
    mean, logvar = small_set.network.prior(x)
    expected = (small_set.network.recognition(x, x_tilde)[0] - mean) / (logvar / 2).exp()
    torch.testing.assert_close(s.encode(x_tilde), expected)
    torch.testing.assert_close(s.decode(s.encode(x_tilde)), small_set.network.generate(x, s.posterior(x_tilde).mean))


def test_kl_matches_torch_distributions(small_set):
    x, x_tilde = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    s = small_set.at(x)
    q, p = s.posterior(x_tilde), s.prior
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.std), torch.distributions.Normal(p.mean, p.std)
    ).sum(1)
    torch.testing.assert_close(s.kl(x_tilde), expected)


def test_pixel_ball_round_trip_is_exact():
    x, perturbations = torch.rand(4, 1, 8, 8), PixelBall((1, 8, 8), "linf", 0.3)
    x_tilde = (x + 0.6 * torch.rand_like(x) - 0.3).clamp(0, 1)
    s = perturbations.at(x)
    assert (s.decode(perturbations.ball.project(s.encode(x_tilde))) - x_tilde).abs().max() < 1e-6


def test_rts_finds_offsets_it_is_not_told(digits42):
    perturbations = RTSSet((1, 42, 42))
    s = perturbations.at(digits42)
    u = s.sample(1, example_keys(0, torch.arange(8)))[0]
    x_tilde = s.decode(u)
    assert torch.equal(s.encode(x_tilde, u), u)
    found = s.decode(perturbations.ball.project(s.encode(x_tilde)))
    assert (found - x_tilde).square().mean((1, 2, 3)).max() < 1e-5
    assert (digits42 - x_tilde).square().mean((1, 2, 3)).min() > 1e-2


def test_offsets_of_a_smaller_rts_set_are_looked_for_in_the_whole_bounds(digits42):
    """Else every pair would lie within any radius, and what a set reaches would be as far as its ball is away."""
    perturbations = RTSSet((1, 42, 42), radius=0.2)
    whole, part = RTSSet((1, 42, 42)).at(digits42), perturbations.at(digits42)
    drawn = torch.tensor([[0.9, 0.1, 0.1, 0.0], [-0.8, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]])
    u = torch.cat([drawn, drawn])
    found = part.encode(whole.decode(u))
    assert torch.equal(part.ball.size(found) <= 0.2 + 1e-3, part.ball.size(u) <= 0.2)
    assert (whole.decode(found) - whole.decode(u)).square().mean((1, 2, 3)).max() < 1e-5
    pairs = Batch.of(digits42, torch.zeros(8, dtype=torch.long), whole.decode(u))
    own = measure_coverage(perturbations, [pairs], torch.arange(8), "test", CoverageSettings())
    assert own.at(0.2)[0] == 0.5
    assert own.tolerance < 1e-4


def test_rts_radius_is_a_share_of_the_bounds():
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        RTSSet((1, 42, 42), radius=1.5)
    s = RTSSet((1, 8, 8), radius=0.5).at(torch.rand(50, 1, 8, 8))
    assert s.sample(4, example_keys(0, torch.arange(50))).abs().max() <= 0.5
    shifts = RTSSet((1, 8, 8), radius=0.5, shift=3).at(torch.rand(50, 1, 8, 8)).sample(4, torch.arange(50))[..., 2:] * 3
    assert set(shifts.round().flatten().tolist()) == {-1.0, 0.0, 1.0}  # whole pixels, of 1.5
    torch.testing.assert_close(shifts, shifts.round(), atol=1e-5, rtol=0)


def test_bounds_beside_a_transform_and_more_than_all_of_them_are_refused():
    transform = RotationTranslationScale()
    with pytest.raises(ValueError, match="a transform or its keywords, got both: degrees"):
        RTSSet((1, 8, 8), transform, degrees=5.0)
    s = RTSSet((1, 8, 8), transform)
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 2"):
        s.set_radius(2.0)
    s.set_radius(0.5)
    assert s.ball.radius == 0.5


def test_no_images_and_no_draws_decode_to_none(small_set):
    for s, x in ((RTSSet((1, 8, 8)), torch.rand(3, 1, 8, 8)), (small_set, torch.rand(3, 1, 8, 8))):
        none, at = s.at(x[:0]), s.at(x)
        assert none.encode(x[:0]).shape == (0, *s.ball.shape)
        assert none.decode(torch.zeros(0, *s.ball.shape)).shape == (0, 1, 8, 8)
        assert at.decode(at.sample(0)).shape == (0, 3, 1, 8, 8)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, "numpy"])
def test_images_and_what_they_became_may_be_of_any_precision(small_set, kind):
    x, x_tilde = torch.rand(2, 3, 1, 8, 8).bfloat16().float()
    wanted = small_set.at(x)
    given = [part.double().numpy() if kind == "numpy" else part.to(kind) for part in (x, x_tilde)]
    at = small_set.at(given[0])
    torch.testing.assert_close(at.encode(given[1]), wanted.encode(x_tilde))
    torch.testing.assert_close(at.kl(given[1]), wanted.kl(x_tilde))
    u = torch.rand(2, 3, *small_set.ball.shape).bfloat16().float()
    offsets = u.double().numpy() if kind == "numpy" else u.double()
    torch.testing.assert_close(at.decode(offsets), wanted.decode(u))
    keys = example_keys(0, torch.arange(3))
    torch.testing.assert_close(at.reconstruct(given[1], keys), wanted.reconstruct(x_tilde, keys))
    with pytest.raises(InputError, match=r"perturbed images must be \[3, 1, 8, 8\].*got \[2, 1, 8, 8\]"):
        at.encode(given[1][:2])
    with pytest.raises(InputError, match="perturbed images are floating-point numbers in"):
        at.encode((255 * x_tilde).byte())


def test_radii_by_coverage_need_a_share(small_set):
    small_set.coverage = Coverage(0.01, (0.0, 1.0), (0.5, 0.9), (0.4, 0.8), (0.6, 1.0), 20, 10, "validation")
    assert small_set.radius_of("coverage=0.9") == 1
    for share in ("-1", "0", "nan", "1.2", "some"):
        with pytest.raises(InputError, match="a share above 0 and at most 1"):
            small_set.radius_of(f"coverage={share}")
