"""Every layer: its inverse, its log-determinant against autograd's Jacobian, and what it does under resume and bf16."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrobust.errors import InputError
from latentrobust.networks import flows
from latentrobust.networks.flows.actnorm import ActNorm
from latentrobust.networks.flows.base import Chain
from latentrobust.networks.flows.convolution import InvertibleConvolution, SingularError
from latentrobust.networks.flows.coupling import AffineCoupling
from latentrobust.networks.flows.fully_connected import Permutation, TwoSidedCoupling
from latentrobust.networks.flows.glow import Level, Step
from latentrobust.networks.flows.logit import Logit

IMAGE, VECTOR = (4, 4, 4), (7,)


def scrambled(layer, scale=0.3):
    """Weights away from where they start: zero-initialised ones would hide mistakes."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return layer.double()


def level():
    return Level(
        Chain(Step(4, 6, lu, "bounded") for lu in (False, True)), Level(Chain([Step(8, 6, True, "learned")]), None)
    )


LAYERS = {
    "actnorm": (lambda: ActNorm(4), IMAGE),
    "convolution": (lambda: InvertibleConvolution(4), IMAGE),
    "convolution_lu": (lambda: InvertibleConvolution(4, lu=True), IMAGE),
    "coupling_learned": (lambda: AffineCoupling(4, 6, "learned"), IMAGE),
    "coupling_bounded": (lambda: AffineCoupling(4, 6, "bounded"), IMAGE),
    "step": (lambda: Step(4, 6, False, "learned"), IMAGE),
    "level": (level, IMAGE),
    "two_sided": (lambda: TwoSidedCoupling(7, 3, 5, 2.0), VECTOR),
    "permutation": (lambda: Permutation(torch.randperm(7)), VECTOR),
    "logit": (Logit, IMAGE),
}
EACH = pytest.mark.parametrize("name", list(LAYERS))


def built(name, count=3):
    make, shape = LAYERS[name]
    layer = scrambled(make())
    x = torch.rand(count, *shape, dtype=torch.float64) * 0.98 + 0.01
    return layer, x, torch.tensor([0, 2, 1])[:count]


@EACH
def test_inverse(name):
    layer, x, y = built(name)
    z, log_det = layer(x, y)
    assert z.shape == x.shape
    assert log_det.shape == (3,)
    assert (layer.inverse(z, y) - x).abs().max() < 1e-10


@EACH
def test_log_determinant_is_that_of_the_jacobian(name):
    layer, x, y = built(name)
    _, log_det = layer(x, y)
    for number in range(len(x)):
        own = y[number : number + 1]
        jacobian = torch.autograd.functional.jacobian(lambda one: layer(one, own)[0], x[number : number + 1])  # noqa: B023
        size = x[0].numel()
        expected = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
        torch.testing.assert_close(log_det[number], expected, rtol=1e-9, atol=1e-9)


@EACH
def test_frozen_layers_compute_the_same_and_notice_new_weights(name):
    layer, x, y = built(name)
    z, log_det = (part.detach() for part in layer(x, y))
    layer.requires_grad_(False)
    for _ in range(2):  # the second time from what was kept
        torch.testing.assert_close(layer(x, y), (z, log_det), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.inverse(z, y), x, rtol=1e-9, atol=1e-9)
    if not list(layer.parameters()):
        return
    other = scrambled(copy.deepcopy(layer).float())
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x, y), other(x, y), rtol=1e-12, atol=1e-12)
    assert (layer.inverse(other(x, y)[0], y) - x).abs().max() < 1e-9
    single = layer.float()
    assert single(x.float(), y)[0].dtype == torch.float32


@EACH
def test_a_gradient_reaches_input_and_weights_both_ways(name):
    layer, x, y = built(name)
    x.requires_grad_()
    z, log_det = layer(x, y)
    back = layer.inverse(z.detach().requires_grad_(), y)
    (z.square().sum() + log_det.sum() + back.square().sum()).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_kept_values_do_not_leak_out_of_inference_mode():
    layer = Step(4, 6, False, "learned").requires_grad_(False)
    x = torch.rand(2, 4, 4, 4)
    with torch.inference_mode():
        layer.inverse(layer(x)[0])
    u = torch.zeros_like(x).requires_grad_()
    layer.inverse(x + u).sum().backward()
    assert u.grad.abs().sum() > 0


@pytest.mark.parametrize("lu", [False, True])
def test_initialisation_normalises_and_happens_once(lu):
    net = flows.build("glow", image_shape=[3, 8, 8], levels=2, steps=2, hidden=8, lu=lu)
    x = torch.rand(64, 3, 8, 8) * 0.2 + 0.4
    before = net.encode(x)[0]
    net.initialize(x)
    after = net.encode(x)[0]
    assert not torch.allclose(before, after)
    step = net.flow.steps.flows[0]
    logits = torch.nn.functional.pixel_unshuffle(net.preprocess(x)[0], 2)
    normal = step.norm(logits)[0]
    assert normal.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normal.var((0, 2, 3)) - 1).abs().max() < 1e-2
    net.initialize(torch.rand(64, 3, 8, 8))
    assert torch.equal(net.encode(x)[0], after)
    fresh = flows.build("glow", image_shape=[3, 8, 8], levels=2, steps=2, hidden=8, lu=lu)
    fresh.load_state_dict(net.state_dict())  # a resumed run
    fresh.initialize(torch.rand(64, 3, 8, 8))
    assert torch.equal(fresh.encode(x)[0], after)


def test_a_constant_channel_does_not_explode():
    norm = ActNorm(2)
    x = torch.rand(8, 2, 3, 3)
    x[:, 1] = 0.5
    z = norm.initialize(x)
    assert z.isfinite().all()
    assert norm.logs[0, 1].item() == 0


def trained(dtype=torch.float32, images=16, training_steps=4, lr=5e-3, **sizes):
    """A Glow after some steps away from its start."""
    net = flows.build("glow", **{"image_shape": [3, 16, 16], "levels": 2, "steps": 3, "hidden": 16, **sizes}).to(dtype)
    x = torch.rand(images, *net.image_shape, dtype=dtype)
    net.initialize(x)
    optimizer = torch.optim.Adamax(net.parameters(), lr=lr)
    for _ in range(training_steps):
        optimizer.zero_grad()
        net.bits_per_dim(x).mean().backward()
        optimizer.step()
    return net, x


@pytest.mark.parametrize("lu", [False, True])
def test_round_trip_of_images(lu):
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        net, x = trained(dtype, lu=lu)
        x[0], x[1] = 0, 1  # black and white have latents too
        assert (net.decode(net.encode(x)[0]) - x).abs().max() < bound
        with torch.no_grad():
            assert (net.decode(net.encode(x)[0]) - x).abs().max() <= min(bound, 2e-7)


@pytest.mark.slow
def test_round_trip_of_the_full_size_after_training_steps():
    net, x = trained(image_shape=[3, 32, 32], levels=3, steps=32, hidden=512, images=2, training_steps=2, lr=1e-4)
    assert (net.decode(net.encode(x)[0]) - x).abs().max() < 1e-4
    with torch.no_grad():
        z, _ = net.encode(x)
        assert (net.decode(z) - x).abs().max() < 1e-6
        assert (net.decode(z.float()) - x).abs().max() < 1e-4  # a latent that was stored in float32
        wide = net.double()
        assert (wide.decode(wide.encode(x.double())[0]) - x).abs().max() < 1e-10


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_is_for_the_networks_only(lu, frozen):
    net, x = trained(lu=lu)
    net.requires_grad_(not frozen)
    exact, log_det = net.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, narrow = net.encode(x)
        back = net.decode(z)
        hidden = net.flow.steps.flows[0].coupling.network(torch.rand(2, 6, 8, 8))
    assert hidden.dtype == torch.bfloat16
    assert z.dtype == narrow.dtype == (torch.float64 if frozen else torch.float32)
    assert back.dtype == torch.float32
    # While it is trained the state is float32, which reconstructs inputs only to within what bf16 can tell apart.
    assert (back - x).abs().max() < (1e-6 if frozen else 5e-3)
    assert not torch.equal(z, exact)
    torch.testing.assert_close(narrow, log_det, rtol=0.02, atol=5.0)


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_half_precision_weights_encode_and_decode(lu, dtype, close):
    torch.manual_seed(0)
    network = flows.build("glow", image_shape=[3, 8, 8], levels=2, steps=2, hidden=16, lu=lu).eval()
    x = 0.1 + 0.8 * torch.rand(4, 3, 8, 8)
    network.initialize(x)
    network.requires_grad_(False).to(dtype)
    z, log_det = network.encode(x.to(dtype))
    back = network.decode(z)
    exact, of_exact = network.float().encode(x)
    assert back.dtype == dtype  # latents of frozen flows are float64
    torch.testing.assert_close(back.float(), x, atol=close, rtol=0)
    torch.testing.assert_close(z.float(), exact.float(), atol=10 * close, rtol=0.05)
    torch.testing.assert_close(log_det.float(), of_exact.float(), atol=0, rtol=0.01)


def test_gradients_recomputed_equal_those_kept():
    net, x = trained()
    found = []
    for wanted in (False, True):
        net.recompute(wanted)
        net.zero_grad()
        u = torch.zeros_like(x).requires_grad_()
        z, _ = net.encode(x)
        (net.bits_per_dim(x).mean() + net.decode(z.detach() + u).square().mean()).backward()
        found.append([p.grad.clone() for p in net.parameters()] + [u.grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_singular_convolution_is_named():
    net, x = trained()
    weight = net.flow.following.steps.flows[1].convolution.weight
    for row in (
        torch.zeros_like(weight[1]),
        weight[1].detach().clone() * (1 + 1e-7),
        torch.full_like(weight[1], torch.nan),
    ):
        with torch.no_grad():
            weight[0] = row
        with pytest.raises(SingularError, match=r"flow\.following\.steps\.flows\.1\.convolution .* singular"):
            net.decode(x)


def test_weights_that_are_trained_are_never_remembered():
    """Fused optimisers, and writing to ``.data`` as averaging does, leave no trace on a weight."""
    net, x = trained()
    for change in ("fused", "data"):
        with torch.no_grad():
            before = net.encode(x)[0]
        if change == "fused":
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
            net.bits_per_dim(x).mean().backward()
            optimizer.step()
        else:
            for parameter in net.parameters():
                parameter.data.copy_(parameter.data * 1.01)
        with torch.no_grad():
            after = net.encode(x)[0]
        assert (after - before).abs().max() > 1e-3
        fresh = copy.deepcopy(net)
        with torch.no_grad():
            assert torch.equal(fresh.encode(x)[0], after)


def test_training_can_be_compiled_after_use():
    net, x = trained()
    with torch.no_grad():
        net.encode(x)
    net.zero_grad()
    torch.compile(net.bits_per_dim, backend="eager")(x).mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("glow", {"image_shape": [1, 28, 28], "levels": 3}, "28×28"),
        ("glow", {"image_shape": [3, 8, 8], "steps": 0}, "at least 1"),
        ("glow", {"image_shape": [3, 8, 8], "levels": 1, "steps": 1, "hidden": 4, "scale": "big"}, "learned|bounded"),
        ("fully_connected", {"clamp": 0}, "clamp must be a number above 0"),
        ("nice", {}, "no flow is called"),
    ],
)
def test_sizes_that_do_not_fit(name, arguments, message):
    with pytest.raises(InputError if name != "nice" else ValueError, match=message):
        flows.build(name, **arguments)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 4), st.integers(0, 2**31))
def test_fully_connected_flows_of_any_size_invert(channels, side, classes, seed):
    torch.manual_seed(seed)
    if channels * side * side < 2:
        return
    net = flows.build("fully_connected", image_shape=[channels, side, side], classes=classes, blocks=3, hidden=8)
    scrambled(net, 0.03)  # farther away the inverse is as exact, but of latents in the hundreds
    x = torch.rand(4, channels, side, side, dtype=torch.float64)
    y = torch.randint(0, max(classes, 1), (4,))
    z, _ = net.encode(x, y)
    assert (net.decode(z, y) - x).abs().max() < 1e-7


def test_labels_are_needed_and_used():
    net = scrambled(flows.build("fully_connected", image_shape=[1, 4, 4], classes=3, blocks=2, hidden=8))
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="conditioned on labels"):
        net.encode(x)
    assert not torch.allclose(net.encode(x, torch.tensor([0, 1]))[0], net.encode(x, torch.tensor([1, 1]))[0])


def moons(count, generator):
    """Two interleaved half circles with noise, scaled into the unit square."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.08 * torch.randn(count, 2, generator=generator)
    return (points + torch.tensor([1.6, 1.2])) / torch.tensor([4.2, 3.4])


def test_the_density_of_moons_integrates_to_one_and_samples_match():
    generator = torch.Generator().manual_seed(0)
    net = flows.build("fully_connected", image_shape=[1, 1, 2], classes=0, blocks=8, hidden=48, noise=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 500)
        optimizer.zero_grad()
        (-net.log_density(moons(256, generator).reshape(-1, 1, 1, 2))).mean().backward()
        optimizer.step()
    net.requires_grad_(False)
    side = 600
    axis = (torch.arange(side) + 0.5) / side * 3 - 1  # well beyond the data
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    mass = net.log_density(grid).exp().double().sum() * (3 / side) ** 2
    assert abs(float(mass) - 1) < 0.01
    samples = net.decode(torch.randn(4000, 1, 1, 2, generator=generator)).reshape(-1, 2)
    real, other = moons(4000, generator), moons(4000, generator)
    assert energy(samples, real) < 4 * abs(energy(other, real)) + 0.004
    assert energy(torch.rand(4000, 2, generator=generator), real) > 0.02  # the distance tells them from a square


def energy(a, b):
    """The energy distance of two samples (Székely & Rizzo 2013)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())
