"""What is said about models, images and settings under which figures would mean little, and models that misbehave."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latentrobust.batch import Batch
from latentrobust.errors import InputError, RobustnessWarning, collecting, warn
from latentrobust.networks.classifiers import build
from latentrobust.perturbation_sets import CVAESet, PixelBall
from latentrobust.perturbation_sets.store import load_perturbation_set, save_perturbation_set
from latentrobust.robustness import training
from latentrobust.robustness.assess import RobustSettings, assess
from latentrobust.robustness.assessor import CertifySettings
from latentrobust.robustness.attacks import APGD, PGD, RandomSearch, latent_autoattack
from latentrobust.robustness.checks import one_class, warn_constant
from latentrobust.robustness.objectives import MaxCleanAdversarial, NuclearNorm, Standard, Trades
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.tasks.store import load_model, save_model
from latentrobust.transforms import random

from .conftest import SHAPE, Linear, ball
from .test_clipping import Clips


def test_warnings_are_collected_even_where_python_shows_them_once():
    with collecting() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            warn("first")
        with collecting() as inner:
            warn("second")
    assert found == ["first", "second"]
    assert inner == ["second"]


def test_steps_that_do_not_reach_across_the_ball_are_warned_about(linear, images):
    y = linear(images).argmax(1)
    with pytest.warns(RobustnessWarning, match="do not reach across"):
        PGD(steps=9, relative_step=0.1)(linear, ball(), images, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(steps=10, relative_step=0.1)(linear, ball(), images, y)
        APGD(steps=3)(linear, ball(), images, y)


class Scaled(nn.Module):
    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


class Quantised(Scaled):
    def forward(self, x):
        return self.inner((x * self.factor).round() / self.factor)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: Scaled(model, 1000.0), "logits are so large"),
        (lambda model: Quantised(model, 8), "no gradient at 32 of 32"),
    ],
)
def test_models_that_hide_their_gradient_are_marked_in_the_results(linear, images, wrap, message):
    y = linear(images).argmax(1)
    settings = RobustSettings(attacks={"pgd": PGD(steps=5, relative_step=0.3)}, radii=[0.1])
    report = assess(wrap(linear), ball(), (images, y), robust=settings)
    assert any(message in warning for warning in report.warnings)
    assert message in report.to_markdown()
    assert assess(linear, ball(), (images, y), robust=settings).warnings == []


def test_a_model_that_gives_one_class_to_everything_is_warned_about(linear, images):
    y = linear(images).argmax(1)
    assert len(y.unique()) > 1
    steady = nn.Linear(images[0].numel(), 2).requires_grad_(False)  # class 0, by far, with a gradient
    steady.weight *= 1e-3
    steady.bias[:] = torch.tensor([1.0, 0.0])
    constant = nn.Sequential(nn.Flatten(), steady)
    settings = RobustSettings(attacks={"pgd": PGD(steps=5, relative_step=0.3)}, radii=[0.01])
    said = "predicts class 0 for every image"
    assert any(said in text for text in assess(constant, ball(), (images, y), robust=settings).warnings)
    same = assess(constant, ball(), (images, torch.zeros_like(y)), robust=settings)  # labels sorted, say
    few = assess(constant, ball(), (images[:3], 1 - torch.zeros_like(y[:3])), robust=settings)
    assert same.warnings == few.warnings == []


def test_one_judgement_over_all_examples_whatever_their_batches(linear):
    """Sorted by class, with a wrong label: a batch whose predictions are all one class says nothing of the model."""
    images = torch.cat([torch.full((40, *SHAPE), level, dtype=torch.float64) for level in (0.3, 0.7)])
    images += 0.01 * torch.arange(80)[:, None, None, None] / 80
    level = nn.Linear(images[0].numel(), 2, dtype=torch.float64).requires_grad_(False)
    level.weight[:] = torch.tensor([[-1.0], [1.0]])
    level.bias[:] = torch.tensor([0.5, -0.5]) * images[0].numel()
    model = nn.Sequential(nn.Flatten(), level)
    y = torch.arange(80) // 40
    y[15] = 1
    assert float((model(images).argmax(1) == y).double().mean()) == 79 / 80
    settings = RobustSettings(attacks={"pgd": PGD(steps=2)}, radii=[0.001])
    constant = nn.Sequential(model, nn.Linear(2, 2, dtype=torch.float64).requires_grad_(False))
    constant[1].weight[:] = 1e-3
    constant[1].bias[:] = torch.tensor([1.0, 0.0])
    for size in (1, 4, 8, 80):
        loader = DataLoader(TensorDataset(images, y), batch_size=size)
        assert not any("predicts class" in said for said in assess(model, ball(), loader, robust=settings).warnings)
        said = [text for text in assess(constant, ball(), loader, robust=settings).warnings if "predicts class" in text]
        assert len(said) == 1
        assert "class 0 for every image of 80 examples" in said[0]
    with pytest.warns(RobustnessWarning, match="class 0 for every image of 32 examples"):
        PGD(steps=1)(constant, ball(), images[30:], y[30:])


def test_a_constant_map_of_classes_is_warned_about():
    predicted, y = torch.zeros(8, 4, 4, dtype=torch.long), torch.zeros(8, 4, 4, dtype=torch.long)
    y[:, :2] = -1  # does not count
    y[0] = -1  # at all
    predicted[1, 0, 0] = 1
    classes = one_class(predicted, y)
    assert classes.isnan().tolist() == [True] + [False] * 7
    assert (classes[1:] == 0).all()
    predicted[1, 3, 3] = 1
    assert one_class(predicted, y)[1] == -1
    assert one_class(torch.tensor([3, 1]), torch.tensor([0, -1]))[0] == 3
    right, known = np.full(10, 0.5), np.array([np.nan, *[2.0] * 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_constant(known, np.ones(10), per_pixel=True)
        warn_constant(known[:9], right[:9] + 0.1, per_pixel=True)
        warn_constant(np.array([*known[:9], 1.0]), right, per_pixel=True)
        warn_constant(np.full(10, -1.0), right, per_pixel=True)
        warn_constant(np.full(10, np.nan), right, per_pixel=True)
    with pytest.warns(RobustnessWarning, match="predicts class 2 for every pixel of 10 examples"):
        warn_constant(known, right, per_pixel=True)
    with pytest.warns(RobustnessWarning, match="predicts class 2 for every image of 8 examples"):  # mostly wrong
        warn_constant(np.full(8, 2.0), np.array([1, 1, 1, 0, 0, 0, 0, 0]), per_pixel=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_constant(np.full(8, 2.0), np.array([1, 1, 1, 1, 1, 0, 0, 0]), per_pixel=False)
        warn_constant(np.full(3, 2.0), np.array([1, 0, 0]), per_pixel=False)


def test_pixels_that_do_not_count_are_no_clipping_decoder():
    model = nn.Conv2d(1, 3, 3, padding=1)
    x, y = torch.rand(4, 1, 12, 12), torch.randint(0, 3, (4, 12, 12))
    y[:, 4:] = -1
    clips = Clips(PixelBall((1, 12, 12), "linf", 0.9))
    settings = RobustSettings(attacks={"pgd": PGD(steps=2, relative_step=0.6)}, radii=[0.9])
    said = "has no gradient in"
    for perturbations, warned in ((PixelBall((1, 12, 12), "linf", 0.1), False), (clips, True)):
        found = assess(model, perturbations, (x, y), robust=settings).warnings
        assert any(said in line for line in found) == warned, found


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_gradient_of_nan_is_warned_about(linear, images, norm):
    """The logits are those of the linear model, and the gradient of a root of 0 is infinite, times 0."""

    def masked(x):
        return linear(x) + 0 * (x * 0).sum((1, 2, 3)).sqrt()[:, None]

    y = linear(images).argmax(1)
    settings = RobustSettings(attacks={"pgd": PGD(steps=10, relative_step=0.2)}, radii=[0.1])
    results = assess(masked, PixelBall(tuple(images.shape[1:]), norm, 0.1), (images, y), robust=settings)
    assert any("a gradient of NaN at 32 of 32 images" in warning for warning in results.warnings)


def test_an_infinite_gradient_does_not_end_a_search(images):
    """A gamma curve in the model has one at black pixels; beside pixels that are nearly black as much is lost."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    black = images.float()
    black[:, :, 0] = 0
    s = PixelBall(tuple(images.shape[1:]), "l2", 0.8)

    def gamma(x):
        return inner(x.pow(1 / 2.2))

    for attack in (PGD(checks=False), APGD(steps=20, checks=False)):
        lost = []
        for x in (black, black.clamp_min(1e-4)):
            found = attack(gamma, s, x, gamma(x).argmax(1))
            assert found.images.isfinite().all()
            lost.append(float(found.fooled.float().mean()))
        assert 0 < lost[0] < 1
        assert lost[0] >= lost[1] - 0.1


class Constant(nn.Module):
    """Class 0, whatever the image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3) + self.weight * x.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize(("labels", "guesses"), [([0, 1, 2] * 4, True), ([0] * 7 + [1] * 5, True), ([0] * 12, False)])
def test_a_model_that_guesses_is_marked_in_the_results(labels, guesses):
    y = torch.tensor(labels)
    found = assess(Constant(), ball(), (torch.rand(12, *ball().image_shape), y), robust=None)
    assert any("has not learned to tell them apart" in warning for warning in found.warnings) == guesses
    few = assess(Constant(), ball(), (torch.rand(9, *ball().image_shape), y[:9]), robust=None)
    assert not any("has not learned" in warning for warning in few.warnings)  # nine images may be bad luck
    assert any("predicts class 0 for every image of 9" in warning for warning in few.warnings) == (labels[1] == 1)


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.2), ("l2", 0.8)])
def test_random_search_takes_a_quantised_model_apart(norm, radius):
    """A gradient sees nothing; what is reached is compared with the closed form of the same model unquantised."""
    shape = (1, 8, 8)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    model = Quantised(inner, 16)
    x = torch.rand(60, *shape)
    y = model(x).argmax(1)
    perturbations = PixelBall(shape, norm, radius)
    stuck = PGD(steps=20, checks=False)(model, perturbations, x, y).fooled.double().mean()
    found = RandomSearch(draws=20, refinements=280, checks=False)(model, perturbations, x, y).fooled.double().mean()
    reachable = APGD(steps=50, checks=False)(inner, perturbations, x, inner(x).argmax(1)).fooled.double().mean()
    assert reachable > 0.6
    assert found > stuck + 0.15
    assert found > 0.9 * reachable


class InPlace(nn.Module):
    """Normalises its input where it lies, as many a model does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.sub_(0.1).div_(0.9))


def test_models_that_change_their_input_are_measured_on_unchanged_images(images):
    inner = Linear()
    inplace, plain = InPlace(inner), lambda x: inner((x - 0.1) / 0.9)
    y = plain(images).argmax(1)
    kept = images.clone()

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return plain(x)

    settings = RobustSettings(
        attacks={"all": latent_autoattack(steps=5, restarts=1, draws=4, refinements=4)}, radii=[0.1]
    )
    certify = CertifySettings(sigma=0.1, radii=[0.1], n=100, alpha=0.01, examples=4)
    data = (images, y, (images + 0.05).clone())
    reports = [assess(model, ball(), data, robust=settings, certify=certify) for model in (inplace, Plain())]
    assert torch.equal(images, kept)
    assert reports[0].metrics == reports[1].metrics
    batch, keys = Batch.of(images, y), random.example_keys(0, torch.arange(len(y)))
    for objective in (Standard(), MaxCleanAdversarial(), Trades(), NuclearNorm()):
        setting = training.Setting(inplace, ball(), batch, keys, objective.attack_loss)
        for perturbation in (training.Unperturbed(), training.Adversarial(steps=2, labels="predicted")):
            objective(inplace, images, perturbation(setting).images, y)
            assert torch.equal(images, kept)


def test_certificates_look_at_their_images_too(linear, images):
    smoothed = SmoothedModel(linear, ball(), 0.1)
    with pytest.warns(RobustnessWarning, match="should lie in"):
        smoothed.certify(images * 255, n=20, alpha=0.01)
    for call in (smoothed.certify, smoothed.predict):
        with pytest.raises(InputError, match="NaN"):
            call(torch.full_like(images, torch.nan), n=20, alpha=0.01)


def spoiled(module):
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.nan
    return module


def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(small_set, tmp_path):
    save_perturbation_set(spoiled(small_set), tmp_path / "set")
    with pytest.raises(InputError, match="not finite"):
        load_perturbation_set(tmp_path / "set")
    save_model(spoiled(build("lenet5")), tmp_path / "model", image_shape=(1, 28, 28), classes=10, data="")
    with pytest.raises(InputError, match="not finite"):
        load_model(tmp_path / "model")


def test_sets_that_decode_to_nan_are_neither_attacked_nor_certified(small_set):
    class Blind(nn.Module):
        """Answers whatever it is shown."""

        def forward(self, x):
            return torch.cat([torch.ones(len(x), 1), torch.zeros(len(x), 1)], 1)

    broken = CVAESet(small_set.network, "bernoulli", 1.0)
    spoiled(broken.network.generator)
    x = torch.rand(3, 1, 8, 8)
    with pytest.raises(InputError, match="NaN"):
        SmoothedModel(Blind(), broken, 0.1).certify(x, n=20, alpha=0.01)
    with pytest.raises(InputError, match="NaN"):
        PGD(steps=1, checks=False)(Blind(), broken, x, torch.zeros(3, dtype=torch.int64))
