"""Training perturbations and objectives."""

import dataclasses

import pytest
import torch
from scipy import stats
from torch import nn

from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets import LatentBall, PixelBall
from latentrobust.robustness import training
from latentrobust.robustness.criteria import cross_entropy
from latentrobust.robustness.objectives import (
    Consistency,
    MaxCleanAdversarial,
    NoiseConsistency,
    NuclearNorm,
    Standard,
    Trades,
)
from latentrobust.robustness.statistics import Fixed, noise_level
from latentrobust.robustness.training import Setting
from latentrobust.transforms import random

from .conftest import SHAPE, Linear, ball


def setting(model=None, perturbations=None, count=20, objective=None, pairs=True, epoch=0):
    x = 0.4 + 0.2 * torch.rand(count, *SHAPE, dtype=torch.float64)
    keys = random.example_keys(0, torch.arange(count), epoch)
    x_tilde = (x + 0.01) if pairs else None
    batch = dataclasses.replace(Batch.of(x, (x.flatten(1).sum(1) > 6).long(), x_tilde), epoch=epoch)
    return Setting(
        model or Linear(), perturbations if perturbations is not None else ball("linf", 0.05), batch, keys,
        (objective or Standard()).attack_loss,
    )  # fmt: skip


EVERY = {
    "paired_data": training.PairedData,
    "sample": lambda ratio: training.Sample(ratio=ratio),
    "gaussian": lambda ratio: training.Gaussian(sigma=0.02, ratio=ratio),
    "adversarial": lambda ratio: training.Adversarial(steps=3, ratio=ratio),
    "best": lambda ratio: training.Adversarial(steps=3, keep_best=True, start="zero", ratio=ratio),
    "encoded": lambda ratio: training.Adversarial(steps=3, start="encoded", ratio=ratio),
    "fast_adversarial": lambda ratio: training.FastAdversarial(ratio=ratio),
    "n_fgsm": lambda ratio: training.FastAdversarial(noise=2.0, relative_step=1.0, projected=False, ratio=ratio),
    "smooth_adversarial": lambda ratio: training.SmoothAdversarial(sigma=0.02, draws=1, ratio=ratio),
}
OUTSIDE = ("gaussian", "n_fgsm", "smooth_adversarial")  # what is defended is one thing, what is trained on another


@pytest.mark.parametrize("name", list(EVERY))
def test_ratio_is_the_share_that_is_perturbed(name):
    at = setting(count=400)
    changed = [
        (EVERY[name](ratio)(at).images != at.batch.x).flatten(1).any(1).double().mean() for ratio in (0.0, 0.3, 1.0)
    ]
    assert changed[0] == 0
    assert 0.2 < changed[1] < 0.4
    assert changed[2] == 1


@pytest.mark.parametrize("name", list(EVERY))
def test_perturbations_are_drawn_by_key_and_stay_in_the_set(name):
    at = setting()
    images = EVERY[name](1.0)(at).images
    assert not images.requires_grad
    torch.testing.assert_close(images, EVERY[name](1.0)(at).images)
    part = torch.arange(5, 12)
    torch.testing.assert_close(EVERY[name](1.0)(at.select(part)).images, images[part])
    if name not in OUTSIDE:
        assert (images - at.batch.x).abs().max() <= 0.05 + 1e-9


def test_unperturbed_images_are_the_examples():
    at = setting()
    assert torch.equal(training.Unperturbed()(at).images, at.batch.x)


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_adversary_finds_the_worst_case_of_a_linear_model(keep_best):
    at = setting()
    images = training.Adversarial(steps=5, relative_step=0.5, start="zero", keep_best=keep_best)(at).images
    difference = at.model.weight[1] - at.model.weight[0]
    toward = torch.where(at.batch.y == 0, 1.0, -1.0)[:, None] * difference.sign()
    torch.testing.assert_close(images, at.batch.x + 0.05 * toward.reshape_as(images).detach())


def test_the_adversary_leaves_model_and_gradients_alone():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.FastAdversarial(check_every=1, tolerance=0.9)(setting(model))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gaussian_takes_the_level_that_certifies_its_target():
    perturbations = ball()
    perturbations.latent_norms = {"p50": 0.07}
    chosen = training.Gaussian(target="p50", n=1000, alpha=0.01, adaptive=False).level(perturbations)
    assert chosen == pytest.approx(noise_level(0.07, procedure=Fixed(1000, 0.01)))
    assert training.Gaussian(sigma=0.3).level(perturbations) == 0.3
    with pytest.raises(InputError, match="no radius 'p25'; it stores p50"):
        training.Gaussian(target="p25").level(perturbations)


def test_a_schedule_changes_with_the_epoch():
    schedule = training.Schedule(
        {"first": training.Unperturbed(), "second": training.PairedData(), "third": training.Sample()},
        {"first": 2, "second": 1, "third": 1},
    )
    at = {epoch: setting(epoch=epoch) for epoch in (0, 1, 2, 3, 9)}
    for epoch in (0, 1):
        assert torch.equal(schedule(at[epoch]).images, at[epoch].batch.x)
    assert torch.equal(schedule(at[2]).images, at[2].batch.x_tilde)
    for epoch in (3, 9):
        assert torch.equal(schedule(at[epoch]).images, training.Sample()(at[epoch]).images)
    with pytest.raises(InputError, match="epochs"):
        training.Schedule({"a": training.Unperturbed()}, {"b": 1})


def test_joint_parts_perturb_each_image_with_their_own_ratio():
    """Ordinary perturbations and the adversary's, of the same images, in the order of the parts."""
    at = setting()
    joint = training.Joint({"ordinary": training.PairedData(), "adversary": training.Adversarial(steps=3)})
    images, targets = joint(at)
    assert joint.draws == 2
    assert torch.equal(images[:20], at.batch.x_tilde)
    assert torch.equal(images[20:], training.Adversarial(steps=3)(at).images)
    assert torch.equal(targets, at.batch.y.repeat(2))
    assert torch.equal(joint.perturb(at), images)
    half = training.Joint({"never": training.PairedData(0.0), "noise": training.Gaussian(sigma=0.02, draws=3)})
    assert torch.equal(half(at).images[:20], at.batch.x)
    assert len(half(at).images) == 80 == half.draws * 20
    with pytest.raises(InputError, match="two parts or more"):
        training.Joint({"alone": training.PairedData()})


def test_a_curriculum_grows_the_adversary_of_a_joint_perturbation():
    joint = training.Joint({"ordinary": training.PairedData(), "adversary": training.Adversarial(steps=3)})
    grown = training.Curriculum(joint, values=[0, 0, 1], epochs=[0, 1, 3])
    assert len(grown(setting(epoch=1)).images) == 20
    at = setting(epoch=2)
    later = grown(at).images
    assert torch.equal(later[:20], at.batch.x_tilde)
    assert torch.equal(later[20:], training.Adversarial(steps=3)(at._replace(scale=0.5)).images)


def test_each_part_of_a_joint_perturbation_keeps_its_own_recordings():
    """One recording after another would be thrown away, as two adversaries take turns."""
    searches, seen = training.RecordedSearches(lambda: False), []

    class Seen(training.PairedData):
        def perturb(self, at):
            seen.append(at.searches)
            return super().perturb(at)

    joint = training.Joint({"one": Seen(), "other": Seen()})
    for _ in range(2):
        joint(setting()._replace(searches=searches))
    assert seen[0] is seen[2] is not searches
    assert seen[1] is seen[3] is not seen[0]


class Masked(nn.Module):
    """Right about one-step adversarial images and wrong about the others: what overfitting to one step looks like."""

    def __init__(self, reach):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.reach = reach

    def forward(self, x):
        change = (x - 0.5).flatten(1)
        wrong = (change.abs().mean(1) < self.reach).double()
        slope = change.sum(1) * self.weight * 0.01
        return torch.stack([1 - 2 * wrong + slope, torch.zeros_like(slope)], 1)


def test_catastrophic_overfitting_stops_with_advice():
    x = torch.full((32, *SHAPE), 0.5, dtype=torch.float64)
    batch = dataclasses.replace(Batch.of(x, torch.zeros(32, dtype=torch.int64)), epoch=4)
    at = Setting(
        Masked(0.04), PixelBall(SHAPE, "linf", 0.05), batch, random.example_keys(0, batch.index), Standard().attack_loss
    )
    fast = training.FastAdversarial(relative_step=2.5, check_every=3, check_steps=20)
    fast(at)
    fast(at)
    with pytest.raises(training.CatastrophicOverfittingError, match=r"epoch 4: accuracy 1\.00 .* but 0\.\d+ under 20"):
        fast(at)


def test_a_robust_model_is_not_stopped():
    fast = training.FastAdversarial(check_every=1)
    for _ in range(3):
        fast(setting())


def test_objectives_by_hand():
    model = Linear(classes=3)
    x, y = torch.rand(6, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    perturbed = x + 0.1 * torch.randn(6, *SHAPE, dtype=torch.float64)
    clean, other = cross_entropy(model(x), y), cross_entropy(model(perturbed), y)
    torch.testing.assert_close(Standard()(model, x, perturbed, y).loss, other)
    torch.testing.assert_close(MaxCleanAdversarial()(model, x, perturbed, y).loss, torch.maximum(clean, other))
    p, q = model(x).softmax(1), model(perturbed).softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(Trades(2.0)(model, x, perturbed, y).loss, clean + 2 * divergence)
    torch.testing.assert_close(Trades().attack_loss(model, x, y)(model(perturbed)), divergence)
    soft = torch.nn.functional.one_hot(y, 3).double()
    torch.testing.assert_close(Standard()(model, x, perturbed, soft).loss, other)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_nuclear_norm_by_pytorch(count):
    """Value and gradient are those of PyTorch's own nuclear norm, also where its matrix has not full rank."""
    model, objective = Linear(classes=3), NuclearNorm(2.0)
    x, y = torch.rand(count, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])[:count]
    perturbed = (x + 0.1 * torch.randn(count, *SHAPE, dtype=torch.float64)).requires_grad_()
    norm = torch.linalg.matrix_norm(model(perturbed) - model(x), ord="nuc")
    step = objective(model, x, perturbed, y)
    torch.testing.assert_close(step.loss.mean(), cross_entropy(model(x), y).mean() + 2 * norm / count)
    assert (step.loss >= cross_entropy(model(x), y)).all()
    climbed = objective.attack_loss(model, x, y)(model(perturbed)).sum()
    torch.testing.assert_close(climbed, cross_entropy(model(perturbed), y).sum() + 2 * norm)
    (ours,) = torch.autograd.grad(step.loss.sum(), perturbed, retain_graph=True)
    (theirs,) = torch.autograd.grad(2 * norm, perturbed, retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    still = objective.attack_loss(model, x, y)(model(x)).sum()
    torch.testing.assert_close(still, cross_entropy(model(x), y).sum())


def test_nuclear_norm_of_maps_leaves_out_what_does_not_count():
    clean, perturbed = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    y = torch.randint(3, (4, 5, 5))
    y[:, 1] = -1
    moved = (perturbed - clean).movedim(1, -1)[y >= 0]
    model, answers = torch.nn.Identity(), NuclearNorm(1.0)(torch.nn.Identity(), clean, perturbed, y).loss
    expected = torch.linalg.matrix_norm(moved, ord="nuc") / len(moved)
    torch.testing.assert_close((answers - cross_entropy(model(clean), y)).mean(), expected)


def test_nuclear_norm_of_a_diverged_model_is_not_a_number():
    model, x, y = Linear(classes=3), torch.rand(4, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    assert NuclearNorm()(model, x, torch.full_like(x, torch.nan), y).loss.isnan().all()


def test_trades_attack_makes_predictions_differ():
    at = setting(Linear(classes=3), objective=Trades())
    images = training.Adversarial(steps=10)(at).images
    loss = at.loss_for(at.model, at.batch.x, at.batch.y)
    assert (loss(at.model(images)) > loss(at.model(training.Sample()(at).images))).double().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training.Sample(ratio=1.5), "ratio"),
        (lambda: training.Adversarial(steps=0), "steps must be a whole number at least 1, got 0"),
        (lambda: training.Adversarial(start="best"), "start must be one of zero, random"),
        (lambda: training.Gaussian(sigma=-1), "sigma"),
        (lambda: training.Gaussian(n=3), "can certify nothing"),
        (lambda: training.FastAdversarial(tolerance=2), "tolerance"),
        (lambda: Trades(beta=-1), "beta"),
        (lambda: NuclearNorm(weight=-1), "weight"),
        (lambda: training.Adversarial(radius=-1.0)(setting()), "radius must be a number above 0"),
        (lambda: training.Adversarial(radius="p50")(setting()), "stores no latent norms"),
        (lambda: training.PairedData()(setting(pairs=False)), "needs pairs"),
        (lambda: training.Adversarial(start="encoded")(setting(pairs=False)), "needs pairs"),
        (lambda: training.Sample()(setting()._replace(perturbations=None)), "give perturbation_set"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("norm", ["l2", "linf", None])
def test_randomized_la_is_scaled_noise_projected_as_asked(norm):
    at = setting(perturbations=ball("linf", 0.2))
    images = training.RandomizedLA(radius=0.02, norm=norm)(at).images
    u = (images - at.batch.x).flatten(1)
    if norm == "linf":
        assert u.abs().max() <= 0.02 + 1e-8
        assert (u.abs() >= 0.02 - 1e-8).double().mean() == pytest.approx(0.317, abs=0.1)  # beyond one deviation
    elif norm == "l2":
        assert u.norm(dim=1).max() <= 0.02 + 1e-8
    else:
        assert u.std() == pytest.approx(0.02, rel=0.15)
        assert u.abs().max() > 0.03
    with pytest.raises(InputError, match="norm must be"):
        training.RandomizedLA(norm="l1")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_adversaries_can_take_another_ball_than_the_sets_own(norm):
    at = setting(perturbations=ball("linf", 0.2))
    images = training.Adversarial(radius=0.05, steps=40, norm=norm)(at).images
    u = (images - at.batch.x).flatten(1)
    sizes = u.norm(dim=1) if norm == "l2" else u.abs().amax(1)
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.05))  # the worst case of a linear model is on the border


def test_adversaries_can_attack_the_prediction_instead_of_the_label():
    model = Linear()
    at = setting(model)
    predicted = model(at.batch.x).argmax(1)
    wrong = at._replace(batch=dataclasses.replace(at.batch, y=1 - predicted))
    given = training.Adversarial(radius=0.05, steps=5)(wrong).images
    own = training.Adversarial(radius=0.05, steps=5, labels="predicted")(wrong).images
    assert cross_entropy(model(own), predicted).mean() > cross_entropy(model(at.batch.x), predicted).mean()
    assert cross_entropy(model(given), predicted).mean() < cross_entropy(model(at.batch.x), predicted).mean()
    with pytest.raises(InputError, match="labels must be"):
        training.Adversarial(labels="none")


def test_consistency_is_cross_entropy_plus_the_jensen_shannon_divergence_of_three_views():
    class Shift:
        def __call__(self, images, keys):
            return images + 0.01 * random.normal(keys, SHAPE, images.dtype)

    model, at = Linear(), setting()
    x, y, keys = at.batch.x, at.batch.y, at.keys
    step = Consistency(Shift(), weight=3.0)(model, x, x, y, keys)
    views = [x] + [Shift()(x, random.fold_in(random.fold_in(keys, Purpose.VIEWS), number)) for number in (0, 1)]
    p = torch.stack([model(view).softmax(1) for view in views])
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    divergence = entropy(p.mean(0)) - entropy(p).mean(0)
    assert divergence.min() > 0
    torch.testing.assert_close(step.loss, cross_entropy(model(x), y) + 3 * divergence, rtol=1e-6, atol=1e-9)
    same = Consistency(lambda images, keys: images, weight=3.0)(model, x, x, y)
    torch.testing.assert_close(same.loss, cross_entropy(model(x), y), rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="weight"):
        Consistency(Shift(), weight=-1.0)


class Watched(Linear):
    """Notes the images that it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return super().forward(x)


def test_algorithm_1_starts_at_the_centre():
    """And so does its configuration, and the short attack of validations; the published code's start is an option."""
    for start in (None, "zero"):
        model = Watched()
        at = setting()._replace(model=model)
        adversary = training.Adversarial() if start is None else training.Adversarial(start=start)
        adversary(at)
        assert torch.equal(model.seen[0], at.batch.x)
    model = Watched()
    at = setting()._replace(model=model)
    training.Adversarial(start="uniform_length")(at)
    sizes = at.set.ball.size(model.seen[0] - at.batch.x) / at.set.ball.radius
    assert sizes.max() <= 1 + 1e-6
    assert sizes.min() < 0.5  # a draw that is uniform in the ball would lie at its surface


def test_lengths_of_random_directions_are_uniform_as_in_the_published_code():
    for norm in ("l2", "linf"):
        ball = LatentBall((784,), norm, 2.0)
        lengths = ball.size(ball.uniform_length(random.example_keys(0, torch.arange(2000)))) / 2
        assert stats.kstest(lengths.numpy(), "uniform").pvalue > 1e-3
        assert ball.size(ball.uniform(random.example_keys(0, torch.arange(2000)))).min() > 1.9  # in many dimensions


def test_a_divergence_that_is_flat_at_the_centre_is_climbed_all_the_same():
    at = setting(Linear(classes=3), objective=Trades())
    moved = training.Adversarial(steps=3)(at).images - at.batch.x
    assert (moved.flatten(1).abs().amax(1) > 0).all()


def test_n_fgsm_steps_from_wide_noise_and_is_not_projected():
    at = setting(perturbations=ball("linf", 0.05), count=200)
    method = training.FastAdversarial(noise=2.0, relative_step=1.0, projected=False)
    moved = (method(at).images - at.batch.x).flatten(1).abs().amax(1)
    assert (moved > 0.1).double().mean() > 0.9
    assert moved.max() <= 0.15 + 1e-9
    # Without noise it is one step of the radius: the worst case of a linear model.
    still = training.FastAdversarial(noise=1e-9, relative_step=1.0, projected=False)(at).images
    worst = training.Adversarial(steps=5, start="zero")(at).images
    torch.testing.assert_close(still, worst, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [training.Gaussian, training.SmoothAdversarial])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_several_draws_per_image_come_one_after_the_other(make, ratio):
    at = setting(count=40)
    one, three = (make(sigma=0.02, draws=draws, ratio=ratio)(at) for draws in (1, 3))
    assert three.images.shape == (120, *SHAPE)
    assert torch.equal(three.targets, at.batch.labels.repeat(3))
    first, second, _ = three.images.chunk(3)
    same = (second == at.batch.x).flatten(1).all(1)
    assert 0.3 < same.double().mean() < 0.7 if ratio == 0.5 else not same.any()
    if make is training.Gaussian:
        torch.testing.assert_close(first, one.images)
    assert not torch.equal(first[~same], second[~same])


def test_smoothadv_moves_all_draws_of_an_image_alike_and_uphill():
    at = setting(perturbations=ball("l2", 0.3), count=50)
    noisy = training.Gaussian(sigma=0.01, draws=4)(at).images.unflatten(0, (4, -1))
    worst = training.SmoothAdversarial(sigma=0.01, draws=4, steps=3, relative_step=0.5)(at).images.unflatten(0, (4, -1))
    moves = worst - noisy
    torch.testing.assert_close(moves, moves[:1].expand_as(moves))
    torch.testing.assert_close(moves[0].flatten(1).norm(dim=1), torch.full((50,), 0.3, dtype=torch.float64))
    # Of a linear model with two classes the smoothed loss grows along the weights alone.
    labels = at.batch.labels.repeat(4)
    losses = [cross_entropy(at.model(images.flatten(0, 1)), labels).mean() for images in (noisy, worst)]
    assert losses[1] > losses[0]
    exact = training.Adversarial(steps=3, relative_step=0.5)(at).images - at.batch.x
    torch.testing.assert_close(moves[0], exact, rtol=0, atol=1e-6)


def test_noise_consistency_by_hand():
    x, y = torch.rand(3, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 1])
    model, draws = Linear(), torch.rand(6, *SHAPE, dtype=torch.float64)
    step = NoiseConsistency(weight=3.0, entropy=0.5)(model, x, draws, y.repeat(2))
    p = model(draws).softmax(1).unflatten(0, (2, 3))
    mean = p.mean(0)
    divergence = (mean * (mean.log() - p.log())).sum(2).mean(0)
    entropy = -(mean * mean.log()).sum(1)
    plain = -p[:, torch.arange(3), y].log().mean(0)
    torch.testing.assert_close(step.loss, plain + 3 * divergence + 0.5 * entropy)
    assert step.logits.shape == (6, 2)
    alone = NoiseConsistency(weight=3.0, entropy=0.0)(model, x, draws[:3], y)
    torch.testing.assert_close(alone.loss, cross_entropy(model(draws[:3]), y))


@pytest.mark.parametrize("objective", [Standard(), MaxCleanAdversarial(), Trades(), Consistency(lambda x, _: x)])
def test_objectives_take_several_draws_of_an_image(objective):
    at = setting(count=7)
    images, targets = training.Gaussian(sigma=0.02, draws=2)(at)
    keys = torch.cat([at.keys, at.keys])
    both = objective(at.model, at.batch.x, images, targets, keys).loss
    apart = [objective(at.model, at.batch.x, part, at.batch.labels, at.keys).loss for part in images.chunk(2)]
    torch.testing.assert_close(both, torch.cat(apart))


def test_draws_of_a_staged_perturbation_are_those_of_its_stages():
    two = training.Gaussian(sigma=0.02, draws=2)
    assert training.Curriculum(two).draws == 2
    stages = {"a": training.PairedData(), "b": two}
    assert training.Schedule(stages, {"a": 1, "b": 1}).draws == 2
    assert training.Curriculum(training.Adversarial()).draws == 1


def test_terms_of_objectives_are_of_single_precision_under_autocast():
    """From the same logits in half precision, whatever comes after the network is what float32 gives."""
    logits = (3 * torch.randn(2, 3, 16, 10)).bfloat16()
    model, y = torch.nn.Identity(), torch.randint(10, (16,))
    x, perturbed = logits[0, 0], logits[0, 1]
    for objective in (Trades(), NuclearNorm(), Consistency(lambda x, _: x), NoiseConsistency()):
        draws = logits[0, 1:].flatten(0, 1) if isinstance(objective, NoiseConsistency) else perturbed
        labels = y.repeat(2) if isinstance(objective, NoiseConsistency) else y
        keys = torch.arange(len(labels))
        with torch.autocast("cpu", torch.bfloat16):
            found = objective(model, x, draws, labels, keys).loss
            climbed = objective.attack_loss(model, x, y)(perturbed)
        torch.testing.assert_close(
            found, objective(model, x.float(), draws.float(), labels, keys).loss, atol=1e-5, rtol=1e-5
        )
        alone = objective.attack_loss(model, x.float(), y)(perturbed.float())
        torch.testing.assert_close(climbed.float(), alone, atol=1e-5, rtol=1e-5)
