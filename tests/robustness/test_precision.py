"""Images in half precision: offsets, draws and balls stay float32, inside the ball."""

import copy

import pytest
import torch
from torch import nn

from latentrobust.batch import Batch
from latentrobust.networks.cvae import structured
from latentrobust.perturbation_sets import CVAESet, LatentBall, PixelBall, RTSSet
from latentrobust.robustness.attacks import APGD, PGD, RandomSearch
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.training import Adversarial, Gaussian, Sample, Setting
from latentrobust.transforms import random

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
SHAPE = (1, 6, 6)


@HALVES
def test_draws_in_half_precision_stay_below_one_and_finite(dtype):
    keys = random.example_keys(0, torch.arange(20_000))
    draws = random.uniform(keys, (8,), dtype)
    assert draws.dtype == dtype
    assert draws.isfinite().all()
    assert 0 <= draws.min() <= draws.max() < 1
    assert abs(float(draws.double().mean()) - 0.5) < 0.01
    normal = random.normal(keys, (8,), dtype)
    assert normal.isfinite().all()
    assert abs(float(normal.double().std()) - 1) < 0.01


@HALVES
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_balls_draw_and_project_in_float32(dtype, norm):
    ball = LatentBall((500,), norm, 0.3)
    keys = random.example_keys(0, torch.arange(300))
    for u in (ball.uniform(keys, dtype), ball.truncated_normal(keys, dtype), ball.uniform_length(keys, dtype)):
        assert u.dtype == torch.float32
        assert (ball.size(u) <= 0.3 * (1 + 1e-6)).all()
    projected = ball.project(torch.randn(300, 500).to(dtype))
    assert projected.dtype == torch.float32
    assert (ball.size(projected) <= 0.3 * (1 + 1e-6)).all()


@HALVES
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "attack", [PGD(steps=4, checks=False), APGD(steps=6, checks=False), RandomSearch(draws=4, refinements=4)]
)
def test_attacks_on_half_precision_models_stay_in_the_ball(dtype, norm, attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).to(dtype)
    x = torch.rand(20, *SHAPE).to(dtype)
    perturbations = PixelBall(SHAPE, norm, 0.3)
    found = attack(model, perturbations, x, model(x).argmax(1))
    assert found.images.dtype == dtype  # what the model takes
    assert found.offsets.dtype == torch.float32
    assert (perturbations.ball.size(found.offsets) <= 0.3 * (1 + 1e-5)).all()
    assert found.fooled.any()


@HALVES
def test_training_and_certificates_take_half_precision_images(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).to(dtype)
    x = torch.rand(6, *SHAPE).to(dtype)
    for perturbations in (PixelBall(SHAPE, "l2", 0.3), RTSSet(SHAPE, shift=1)):
        batch, keys = Batch.of(x, model(x).argmax(1)), random.example_keys(0, torch.arange(6))
        setting = Setting(model, perturbations, batch, keys, Standard().attack_loss)
        for perturbation in (Adversarial(steps=2), Gaussian(sigma=0.1), Sample()):
            images = perturbation(setting).images
            assert images.dtype == dtype
            assert images.isfinite().all()
        assert SmoothedModel(model, perturbations, 0.1).certify(x, n=20, alpha=0.01).counts.sum() == 6 * 20


def test_half_precision_warps_are_those_of_float32():
    transform = RTSSet(SHAPE, shift=1).transform
    x = torch.rand(4, 1, 40, 40)
    offset = transform.draw(random.example_keys(0, torch.arange(4)), (1, 40, 40))
    narrow = transform.apply(x.bfloat16(), offset).float()
    torch.testing.assert_close(narrow, transform.apply(x.bfloat16().float(), offset), atol=4e-3, rtol=0)


@HALVES
@pytest.mark.parametrize(
    "options", [{"refine": True}, {"blur": False, "light": 0, "residual": 0, "space": "logit"}, {"field": 4}]
)
def test_structured_sets_in_half_precision_decode_what_float32_does(dtype, options):
    torch.manual_seed(0)
    whole = CVAESet(structured(image_shape=(1, 16, 16), latent=8, **options), "bernoulli", 2.0).eval()
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, u = torch.rand(3, 1, 16, 16), torch.randn(3, 8) / 2
    half = copy.deepcopy(whole).to(dtype).at(x.to(dtype))
    assert half.decode(u).dtype == dtype
    torch.testing.assert_close(half.decode(u).float(), whole.at(x).decode(u), atol=0.04, rtol=0)
    assert half.encode(x.to(dtype)).isfinite().all()


@HALVES
def test_an_exact_set_finds_offsets_of_half_precision_images(dtype):
    x = torch.rand(2, 1, 12, 12).to(dtype)
    assert RTSSet((1, 12, 12), shift=1).at(x).encode(x).abs().max() < 0.1
