"""The Python interface, given what people have."""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import latentrobust as lr
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.networks.classifiers import build
from latentrobust.networks.flows.fully_connected import fully_connected
from latentrobust.networks.flows.glow import glow
from latentrobust.perturbation_sets import FlowSet, PixelBall
from latentrobust.preflight import check_model
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.inputs import as_model, class_names_of
from latentrobust.transforms import random

SHAPE = (1, 6, 6)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x, y = torch.rand(5, *SHAPE), torch.randint(0, 3, (5,))
    return model, PixelBall(SHAPE, "linf", 0.1), x, y


ROBUST = lr.RobustSettings(attacks={"pgd": PGD(steps=2, relative_step=0.5)}, radii=[0.1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "given",
    [
        lambda m, s, x, y: (m, s, (x.numpy(), y.numpy())),
        lambda m, s, x, y: (m, s, (x.double(), y)),
        lambda m, s, x, y: (copy.deepcopy(m).double(), s, (x.double(), y)),
        lambda m, s, x, y: (lambda images: m(images), s, (x, y)),  # noqa: PLW0108
        lambda m, s, x, y: (lambda images: m(images).double(), s, (x, y)),
        lambda m, s, x, y: (m, s, [(x[:2], y[:2]), (x[2:], y[2:], x[2:])]),
        lambda m, s, x, y: (m, s, (x, y.int())),
        lambda m, s, x, y: (m, s, (x, y.byte())),
    ],
)
def test_what_people_have_is_taken(parts, given):
    plain = lr.assess(parts[0], parts[1], parts[2:], robust=ROBUST).metrics
    found = lr.assess(*given(*parts), robust=ROBUST).metrics
    for name in plain:
        assert found[name] == pytest.approx(plain[name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s, x, y: lr.assess(s, m, (x, y)), "the model comes first, then the set|must be a PerturbationSet"),
        (lambda m, s, x, y: lr.assess(None, s, (x, y)), "model must be a Module or something that can be called"),
        (lambda m, s, x, y: lr.assess(nn.Linear, s, (x, y)), "must be a torch.nn.Module or a function"),
        (lambda m, s, x, y: lr.assess(m, "folder", (x, y)), "must be a perturbation set, got a str: load it"),
        (lambda m, s, x, y: lr.assess(m, s, ((255 * x).byte(), y)), "floating-point images in .0, 1., got torch.uint8"),
        (lambda m, s, x, y: lr.assess(m, s, (x[0], y[:1])), r"a batch \[B, 1, 6, 6\], got one image: give x\[None\]"),
        (lambda m, s, x, y: lr.assess(m, s, {"x": x}), "data must be .* got a dict"),
        (lambda m, s, x, y: lr.assess(m, s, [{"x": x}]), "data must be"),
        (lambda m, s, x, y: lr.assess(m, s, None), "data must be"),
        (lambda m, s, x, y: lr.assess(m, s, (x, y[:3])), "tensors or arrays of one length"),
        (lambda m, s, x, y: lr.assess(m, s, (x[:0], y[:0])), "data to assess has no example in it"),
        (lambda m, s, x, y: lr.assess(m, s, (x, y.bool())), "y must be whole numbers, got torch.bool"),
        (lambda m, s, x, y: lr.assess(m, s, (x, y[:, None])), "do not fit logits"),
        (lambda m, s, x, y: lr.assess(m, s, (x, y), robust=PGD()), "robust must be a RobustSettings"),
        (lambda m, s, x, y: lr.assess(m, s, (x, y), seed=-1), "seed must be a whole number at least 0"),
        (lambda m, s, x, y: lr.assess(lambda z: m(z).int(), s, (x, y)), "floating-point logits, got torch.int32"),
        (lambda m, s, x, y: lr.assess(lambda z, q: z, s, (x, y)), "the model fails on images .*TypeError"),
        (lambda m, s, x, y: PGD(steps=2)(s, m, x, y), "the model comes first"),
        (lambda m, s, x, y: PGD(steps=2)(m, s, y, x), "floating-point images"),
        (lambda m, s, x, y: PGD(steps=2)(m, s, x, y, keys=torch.zeros(2)), "keys must be whole numbers, one for each"),
        (lambda m, s, x, y: PGD(steps=2.5), "PGD: steps must be a whole number at least 0, got 2.5"),
        (lambda m, s, x, y: PGD(steps=float("nan")), "steps must be a whole number"),
        (lambda m, s, x, y: lr.CertifySettings(n=float("inf")), "CertifySettings: n must be a whole number"),
        (lambda m, s, x, y: lr.SmoothedModel(m, s, "a"), "SmoothedModel: sigma must be a number above 0"),
        (lambda m, s, x, y: lr.SmoothedModel(m, s, 0.1).certify(x, torch.zeros(2).long()), "one for each of 5 images"),
        (lambda m, s, x, y: lr.SmoothedModel(m, s, 0.1).predict(x, n=-1), "predict: n must be a whole number"),
        (lambda m, s, x, y: lr.noise_level("a"), "noise_level: radius must be a number above 0"),
        (lambda m, s, x, y: s.at(x).decode(torch.zeros(5, 3)), r"offsets must be \[5, 1, 6, 6\] for 5 images"),
        (lambda m, s, x, y: s.at((255 * x).byte()), "floating-point images in .0, 1., got torch.uint8"),
        (lambda m, s, x, y: s.at(x).sample(-1), "sample: count must be a whole number at least 0"),
        (lambda m, s, x, y: lr.LatentBall(3, "l2", 1.0), "LatentBall: shape must be a list, got 3"),
        (lambda m, s, x, y: lr.assess(lambda z: {"a": m(z)}, s, (x, y)), "as a tensor, got dict: latentrobust.wrap"),
        (lambda m, s, x, y: lr.SmoothedModel(lambda z: (m(z),), s, 0.1).certify(x, n=100), "as a tensor, got tuple"),
        (PGD(loss=nn.CrossEntropyLoss()), r"per image, \[\d\], got \[\]: .*'none'"),
        (lambda m, s, x, y: PGD()(m, s, x, y, keys=torch.zeros(5).bool()), "keys must be whole numbers, one for each"),
        (lambda m, s, x, y: s.at(x).sample(2, torch.arange(3)), r"one for each of 5 images; got torch.int64 \[3\]"),
        (lambda m, s, x, y: s.radius_of("coverage=abc"), "stores no coverage"),
        (
            lambda m, s, x, y: lr.assess(m, s, (x, y), robust=None, certify=lr.CertifySettings(radii=[0])),
            "radius 0 alone choose no noise level: give sigma",
        ),
        (lambda m, s, x, y: lr.assess(m, s, (x, y), journal="."), "journal=. is a folder"),
        (lambda m, s, x, y: PGD()(m, s, x, torch.zeros(5, 1, 6, 6).long()), r"y of pixels must be \[B, H, W\]"),
        (
            lambda m, s, x, y: lr.SmoothedModel(m, s, 0.1).certify(x, n=100).certified("full"),
            "certified: radius must be a number at least 0",
        ),
        (lambda m, s, x, y: lr.load_perturbation_set(3), "path must be text or a path or null, got 3"),
        (lambda m, s, x, y: lr.load_model(None), "path must be text or a path, got None"),
        (lambda m, s, x, y: lr.save_perturbation_set(m, "x"), "must be a PerturbationSet"),
    ],
)
def test_what_does_not_fit_is_one_line(parts, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(*parts)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_a_radius_alone_will_do(parts):
    model, s, x, y = parts
    attack = PGD(steps=5, relative_step=0.5)
    for radii in (0.05, [0.05]):
        assert attack(model, s, x, y, radii=radii).radii == (0.05,)
    assert attack(model, s, x, y, radii="full").radii == (0.1,)


@pytest.mark.filterwarnings("ignore")
def test_arrays_as_views_numbers_and_lists_are_taken(parts, small_set):
    """Reversed channels, another byte order, double precision with a plain function, radii and offsets of NumPy."""
    model, perturbations, x, y = parts
    attack = PGD(steps=2, checks=False)
    plain = attack(model, perturbations, x, y, radii=[0.05]).score
    back = np.ascontiguousarray(x.numpy()[..., ::-1])[..., ::-1]
    assert back.strides[-1] < 0
    swapped = x.numpy().astype(">f4")
    for images in (back, swapped):
        for radii in (np.float32(0.05), torch.tensor(0.05), np.array([0.05])):
            found = attack(model, perturbations, images, list(y.tolist()), radii=radii).score
            torch.testing.assert_close(found, plain)
    assert torch.equal(attack(model, perturbations, x, y.numpy()[::-1].copy()[::-1], radii=0.05).score, plain)
    observed = {"x_tilde": x.numpy(), "offset": torch.zeros(5, *SHAPE).numpy()}
    assert PGD(steps=2, start="encoded", checks=False)(model, perturbations, x, y, **observed).score.shape == (1, 5)


@pytest.mark.filterwarnings("ignore")
def test_the_sets_weights_tell_precision_where_the_model_has_none(small_set):
    x = np.random.default_rng(0).random((3, 1, 8, 8))
    assert x.dtype == np.float64
    y, model = np.array([0, 1, 0]), lambda images: images.flatten(1)[:, :2]
    assert PGD(steps=2, checks=False)(model, small_set, x, y).images.dtype == torch.float32
    assert lr.SmoothedModel(model, small_set, 0.5).certify(x, n=20, alpha=0.01).counts.sum() == 60
    assert small_set.at(x).decode(torch.zeros(3, 5)).dtype == torch.float32


def test_labels_of_a_set_may_be_arrays_and_lists():
    flow = FlowSet(fully_connected((1, 4, 4), classes=3, blocks=1, hidden=8), "l2", 1.0).eval()
    x = torch.rand(3, 1, 4, 4)
    z = flow.at(x, torch.tensor([0, 1, 2])).z
    for labels in (np.array([0, 1, 2]), [0, 1, 2]):
        assert torch.equal(flow.at(x, labels).z, z)
    with pytest.raises(InputError, match="give 3 whole numbers as y, got none"):
        flow.at(x)


def test_corruptions_of_arrays_are_those_of_tensors():
    grey = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    assert torch.equal(lr.corrupt(grey.numpy(), "fog", 3, [4, 5]), lr.corrupt(grey, "fog", 3, torch.tensor([4, 5])))
    with pytest.raises(ValueError, match="keys must be whole numbers, one for each of 2 images"):
        lr.corrupt(grey, "fog", 3, torch.zeros(2))
    with pytest.raises(TypeError, match="a tensor or an array"):
        lr.corrupt("fog.png", "fog")


def test_a_data_set_of_pictures_is_refused_in_one_line(parts):
    model, perturbations, *_ = parts
    pictures = [(Image.new("L", (6, 6)), 1)] * 4
    with pytest.raises(InputError, match=r"data must be .* found <class 'PIL\.Image\.Image'>"):
        lr.assess(model, perturbations, ListDataset(pictures), robust=ROBUST)


class ListDataset(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_keys_of_any_type_are_the_same_streams(parts, dtype):
    model, s, x, _ = parts
    keys = torch.arange(len(x))
    assert torch.equal(s.at(x).sample(3, keys.to(dtype)), s.at(x).sample(3, keys))
    smoothed = lr.SmoothedModel(model, s, 0.3)
    assert torch.equal(smoothed.certify(x, keys.to(dtype), n=100).counts, smoothed.certify(x, keys, n=100).counts)
    assert torch.equal(random.example_keys(3, keys.to(dtype)), random.example_keys(3, keys))
    images = torch.full((5, 3, 8, 8), 100, dtype=torch.uint8)
    noisy = [lr.corrupt(images, "impulse_noise", np.int64(5), own) for own in (keys.to(dtype), keys)]
    assert torch.equal(*noisy)


def test_a_model_in_double_precision_is_asked_in_it(parts):
    model, s, x, y = parts
    double = copy.deepcopy(model).double()
    found, expected = (lr.assess(m, s, (x, y), robust=None).metrics["loss/clean"] for m in (double, model))
    assert found == pytest.approx(expected)


def test_perturbed_images_that_no_flow_can_encode_are_refused():
    network = glow((3, 8, 8), levels=1, steps=1, hidden=8)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network.initialize(x)
    flow = FlowSet(network, "l2", 1.0).eval()
    s = flow.at(x)
    assert s.encode(x.round()).isfinite().all()
    assert s.encode(x + 0.03).isfinite().all()  # the logit has some room
    with pytest.raises(InputError, match=r"a flow encodes perturbed images in \[0, 1\], got values from .* to 1.3"):
        s.encode(torch.where(x == x.max(), 1.3, x))
    with pytest.raises(InputError, match=r"to 1\.0000001"):  # which is not to be told from 1 in six digits
        flow.at(torch.where(x == x.max(), 1.0000001, x))


@pytest.mark.parametrize(("labels", "message"), [(None, "a tensor of labels, got a NoneType"), (3, "got a int")])
def test_labels_that_are_none_are_refused_in_one_line(parts, labels, message):
    model, perturbations, x, _ = parts
    with pytest.raises(InputError, match=message):
        PGD(steps=1)(model, perturbations, x, labels)


def test_a_model_is_not_measured_on_classes_of_other_names(tmp_path):
    """Names are sorted and numbered data by data: where one is missing, the others have other numbers."""
    x = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0))
    names = ["blue", "yellow", "red"]

    def given(classes):
        return lr.pairs(x, 1 - x, y=[classes[number % len(classes)] for number in range(12)]).as_data()

    model = build("pooled_cnn", image_shape=SHAPE, classes=3, width=2)
    whole = given(names)
    assert whole.class_names == ("blue", "red", "yellow")
    folder = lr.save_model(
        model, tmp_path / "model", image_shape=SHAPE, classes=3, data="own", class_names=whole.class_names
    )
    loaded = lr.load_model(folder)
    assert class_names_of(loaded) == ("blue", "red", "yellow")
    loaded.class_names = ["what", "somebody", "else", "means"]
    assert "accuracy/clean" in lr.assess(loaded, data=whole, robust=None).metrics
    part = given(names[1:])
    said = "the model's classes are blue, red, yellow, in this order, and the data's red, yellow"
    with pytest.raises(InputError, match=said):
        lr.assess(loaded, data=part, robust=None)
    with pytest.raises(InputError, match=said):
        check_model(loaded, part)
    assert "accuracy/clean" in lr.assess(lr.wrap(loaded, classes=[1, 2]), data=part, robust=None).metrics
    unnamed = lr.pairs(x, 1 - x, y=torch.arange(12) % 3).as_data()
    assert "accuracy/clean" in lr.assess(loaded, data=unnamed, robust=None).metrics


class Asked(nn.Module):
    """Batch norm, and a way to be asked that is not its forward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3))

    def forward(self, x):
        return self.layers(x)

    def logits(self, x, scale=1.0):
        return scale * self.layers(x)


A_NETWORK = Asked()


class Holds:
    """An object that asks a network it holds."""

    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x)


def of_a_global_name(x):
    return A_NETWORK(x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net: net.forward,
        lambda net: net.__call__,
        lambda net: net.logits,
        lambda net: lambda x: 1.0 * net(x),
        lambda net: functools.partial(net.logits, scale=1.0),
        lambda net: functools.partial(lambda x, asked: asked(x), asked=net),
        lambda net: lambda x, nets=[net]: nets[0](x),
        lambda net: of_a_global_name,
        lambda net: Holds(net).predict,
    ],
    ids=["forward", "call", "method", "closure", "partial", "keyword", "list", "global", "object"],
)
def test_networks_that_a_function_asks_are_measured_in_evaluation_mode(parts, ask):
    _, s, x, y = parts
    before = copy.deepcopy(A_NETWORK.state_dict())
    model = ask(A_NETWORK.train())
    expected = lr.assess(A_NETWORK, s, (x, y), robust=ROBUST).metrics
    assert lr.assess(model, s, (x, y), robust=ROBUST).metrics == expected
    smoothed = lr.SmoothedModel(model, PixelBall(SHAPE, "l2", 0.1), 0.1, batch=7)
    whole = lr.SmoothedModel(A_NETWORK, PixelBall(SHAPE, "l2", 0.1), 0.1, batch=100)
    assert torch.equal(smoothed.certify(x, n=50, alpha=0.01).counts, whole.certify(x, n=50, alpha=0.01).counts)
    assert A_NETWORK.training
    assert A_NETWORK.layers[1].training
    after = A_NETWORK.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


predict = Asked()  # called as a method below is
HELD = Holds(A_NETWORK)


def of_an_attribute(x):
    return HELD.predict(x)


def test_networks_that_a_function_does_not_ask_are_left_alone():
    assert predict not in list(as_model(of_an_attribute).asked)
    assert not list(as_model(len).asked)
    assert not list(as_model(torch.softmax).asked)
    assert as_model(A_NETWORK.forward) is as_model(A_NETWORK.__call__) is A_NETWORK


@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("name", ["x_tilde", "offset"])
def test_attacks_refuse_observed_perturbations_of_other_images(parts, count, name):
    model, s, x, y = parts
    with pytest.raises(InputError, match=rf"{name} must have one entry for each of 5 images, got \[{count}, 1, 6, 6\]"):
        PGD(steps=1, start="encoded")(
            model, s, x, y, **{"x_tilde": torch.rand(5, *SHAPE), name: torch.rand(count, *SHAPE)}
        )


def test_what_needs_a_set_is_not_left_out_in_silence(parts):
    model, _, x, y = parts
    said = "no perturbations: attacks and certificates are left out"
    for settings in ({"robust": ROBUST}, {"certify": lr.CertifySettings(sigma=0.1, radii=[0.1])}):
        with pytest.warns(RobustnessWarning, match=said):
            assert said in lr.assess(model, None, (x, y), **settings).warnings
    for settings in ({}, {"robust": None}):
        assert said not in lr.assess(model, None, (x, y), **settings).warnings


class Coarse(nn.Module):
    """Maps at a quarter of the size, as torchvision and Hugging Face return them."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        bright = torch.nn.functional.avg_pool2d(x[:, :1], 4)
        return self.make(torch.cat([0.5 - bright, bright - 0.5], 1))


@pytest.mark.parametrize("make", [lambda maps: {"aux": 0, "out": maps}, lambda maps: maps], ids=["out", "alone"])
def test_wrapped_segmenters_give_maps_of_the_images_size(make):
    model = lr.wrap(Coarse(make), mean=[0.0], std=[1.0], size=[32, 32])
    x = torch.zeros(2, 1, 16, 16)
    x[1] = 1
    y = x[:, 0].long()
    assert model(x).shape == (2, 2, 16, 16)
    assert lr.assess(model, data=(x, y), robust=None).value("accuracy/clean") == 1
