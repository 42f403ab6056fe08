"""Attacks against closed forms, and the properties that make robust accuracy mean something."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.attacks import APGD, PGD, Found, RandomSearch, WorstOf, latent_autoattack
from latentrobust.robustness.attacks.base import worst_of
from latentrobust.robustness.attacks.gradient import _checkpoints
from latentrobust.robustness.attacks.losses import dlr, margin, ranked_targets, targeted_dlr
from latentrobust.robustness.criteria import Classification, PixelAccuracy
from latentrobust.transforms import random

from .conftest import SHAPE, Linear, ball

NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])
ATTACKS = {
    "pgd": PGD(steps=50, relative_step=0.3, checks=False),
    "pgd_zero": PGD(steps=20, start="zero", checks=False),
    "pgd_margin": PGD(steps=50, relative_step=0.3, loss="margin", checks=False),
    "pgd_targeted": PGD(steps=50, relative_step=0.3, loss="targeted_dlr", checks=False),
    "apgd": APGD(steps=40, checks=False),
    "apgd_dlr": APGD(steps=40, loss="dlr", checks=False),
    "autoattack": latent_autoattack(steps=40, restarts=2, draws=5, checks=False),
}


def worst_margin(model, x, norm, radius):
    """The closed form for two classes: the margin minus the radius times the dual norm of the weights' difference."""
    difference = (model.weight[0] - model.weight[1]).detach()
    dual = difference.norm() if norm == "l2" else difference.abs().sum()
    logits = model(x).detach()
    return (logits[:, 0] - logits[:, 1]).abs() - radius * dual


@NORMS
@pytest.mark.parametrize("name", list(ATTACKS))
def test_finds_the_optimum_of_a_linear_model(linear, images, norm, name):
    y = linear(images).argmax(1)
    radius = 0.1 if norm == "l2" else 0.03
    found = ATTACKS[name](linear, ball(norm, radius), images, y)
    expected = worst_margin(linear, images, norm, radius)
    assert 0.1 < (expected < 0).double().mean() < 0.9  # else the next line says little
    assert torch.equal(found.fooled[0], expected < 0)
    standing = ~found.fooled[0]
    torch.testing.assert_close(found.score[0][standing], expected[standing], atol=1e-4, rtol=0)


def shorter(attack):
    """The same with six steps, for what does not depend on finding an optimum."""
    if isinstance(attack, WorstOf):
        return replace(attack, attacks=[shorter(part) for part in attack.attacks])
    return replace(attack, steps=6) if hasattr(attack, "steps") else attack


@NORMS
@pytest.mark.parametrize("attack", [*ATTACKS.values(), RandomSearch(checks=False)], ids=[*ATTACKS, "random_search"])
def test_offsets_stay_in_the_ball_and_decode_to_the_images(linear, images, norm, attack):
    perturbations = ball(norm, 0.1)
    radii = [0.1, 0.02, 0.05]
    found = shorter(attack)(linear, perturbations, images, linear(images).argmax(1), radii=radii)
    assert found.images.shape == (3, *images.shape)
    assert found.score.shape == found.fooled.shape == found.queries.shape == found.loss.shape == (3, len(images))
    for number, radius in enumerate(radii):
        assert (perturbations.ball.size(found.offsets[number]) <= radius * (1 + 1e-6)).all()
        torch.testing.assert_close(perturbations.at(images).decode(found.offsets[number]), found.images[number])
    scores = Classification()(linear(found.images.flatten(0, 1)), linear(images).argmax(1).repeat(3))
    torch.testing.assert_close(scores.detach(), found.score.flatten())
    assert torch.equal(found.fooled, found.score < 0)


class Network(nn.Module):
    """A small network with many local optima."""

    def __init__(self, seed=0, classes=5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(32, 12, generator=generator, dtype=torch.float64) * 3)
        self.b = nn.Parameter(torch.randn(classes, 32, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return torch.sin((x - 0.5).flatten(1) @ self.a.T) @ self.b.T


def standing(attack, model, x, y, radii, norm="l2"):
    return (~attack(model, ball(norm, max(radii)), x, y, radii=radii).fooled).double().mean(1)


@NORMS
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), steps=st.integers(0, 12), more=st.integers(1, 12))
def test_robust_accuracy_never_rises_with_radius_steps_or_restarts(norm, seed, steps, more):
    model = Network(seed)
    x = 0.5 + 0.2 * torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x.clamp(0, 1)
    y = model(x).argmax(1)
    radii = [0.02, 0.05, 0.1, 0.2]
    few = standing(PGD(steps=steps, relative_step=0.2, checks=False), model, x, y, radii, norm)
    many = standing(PGD(steps=steps + more, relative_step=0.2, checks=False), model, x, y, radii, norm)
    often = standing(PGD(steps=steps, relative_step=0.2, restarts=3, checks=False), model, x, y, radii, norm)
    for curve in (few, many, often):
        assert (curve.diff() <= 0).all()
    assert (many <= few).all()
    assert (often <= few).all()


def test_latent_autoattack_is_never_weaker_than_plain_pgd():
    model = Network(3)
    x = torch.rand(40, *SHAPE, dtype=torch.float64)
    y = model(x).argmax(1)
    radii = [0.05, 0.1, 0.2]
    plain = PGD(steps=10, checks=False)(model, ball("l2", 0.2), x, y, radii=radii)
    strong = latent_autoattack(steps=10, restarts=2, draws=10, checks=False)(model, ball("l2", 0.2), x, y, radii=radii)
    assert (strong.fooled | ~plain.fooled).all()
    assert (strong.score <= plain.score + 1e-12)[~strong.fooled].all()


def test_results_do_not_depend_on_the_chunk_or_on_the_company():
    model = Network(5)
    x = torch.rand(23, *SHAPE, dtype=torch.float64)
    y = model(x).argmax(1)
    keys = random.example_keys(7, torch.arange(23))
    whole = latent_autoattack(steps=5, restarts=2, draws=5, checks=False)(model, ball("l2", 0.1), x, y, keys=keys)
    parts = latent_autoattack(steps=5, restarts=2, draws=5, checks=False, chunk=4)(
        model, ball("l2", 0.1), x, y, keys=keys
    )
    torch.testing.assert_close(whole.score, parts.score)
    assert torch.equal(whole.fooled, parts.fooled)
    assert torch.equal(whole.queries, parts.queries)
    alone = PGD(steps=5, checks=False)(model, ball("l2", 0.1), x[9:10], y[9:10], keys=keys[9:10])
    among = PGD(steps=5, checks=False)(model, ball("l2", 0.1), x, y, keys=keys)
    torch.testing.assert_close(alone.score[0, 0], among.score[0, 9])


def test_broken_examples_are_not_attacked_again(linear, images):
    y = 1 - linear(images).argmax(1)  # all wrong from the start
    found = PGD(steps=20, checks=False)(linear, ball(), images, y)
    assert found.fooled.all()
    assert (found.queries == 1).all()
    right = linear(images).argmax(1)
    spent = PGD(steps=20, start="zero", checks=False)(linear, ball("l2", 0.1), images, right)
    assert (spent.queries[0][~spent.fooled[0]] == 22).all()  # the centre, the start and twenty steps
    assert (spent.queries[0][spent.fooled[0]] < 22).all()


@pytest.mark.parametrize("name", ["pgd", "apgd", "autoattack"])
def test_learned_sets_with_flat_latents(small_set, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(12, 1, 8, 8)
    y = model(small_set.at(x).decode(torch.zeros(12, 5))).argmax(1)
    found = ATTACKS[name](model, small_set, x, y, radii=[1.0, 3.0])
    assert found.offsets.shape == (2, 12, 5)
    assert (small_set.ball.size(found.offsets[0]) <= 1 + 1e-5).all()
    scores = Classification()(model(small_set.at(x).decode(found.offsets[1])), y)
    torch.testing.assert_close(scores, found.score[1], atol=1e-4, rtol=1e-4)
    assert (found.score[1] <= found.score[0]).all()


def test_encoded_start_uses_the_observed_perturbation(linear, images):
    y = linear(images).argmax(1)
    direction = torch.sign(linear.weight[1] - linear.weight[0]).reshape(SHAPE).detach()
    x_tilde = images + 0.03 * torch.where(y == 0, 1.0, -1.0).reshape(-1, 1, 1, 1) * direction
    found = PGD(steps=0, start="encoded", checks=False)(linear, ball("linf", 0.03), images, y, x_tilde=x_tilde)
    expected = worst_margin(linear, images, "linf", 0.03)
    assert torch.equal(found.fooled[0], expected < 0)
    with pytest.raises(InputError, match="x_tilde"):
        PGD(steps=0, start="encoded", checks=False)(linear, ball("linf", 0.03), images, y)


def test_a_loss_of_the_users_own(linear, images):
    y = linear(images).argmax(1)
    attack = PGD(steps=50, relative_step=0.3, loss=lambda logits, labels: margin(logits, labels) * 3, checks=False)
    found = attack(linear, ball("l2", 0.1), images, y)
    assert torch.equal(found.fooled[0], worst_margin(linear, images, "l2", 0.1) < 0)


def test_radius_zero_is_the_centre_of_the_set(linear, images):
    y = linear(images).argmax(1)
    found = PGD(checks=False)(linear, ball(), images, y, radii=[0.0])
    assert not found.fooled.any()
    torch.testing.assert_close(found.images[0], images)
    assert (found.queries == 1).all()


class Explodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 2).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory")
        return self.layer(x.flatten(1))


def test_modes_and_gradient_flags_come_back_also_after_an_exception(images):
    model = Explodes().train()
    model.layer.bias.requires_grad_(False)
    y = model.layer(images.flatten(1)).argmax(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        PGD(checks=False)(model, ball(radius=1e-3), images, y)
    assert model.training
    assert model.layer.training
    assert model.layer.weight.requires_grad
    assert not model.layer.bias.requires_grad
    assert model.layer.weight.grad is None


def test_batch_norm_statistics_do_not_move():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(8, *SHAPE, dtype=torch.float64)
    PGD(steps=3, checks=False)(model, ball(), x, torch.zeros(8, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_attacks_work_under_inference_mode(linear, images):
    y = linear(images).argmax(1)
    with torch.inference_mode():
        found = PGD(steps=20, start="zero", checks=False)(linear, ball("l2", 0.1), images.clone(), y.clone())
    assert torch.equal(found.fooled[0], worst_margin(linear, images, "l2", 0.1) < 0)


def test_one_label_a_pixel():
    """A model that looks at single pixels: the share of right pixels under the worst ℓ∞ change is known."""

    class Threshold(nn.Module):
        def forward(self, x):
            return torch.cat([0.5 - x, x - 0.5], 1) * 10

    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    y = (x[:, 0] > 0.5).long()
    y[0, 0, 0], y[1, 2, 2] = -1, -100  # do not count
    attack = PGD(steps=10, relative_step=0.3, loss="margin", checks=False)  # the labels say that pixels count
    found = attack(Threshold(), PixelBall((1, 4, 4), "linf", 0.2), x, y)
    counted = y >= 0
    expected = ((((x[:, 0] - 0.5).abs() >= 0.2) & counted).flatten(1).sum(1)) / counted.flatten(1).sum(1)
    torch.testing.assert_close(found.score[0], expected.double())
    assert isinstance(attack.judge(y), PixelAccuracy)
    own = PixelAccuracy(threshold=0.9)
    lenient = PGD(steps=10, relative_step=0.3, criterion=own, loss="margin", checks=False)
    assert lenient.judge(y) is own
    stopped = lenient(Threshold(), PixelBall((1, 4, 4), "linf", 0.2), x, y)
    torch.testing.assert_close(stopped.fooled[0], expected < 0.9)
    assert not found.fooled.any()


class Softmax(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).softmax(1)


class Noisy(Softmax):
    def forward(self, x):
        return self.inner(x) + torch.randn(len(x), 2)


class Flat(Softmax):
    def forward(self, x):
        return self.inner(x).round() + 0 * x.sum()


@pytest.mark.parametrize(
    ("wrap", "message"), [(Softmax, "probabilities"), (Noisy, "differently"), (Flat, "no gradient")]
)
def test_suspicious_models_are_warned_about(linear, images, wrap, message):
    with pytest.warns(RobustnessWarning, match=message):
        PGD(steps=1)(wrap(linear), ball(), images, linear(images).argmax(1))


def test_a_model_without_gradients_is_searched_without_them(linear, images):
    class Opaque(Softmax):
        def forward(self, x):
            with torch.no_grad():
                return self.inner(x)

    y = linear(images).argmax(1)
    attack = latent_autoattack(steps=2, restarts=1, targets=1, draws=30)
    with pytest.warns(RobustnessWarning, match="only RandomSearch"):
        found = attack(Opaque(linear), ball("l2", 0.1), images, y.int())
    assert found.fooled.any()
    assert (found.fooled[0] <= (worst_margin(linear, images, "l2", 0.1) < 0)).all()


def test_images_outside_the_range_and_radii_beyond_the_set_are_warned_about(linear, images):
    y = linear(images).argmax(1)
    with pytest.warns(RobustnessWarning, match="should lie in"):
        PGD(steps=1)(linear, ball(), images * 255, y)
    with pytest.warns(RobustnessWarning, match="exceeds the set's own"):
        PGD(steps=1)(linear, ball(radius=0.1), images, y, radii=[0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(steps=1, relative_step=1.0)(linear, ball(), images, y)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value(x)


@pytest.mark.parametrize(
    ("model", "labels", "radii", "message"),
    [
        (None, None, [-1.0], "not negative"),
        (None, None, [math.nan], "finite"),
        (None, None, [], "at least one radius"),
        (None, [0, 2] * 20, [0.1], "labels must be 0 to 1, got 2"),
        (None, [0, -1] * 20, [0.1], "labels must be 0 to 1, got -1"),
        (None, [0] * 39, [0.1], "a label for each of 40 images"),
        (Returns(lambda x: x), None, [0.1], r"logits \[B, classes\]"),
        (Returns(lambda x: x.flatten(1)[:, :1]), None, [0.1], r"logits \[B, classes\]"),
        (Returns(lambda x: x.flatten(1) * math.nan), None, [0.1], "NaN"),
        (Returns(lambda x: torch.where(x.flatten(1)[:, :2] > 0.51, math.nan, x[:, 0, 0, :2] * 2)), "low", [0.1], "NaN"),
    ],
)
def test_bad_input_gives_one_line(linear, images, model, labels, radii, message):
    x = images * 0 + torch.tensor([0.5, 0.2, 0.2, 0.2]) if labels == "low" else images
    y = linear(images).argmax(1) if labels is None else torch.tensor([0] * 40 if labels == "low" else labels)
    with pytest.raises(InputError, match=message) as error:
        PGD(checks=False)(model or linear, ball(), x, y, radii=radii)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=-1),
        lambda: PGD(restarts=0),
        lambda: PGD(start="middle"),
        lambda: PGD(loss="hinge"),
        lambda: PGD(relative_step=0.0),
        lambda: PGD(chunk=0),
        lambda: RandomSearch(draws=-1),
        lambda: WorstOf(attacks=[]),
        lambda: APGD(targets=0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_image_sizes_must_agree(linear, images):
    other = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).double()
    with pytest.raises(InputError, match=r"the model fails on images \[40, 1, 3, 4\]: mat1"):
        PGD(checks=False)(other, ball(), images, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images \[1, 5, 5\], got a batch"):
        PGD(checks=False)(linear, PixelBall((1, 5, 5)), images, torch.zeros(40, dtype=torch.int64))


def test_losses_by_hand():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0]])
    y = torch.tensor([0])
    assert margin(logits, y).item() == -1
    assert dlr(logits, y).item() == pytest.approx(-1 / 3)
    target = torch.tensor([2])
    assert targeted_dlr(logits, y, target).item() == pytest.approx((3 - 4) / (4 - (1 + 0) / 2))
    assert ranked_targets(logits, y, 9)[:, 0].tolist() == [2, 1, 3, 4]
    two = torch.tensor([[1.0, 3.0]])
    assert dlr(two, y).item() == margin(two, y).item() == 2


def test_a_tie_counts_as_fooled():
    assert Classification()(torch.zeros(1, 3), torch.tensor([0])).item() < 0


def test_linear_model_of_the_fixture_is_not_trivial(linear, images):
    assert isinstance(linear, Linear)
    assert 0.1 < linear(images).argmax(1).double().mean() < 0.9


def test_apgd_looks_back_where_it_was_published_to():
    """Croce & Hein 2020, section 3.1: p₀ = 0, p₁ = 0.22, then by max(the last difference − 0.03, 0.06)."""
    published = {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert _checkpoints(100) == published


def test_chunks_that_do_not_fit_are_halved_and_what_is_found_stays(small_set, caplog):
    class Cramped(nn.Module):
        def __init__(self, most):
            super().__init__()
            self.layer, self.most = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), most

        def forward(self, x):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("too many")
            return self.layer(x)

    model = Cramped(100)
    x, y = torch.rand(9, 1, 8, 8), torch.arange(9) % 4
    whole = PGD(steps=3, checks=False)(model, small_set, x, y, radii=[0.5, 1.0])
    model.most = 4
    found = PGD(steps=3, checks=False)(model, small_set, x, y, radii=[0.5, 1.0])
    torch.testing.assert_close(found.images, whole.images)
    assert torch.equal(found.fooled, whole.fooled)
    said = [record.getMessage() for record in caplog.records if "do not fit into memory" in record.getMessage()]
    assert said == ["9 images at once do not fit into memory: going on with 4 (chunk)"]
    told, answered, tiring_after = [], [], 1000

    def tiring(images):
        """Fits at first, as long as other memory is free."""
        answered.append(len(images))
        if len(images) > 4 and len(answered) > tiring_after:
            raise torch.OutOfMemoryError("too many")
        return model.layer(images)

    right, radii = model.layer(x).argmax(1), [0.01, 0.02]  # nobody is fooled, so all stay in the search
    PGD(steps=3, checks=False)(tiring, small_set, x, right, radii=radii[:1], told=told.append)
    assert told == [9]
    tiring_after = len(answered) + 1
    answered.clear()
    again = PGD(steps=3, checks=False)(tiring, small_set, x, right, radii=radii, told=told.append)
    assert told[1:3] == [9, -9]  # a radius was done with when memory ran out, and was taken back
    assert sum(told[1:]) == 2 * 9
    model.most = 100
    torch.testing.assert_close(again.images, PGD(steps=3, checks=False)(model, small_set, x, right, radii=radii).images)
    model.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        PGD(steps=3, checks=False)(model, small_set, x, y)


def test_attacks_say_in_words_what_they_spend():
    attack = WorstOf(
        attacks=[
            PGD(steps=20, restarts=2, start="uniform_length"),
            APGD(steps=5, loss="targeted_dlr", targets=3),
            PGD(loss=lambda logits, y: logits.sum(1)),
            RandomSearch(draws=4, refinements=6),
        ]
    )
    assert attack.describe() == (
        "the worst of PGD (20 steps on cross entropy, uniform length start, 2 restarts), APGD (5 steps on targeted dlr"
        " at the 3 most likely other classes, random start), PGD (50 steps on <lambda>, random start), random search (4"
        " draws, 6 refinements)"
    )


class InDouble(nn.Module):
    """Answers in float64 for float32 images."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).double()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_model_may_answer_in_another_precision(norm):
    torch.manual_seed(0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(16, *SHAPE)
    y = single(x).argmax(1)
    for attack in (APGD(steps=5), PGD(steps=5), latent_autoattack(steps=5)):
        found = [attack(model, ball(norm, 0.3), x, y) for model in (single, InDouble(single))]
        assert found[0].offsets.dtype == found[1].offsets.dtype
        torch.testing.assert_close(found[0].score.double(), found[1].score.double(), atol=1e-5, rtol=1e-5)


def test_the_worst_of_several_attacks_fools_first_and_then_scores_lowest():
    """Two radii, three images: only the second attack fools, only the first does, neither does."""

    def found(fooled, score, level):
        images = torch.full((2, 3, 1, 2, 2), level)
        flags = torch.tensor([fooled] * 2)
        return Found((0.1, 0.2), images, images[..., 0], torch.tensor([score] * 2), flags * 1.0, flags, flags.long())

    first = found([False, True, False], [0.5, -0.1, 0.4], 0.1)
    second = found([True, False, False], [0.9, -0.5, 0.3], 0.2)
    worst = worst_of([first, second])
    assert worst.radii == (0.1, 0.2)
    assert worst.fooled.tolist() == [[True, True, False]] * 2
    torch.testing.assert_close(worst.images[:, :, 0, 0, 0], torch.tensor([[0.2, 0.1, 0.2]] * 2))
    torch.testing.assert_close(worst.offsets[:, :, 0, 0], torch.tensor([[0.2, 0.1, 0.2]] * 2))
    assert worst_of([first]) is first
