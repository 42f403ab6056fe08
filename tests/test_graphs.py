"""Recorded steps: the same losses, gradients and images; and nothing in them that would wait for a GPU."""

import contextlib
import copy
import warnings
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from latentrobust.batch import Batch
from latentrobust.graphs import RARE, GraphedLoss, GraphedPass, GraphWarning, Recorder
from latentrobust.keys import Purpose
from latentrobust.learners.cvae import CVAELearner
from latentrobust.networks import classifiers, cvae, flows
from latentrobust.perturbation_sets import CVAESet, FlowSet, PixelBall
from latentrobust.robustness.attacks import latent_autoattack
from latentrobust.robustness.objectives import Standard, Trades
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.training import Adversarial, FastAdversarial, RecordedSearches, Setting
from latentrobust.schedules import PiecewiseLinear

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OF_A_STEP = Purpose.LEARNING, Purpose.LEARNING_SPREAD
NETWORKS = {
    "mnist_fc": ({"image_shape": [1, 12, 12], "hidden": 16, "latent": 4}, "bernoulli"),
    "mnist_conv": ({}, "bernoulli"),
    "mnist_stn": ({}, "bernoulli"),
    "resnet": ({"latent": 8, "wide": 8, "narrow": 4, "blocks": 1}, "gaussian"),
    "structured": ({"image_shape": [3, 16, 16], "latent": 4}, "gaussian"),
}


def learner(name, **options):
    arguments, likelihood = NETWORKS[name]
    torch.manual_seed(0)
    constant = PiecewiseLinear([1.0], [0])
    adam = partial(torch.optim.Adam, lr=1e-3)
    return CVAELearner(cvae.build(name, **arguments), likelihood, adam, constant, constant, **options)


def pairs(shape, count=4, first=0, device="cpu"):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(first))
    return Batch.of(x, torch.arange(count) % 10, (x + 0.1).clamp_max(1), first=first).map(lambda part: part.to(device))


def small_set():
    torch.manual_seed(1)
    return CVAESet(cvae.build("structured", image_shape=[1, 12, 12], latent=4), "gaussian", 2.0).eval()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_step_never_looks_at_values(name):
    own = learner(name)
    shape = own.network.image_shape
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.rand(4, *shape)
        keys = torch.zeros(4, dtype=torch.int64)
        loss, *_ = own._loss(x, x, torch.ones(()), keys, keys)
        torch.autograd.grad(loss, list(own.network.parameters()), allow_unused=True)


def test_values_that_are_looked_at_would_be_found():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        float(torch.rand(3).max())


@pytest.mark.parametrize(
    "adversary",
    [Adversarial(), Adversarial(start="encoded", keep_best=True), FastAdversarial(noise=2.0, projected=False)],
    ids=["pgd", "best", "fast"],
)
@pytest.mark.parametrize("objective", [Standard(), Trades()], ids=["standard", "trades"])
def test_a_search_never_looks_at_values(adversary, objective):
    model, perturbations = classifiers.build("standard_cnn", image_shape=[1, 12, 12]).train(), small_set()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, index = torch.rand(4, 1, 12, 12), torch.zeros(4, dtype=torch.int64)
        batch = Batch(x, index, index, index, x)
        adversary._search(Setting(model, perturbations, batch, index, objective.attack_loss))


def test_without_a_gpu_a_loss_is_the_function_itself():
    network = torch.nn.Linear(3, 1)
    x = torch.rand(5, 3)

    def function(x):
        out = network(x).square()
        return out.sum(), out.mean()

    loss_of = GraphedLoss(function, network, lambda: True)
    for _ in range(2):  # the second time, shapes are known
        loss, mean = loss_of(x)
        assert not mean.requires_grad
        torch.testing.assert_close(mean, loss.detach() / 5)
        expected = torch.autograd.grad(function(x)[0], network.weight)[0]
        torch.testing.assert_close(torch.autograd.grad(loss, network.weight)[0], expected)


def test_what_is_recorded_has_the_losses_gradients():
    own = learner("structured")
    batch = pairs(own.network.image_shape)
    loss, *_ = own.batch_loss(batch, 0.5)
    weights = list(own.network.parameters())
    expected = torch.autograd.grad(loss, weights, allow_unused=True)
    inputs = batch.x, batch.perturbed, torch.tensor(0.5), *(own._keys(batch, purpose) for purpose in OF_A_STEP)
    (again, *_), gradients = own.loss._differentiated(*inputs)
    torch.testing.assert_close(again, loss.detach())
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)
    # The module has its own parameters again, those that an optimiser knows.
    assert all(one is other for one, other in zip(own.network.parameters(), weights, strict=True))


def test_recordings_stay_with_their_process():
    recorder = Recorder(torch.sin)
    recorder._recordings["key"] = "a graph"
    assert copy.deepcopy(recorder)._recordings == {}


@on_gpu
@pytest.mark.parametrize("name", list(NETWORKS))
def test_recorded_steps_train_as_others_do(name):
    found = {}
    for recorded in (False, True):
        own = learner(name, cuda_graphs=recorded).to("cuda")
        optimizer = torch.optim.SGD(own.network.parameters(), lr=1e-5)
        losses = []
        for number in range(4):
            loss, *parts = own.batch_loss(pairs(own.network.image_shape, first=4 * number, device="cuda"), number / 4)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses += [float(loss.detach()), *map(float, parts)]  # the loss is kept: a recording must bear it
        assert bool(own.loss._recorder._recordings) is recorded
        found[recorded] = losses
    assert found[True] == pytest.approx(found[False], rel=1e-4, abs=1e-6)


@on_gpu
def test_gradients_of_several_calls_add_up():
    network = flows.build("glow", image_shape=[1, 8, 8], levels=1, steps=2, hidden=8).to("cuda")
    network.initialized.fill_(True)
    loss_of = GraphedLoss(lambda x: (network.bits_per_dim(x).mean(),), network, lambda: True)
    x = torch.rand(4, 1, 8, 8, device="cuda")
    loss_of(x)
    gradients = []
    for _ in range(2):
        network.zero_grad()
        for _ in range(len(gradients) + 1):
            (2 * loss_of(x)[0]).backward()
        gradients.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-6)


@on_gpu
@pytest.mark.parametrize(
    "adversary", [Adversarial(), FastAdversarial(check_every=2, check_size=2)], ids=["pgd", "fast"]
)
def test_recorded_searches_find_the_same_images_while_the_model_trains(adversary):
    torch.manual_seed(0)
    model = classifiers.build("standard_cnn", image_shape=[1, 12, 12]).to("cuda").train()
    perturbations = small_set().to("cuda").requires_grad_(False)
    searches = RecordedSearches(lambda: True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(4):
        batch = pairs((1, 12, 12), first=4 * number, device="cuda")
        at = Setting(model, perturbations, batch, batch.index, Standard().attack_loss, 0.5 + 0.25 * (number > 1))
        plain = adversary._search(at)
        images = adversary.perturb(at._replace(searches=searches))
        torch.testing.assert_close(images, plain, rtol=1e-3, atol=1e-3)
        Standard()(model, batch.x, images, batch.labels).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert searches._recorder[1]._recordings


@on_gpu
def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once():
    recorder = Recorder(lambda x: x * float(x.max()))
    x = torch.rand(3, device="cuda")
    with pytest.warns(GraphWarning, match="without a CUDA graph"):
        assert recorder([x]) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recorder([x]) is None
    torch.cuda.manual_seed(1)  # and random numbers come as before
    one = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(1)
    torch.testing.assert_close(torch.rand(3, device="cuda"), one)


@on_gpu
def test_random_numbers_go_on_after_a_recording_that_failed():
    found = []
    for fails in (False, True):
        torch.cuda.manual_seed(7)
        torch.rand(5, device="cuda")
        if fails:
            with pytest.warns(GraphWarning):
                Recorder(lambda x: x * float(x.max()))([torch.ones(3, device="cuda")])
        found.append(torch.rand(4, device="cuda"))
    torch.testing.assert_close(*found)


def test_without_a_gpu_a_pass_is_the_function_itself():
    own = GraphedPass(lambda u, x: (u * x, x))
    u, x = torch.rand(3, requires_grad=True), torch.rand(3)
    for _ in range(RARE + 2):
        product, same = own(u, x)
    assert same is x
    torch.testing.assert_close(torch.autograd.grad(product.sum(), u)[0], x)


@pytest.fixture
def graphed(monkeypatch):
    """A GPU as far as `GraphedPass` looks at one. What it would record is called as it is, and counted; or it fails."""
    told = {"recorded": 0, "fails": False}

    def make(function, inputs, **_):
        told["recorded"] += 1
        assert inputs[0].requires_grad is torch.is_grad_enabled()
        if told["fails"]:
            raise RuntimeError("cannot be captured")
        return function

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr("latentrobust.graphs._recovering", lambda device: contextlib.nullcontext())
    return told


@pytest.mark.parametrize("flat", [False, True])
def test_passes_that_come_often_are_recorded_once_for_each_shape(graphed, flat):
    own = GraphedPass((lambda u, x: ((u * x).detach().sign(), x)) if flat else (lambda u, x: (u * x, x)))
    for number in range(RARE + 3):
        for count in (3, 4):
            u, x = torch.rand(count, requires_grad=True), torch.rand(count)
            values, same = own(u, x)
            assert values.requires_grad is not flat
            assert not same.requires_grad
            torch.testing.assert_close(same, x)
            if not flat:
                torch.testing.assert_close(torch.autograd.grad(values.sum(), u)[0], x)
        assert graphed["recorded"] == (0 if number < RARE else 2) or flat
    assert graphed["recorded"] == 2
    with torch.no_grad():
        own(torch.rand(3), torch.rand(3))
    assert graphed["recorded"] == 2  # passes without a gradient are counted apart
    own.clear()
    assert not own._made


def test_a_pass_that_cannot_be_recorded_runs_as_it_is_and_says_so_once(graphed):
    graphed["fails"] = True
    own = GraphedPass(lambda u, x: (u * x, x))
    u, x = torch.rand(3, requires_grad=True), torch.rand(3)
    for _ in range(RARE):
        own(u, x)
    with pytest.warns(GraphWarning, match="cannot be captured"):
        torch.testing.assert_close(own(u, x)[0], u * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(own(u, x)[0], u * x)
    assert graphed["recorded"] == 1


def test_a_whole_attack_goes_through_recordings(graphed):
    """As on a GPU, up to the recording itself: filled up where examples drop out, cut off again, freed at the end."""
    torch.manual_seed(2)
    model = classifiers.build("lenet5", image_shape=[1, 12, 12]).eval()
    ball = PixelBall((1, 12, 12), "linf", 0.2)
    x = torch.rand(19, 1, 12, 12)
    with torch.no_grad():
        y = model(x).argmax(1)
    radii = [0.05, 0.1, 0.2]
    options = {"steps": 6, "restarts": 2, "targets": 2, "draws": 6, "refinements": 6, "chunk": 16, "checks": False}
    plain, found = (
        latent_autoattack(**options, cuda_graphs=on)(model, ball, x, y, radii=radii) for on in (False, True)
    )
    assert graphed["recorded"] > 2
    assert 0 < int(found.fooled[1].sum()) < 19
    for one, other in zip(plain[1:], found[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_all_votes_of_a_certificate_go_through_recordings(graphed, monkeypatch, adaptive):
    """Of several batches, the last one smaller: one recorded function serves the set at each of them."""
    replayed = []

    class Recorded:
        def __init__(self, function):
            self.function = function

        def __call__(self, inputs):
            return self

        def replay(self, inputs):
            replayed.append([len(tensor) for tensor in inputs[:2]])
            return self.function(*inputs)

    monkeypatch.setattr("latentrobust.robustness.votes.Recorder", Recorded)
    torch.manual_seed(2)
    model, perturbations = (
        classifiers.build("lenet5", image_shape=[1, 12, 12]).eval(),
        PixelBall((1, 12, 12), "l2", 1.0),
    )
    x = torch.rand(11, 1, 12, 12)
    found = []
    for wanted in (False, True):
        smoothed = SmoothedModel(model, perturbations, 0.05, batch=8, cuda_graphs=wanted)
        found.append(smoothed.certify(x, n0=8, n=400, adaptive=adaptive, targets=[0.02]))
        assert bool(replayed) is wanted
        assert not smoothed._votes._recorders  # weights may change from here on
    assert torch.equal(found[0].counts, found[1].counts)
    assert torch.equal(found[0].draws, found[1].draws)
    assert replayed[0] == [8, 1]
    assert [3, 2] in replayed


@on_gpu
def test_a_recorded_pass_has_the_functions_values_and_gradients():
    weight = torch.rand(4, 3, device="cuda")
    own = GraphedPass(lambda u, x: ((u @ weight + x).sin(), (u.detach() + 1)))
    kept = []
    for number in range(RARE + 4):
        u = torch.rand(5, 4, device="cuda", requires_grad=True)
        x = torch.rand(5, 3, device="cuda")
        values, more = own(u, x)
        (gradient,) = torch.autograd.grad((values * (number + 1)).square().sum(), u)
        expected = (u @ weight + x).sin()
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(more, u.detach() + 1)
        kept.append((gradient, torch.autograd.grad((expected * (number + 1)).square().sum(), u)[0]))
        with torch.no_grad():  # another recording in the same memory
            torch.testing.assert_close(own(u.detach(), x)[0], expected.detach())
    for gradient, expected in kept:  # later calls have not written over them
        torch.testing.assert_close(gradient, expected)
    assert len(own._made) == 2


@on_gpu
def test_a_function_without_a_gradient_is_recorded_without_one():
    own = GraphedPass(lambda u, x: ((u.detach() * x).sign(), x))
    for _ in range(RARE + 4):
        u, x = torch.rand(5, device="cuda", requires_grad=True), torch.rand(5, device="cuda")
        values, _ = own(u, x)
        assert not values.requires_grad
        torch.testing.assert_close(values, (u * x).sign().detach())
    assert own._made


@on_gpu
def test_memory_of_recordings_is_given_back():
    weight = torch.rand(512, 512, device="cuda")
    left = []
    for _ in range(3):
        own = GraphedPass(lambda u, x: ((u @ weight @ weight).sin() + x, x))
        for _ in range(RARE + 2):
            u, x = torch.rand(4096, 512, device="cuda", requires_grad=True), torch.rand(4096, 512, device="cuda")
            torch.autograd.grad(own(u, x)[0].sum(), u)
        assert own._made
        own.clear()
        del own, u, x
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_reserved())
    assert left[2] <= left[0]


def evaluated(kind):
    torch.manual_seed(3)
    if kind == "flow":
        network = flows.build("glow", image_shape=[1, 8, 8], levels=1, steps=2, hidden=8)
        network.initialized.fill_(True)
        perturbations, side = FlowSet(network, "l2", 3.0), 8
    elif kind == "pixels":
        perturbations, side = PixelBall((1, 12, 12), "linf", 0.1), 12
    else:
        perturbations, side = small_set(), 12
        with torch.no_grad():  # parts that start as the identity would leave images alone
            for weight in perturbations.network.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        perturbations.set_radius(4.0)
    model = classifiers.build("lenet5" if kind == "cvae" else "standard_cnn", image_shape=[1, side, side]).to("cuda")
    x = torch.rand(37, 1, side, side, generator=torch.Generator().manual_seed(1)).to("cuda")
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return model, perturbations.to("cuda").eval(), x, y


@on_gpu
@pytest.mark.parametrize("kind", ["cvae", "flow", "pixels"])
def test_recorded_attacks_find_what_others_find(kind):
    model, perturbations, x, y = evaluated(kind)
    radius, found = perturbations.ball.radius, {}
    for recorded in (False, True):
        attack = latent_autoattack(
            steps=10, restarts=2, targets=2, draws=8, refinements=8, chunk=24, checks=False, cuda_graphs=recorded
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", GraphWarning)
            found[recorded] = attack(model, perturbations, x, y, radii=[radius / 4, radius])
    one, other = found[False], found[True]
    assert (one.fooled != other.fooled).float().mean() < 0.1  # walks that round otherwise may end elsewhere
    assert int(other.fooled.sum()) > 0
    torch.testing.assert_close(perturbations.at(x).decode(other.offsets), other.images, rtol=1e-3, atol=1e-3)


@on_gpu
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["cvae", "flow", "pixels"])
def test_recorded_votes_are_those_of_others(kind, adaptive):
    model, perturbations, x, _ = evaluated(kind)
    found = []
    for recorded in (False, True):
        smoothed = SmoothedModel(model, perturbations, 0.5, batch=40, cuda_graphs=recorded)
        with warnings.catch_warnings():
            warnings.simplefilter("error", GraphWarning)
            found.append(smoothed.certify(x[:5], n0=20, n=1000, adaptive=adaptive, targets=[0.2]))
    one, other = found
    assert torch.equal(one.draws, other.draws)
    assert int((one.counts - other.counts).abs().max()) <= 5  # of a thousand, at near ties
