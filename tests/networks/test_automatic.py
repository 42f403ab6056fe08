"""Networks chosen by size and colour are built, take the images, and are not larger than these ask for."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from latentrobust.data.pairs.from_arrays import pairs
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.errors import InputError
from latentrobust.networks import classifiers, cvae, flows
from latentrobust.networks.automatic import choose_classifier, choose_cvae, choose_flow
from latentrobust.sizes import take_sizes

SHAPES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 33, 31), (1, 96, 84), (3, 8, 200), (1, 5, 7), (3, 125, 187)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cvae_for_images_of_any_size(shape):
    chosen = choose_cvae(shape)
    network = cvae.build(chosen.name, **chosen.arguments)
    assert network.image_shape == shape
    assert chosen.reason
    assert sum(parameter.numel() for parameter in network.parameters()) < 15e6
    if shape[1] * shape[2] <= 96 * 84:
        x = torch.rand(2, *shape)
        with torch.no_grad():
            z = network.encode_posterior(x, x).mean
            assert network.generate(x, z).shape == x.shape
    assert cvae.build("auto", image_shape=list(shape)).description == network.description


@pytest.mark.parametrize("shape", [(1, 42, 42), (3, 42, 40)])
def test_pairs_that_only_move_pixels_get_a_warp_and_nothing_else(shape):
    chosen = choose_cvae(shape, moves_only=True)
    assert chosen.name == "structured"
    generator = cvae.build(chosen.name, **chosen.arguments).generator
    assert generator.warps is not None
    assert (generator.blur, generator.light, generator.residual) == (None, None, None)
    assert choose_cvae((1, 5, 7), moves_only=True).name == "mnist_fc"


@pytest.mark.parametrize(("shape", "levels"), [((1, 28, 28), 2), ((3, 32, 32), 3), ((1, 96, 84), 2), ((3, 6, 10), 1)])
def test_a_flow_halves_as_often_as_the_sides_allow(shape, levels):
    chosen = choose_flow(shape)
    assert chosen.arguments["levels"] == levels
    network = flows.build("auto", image_shape=list(shape), steps=1, hidden=4)
    x = torch.rand(2, *shape)
    assert network.encode(x)[0].shape == x.shape
    with pytest.raises(InputError, match="does not fit 9×8: give even sides"):
        choose_flow((1, 9, 8))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_classifier_for_images_of_any_size(shape):
    model = classifiers.build("auto", image_shape=list(shape), classes=4).eval()
    assert choose_classifier(shape, 4).arguments["classes"] == 4
    assert model(torch.rand(2, *shape)).shape == (2, 4)


def configured(**model):
    network = {
        "_target_": "latentrobust.networks.cvae.build",
        "name": "unet",
        "image_shape": [3, 125, 187],
        "pool": [[9, 9]],
    }
    cfg = {"learner": {"network": {**network, "channels": [4, 4], "latents": [2, 2]}}, "overrides": []}
    return OmegaConf.create({**cfg, "model": {"_target_": "latentrobust.networks.classifiers.build", **model}})


def own(labels=True):
    x = torch.randint(0, 256, (12, 1, 10, 12), dtype=torch.uint8)
    return GivenPairs(pairs(x, 255 - x, torch.arange(12) % 3 if labels else None))


def test_own_pairs_decide_sizes_that_nobody_has_named():
    cfg = configured(name="wide_resnet", channels=3, classes=10, mean=[0.5] * 3, std=[0.2] * 3)
    take_sizes(cfg, own())
    assert cfg.learner.network == {
        "_target_": "latentrobust.networks.cvae.build", "name": "unet", "image_shape": [1, 10, 12], "pool": None,
        "channels": [4, 4], "latents": [2, 2],
    }  # fmt: skip
    assert (cfg.model.channels, cfg.model.classes, cfg.model.mean, cfg.model.std) == (1, 3, None, None)
    cfg = configured(name="wide_resnet", channels=3, classes=10)
    cfg.overrides = ["learner.network.pool=[[9,9]]", "model.classes=10"]
    take_sizes(cfg, own())
    assert (cfg.learner.network.pool, cfg.model.classes, cfg.model.channels) == ([[9, 9]], 10, 1)
    with pytest.raises(InputError, match="no labels"):
        take_sizes(configured(name="wide_resnet", channels=3, classes=10), own(labels=False))


def test_auto_says_what_it_chose_and_why(capsys):
    cfg = configured(name="auto")
    cfg.learner.network = {"_target_": "latentrobust.networks.cvae.build", "name": "auto", "latent": 7}
    take_sizes(cfg, own())
    assert (cfg.learner.network.name, cfg.learner.network.latent) == ("structured", 7)
    assert (cfg.model.name, cfg.model.classes) == ("pooled_cnn", 3)
    said = capsys.readouterr().out
    assert "learner.network: structured, because images have 10×12 pixels" in said
    assert "training pairs, too few for a residual network" in said
    assert choose_classifier((3, 32, 32), 10, 2000).name == choose_classifier((3, 32, 32), 10).name == "wide_resnet"
    assert choose_classifier((3, 32, 32), 10, 1999).name == "pooled_cnn"


@pytest.mark.parametrize("data", ["digits", "photos"])
def test_networks_for_any_size_take_it_from_any_data(composed, data):
    """Also from the package's own data, whose other networks have the sizes of their papers."""
    cfg = composed(
        "train", f"data={data}", "learner/network=structured", "model=pooled_cnn", "paths.output_dir=x",
        "learner.network.latent=5000" if data == "digits" else "learner.network.latent=4",
    )  # fmt: skip
    module = instantiate(cfg.data, _convert_="all")
    take_sizes(cfg, module)
    assert list(cfg.learner.network.image_shape) == list(cfg.model.image_shape) == list(module.image_shape)
    assert cfg.model.classes == module.classes
    named = composed(
        "train",
        f"data={data}",
        "learner/network=structured",
        "learner.network.image_shape=[1,8,8]",
        "paths.output_dir=x",
    )
    named.overrides = ["learner.network.image_shape=[1,8,8]"]  # as the command line leaves them
    take_sizes(named, module)
    assert named.learner.network.image_shape == [1, 8, 8]
