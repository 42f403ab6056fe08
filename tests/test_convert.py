"""Importing published checkpoints: safe, and only what fits."""

import io
import json
import os
import pickletools
import re
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from latentrobust import load_model, load_perturbation_set, save_model, save_perturbation_set
from latentrobust.convert import main
from latentrobust.errors import InputError
from latentrobust.networks.classifiers import build as build_classifier
from latentrobust.networks.cvae import build
from latentrobust.networks.flows import build as build_flow
from latentrobust.perturbation_sets import CVAESet, FlowSet
from latentrobust.published import beside, read_published
from latentrobust.published_weights import import_checkpoint, import_classifier, import_flow

from .golden.rule import wave
from .golden.test_flows import GOLDEN, published_state


def published(path, name="mnist_conv", **kwargs):
    """A file as the published training script writes it: a NumPy number in the optimiser's state."""
    network = build(name)
    optimizer = torch.optim.Adam(network.parameters(), lr=np.float64(1e-3))
    checkpoint = {"model_state_dict": network.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(checkpoint | {"epoch": 19, "val_loss": 1.0}, path, **kwargs)
    return network.eval()


def rename_module(path):
    """The same file as NumPy 1 would have written it."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            raw = source.read(item)
            if item.filename.endswith("data.pkl"):
                raw = raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                assert any(arg == "numpy.core.multiarray scalar" for _, arg, _ in pickletools.genops(raw))
            target.writestr(item, raw)


# The module path is only rewritten in the zip format.
@pytest.mark.parametrize(("numpy1", "legacy"), [(False, False), (False, True), (True, False)])
def test_published_files_load_safely_and_decode_the_same(tmp_path, numpy1, legacy):
    file = tmp_path / "checkpoint_best.pth"
    network = published(file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(file, weights_only=True)
    if numpy1:
        rename_module(file)
    perturbations = import_checkpoint(file, "mnist_conv", 29.0)
    x, z = torch.rand(2, 1, 28, 28), torch.randn(2, 128, 7, 7)
    assert torch.equal(perturbations.network.generate(x, z), network.generate(x, z))


def test_command_writes_a_set(tmp_path, capsys):
    published(tmp_path / "c.pth", "mnist_stn")
    main([str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", "mnist_stn", "--radius", "14"])
    assert str(tmp_path / "set") in capsys.readouterr().out
    assert load_perturbation_set(tmp_path / "set").ball.radius == 14


def test_calibrating_gives_a_set_radius_norms_and_coverage(tmp_path):
    network = build("mnist_fc", hidden=16, latent=4)
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "c.pth")
    command = [str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", "mnist_fc"]
    command += ["--argument", "hidden=16", "--argument", "latent=4"]
    data = ["data=digits", "data/perturbation=linf", "data.validation=40"]
    main([*command, "--calibrate", *data])
    found = load_perturbation_set(tmp_path / "set")
    assert found.ball.radius == found.latent_norms["max"] > found.latent_norms["p50"] > 0
    assert (found.coverage.pairs, found.coverage.split, found.data) == (40, "validation", "digits")
    main([*command, "--calibrate", *data, "--radius", "2.5"])
    assert load_perturbation_set(tmp_path / "set").ball.radius == 2.5
    with pytest.raises(SystemExit):
        main([*command, "--calibrate", "data=digits", "data/perturbation=rts"])


def test_the_set_of_corruptions_is_imported(tmp_path):
    small = {"latent": 8, "wide": 8, "narrow": 4, "blocks": 1}
    torch.save({"model_state_dict": build("resnet", **small).state_dict()}, tmp_path / "c.pth")
    options = [part for name, value in small.items() for part in ("--argument", f"{name}={value}")]
    command = [str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", "resnet", "--likelihood", "gaussian"]
    main([*command, "--radius", "28", *options])
    perturbations = load_perturbation_set(tmp_path / "set")
    assert (perturbations.likelihood, perturbations.image_shape) == ("gaussian", (3, 32, 32))


def test_the_set_of_lights_and_its_segmenter_are_imported(tmp_path):
    """The set at another resolution than it was trained at, the same latents: maps are pooled to their old sizes."""
    small = {"channels": [4, 4, 8], "latents": [2, 2, 2], "pool": [[16, 24], [8, 12], [4, 6]]}
    trained = build("unet", image_shape=(3, 16, 24), **small)
    torch.save({"model_state_dict": trained.state_dict()}, tmp_path / "c.pth")
    options = [part for name, value in small.items() for part in ("--argument", f"{name}={value}")]
    command = [str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", "unet", "--likelihood", "gaussian"]
    main([*command, *options, "--argument", "image_shape=[3,33,50]", "--radius", "17"])
    loaded = load_perturbation_set(tmp_path / "set")
    assert (loaded.image_shape, loaded.ball.shape, loaded.ball.radius) == ((3, 33, 50), (6,), 17)
    assert loaded.at(torch.rand(2, 3, 33, 50)).decode(torch.zeros(2, 6)).shape == (2, 3, 33, 50)
    model = build_classifier("segmentation_unet", channels=[4, 4])
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "m.pth")
    command = [str(tmp_path / "m.pth"), str(tmp_path / "model"), "--network", "segmentation_unet"]
    main([*command, "--argument", "channels=[4,4]"])
    assert load_model(tmp_path / "model")(torch.rand(1, 3, 20, 31)).shape == (1, 36, 20, 31)
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (described["image_shape"], described["classes"]) == ([3, 125, 187], 36)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_bad_files_stop_with_one_line_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where code in a file would leave its mark
    published(tmp_path / "c.pth")
    torch.save({"model_state_dict": {}, "x": Evil()}, tmp_path / "evil.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "bare.pth")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbered.pth")
    (tmp_path / "text.pth").write_text("weights")
    whole = {name: value.to(torch.int64) for name, value in build("mnist_conv").state_dict().items()}
    torch.save({"model_state_dict": whole}, tmp_path / "whole.pth")
    cases = [
        ("c.pth", "mnist_stn", "14", "is not a checkpoint of mnist_stn"),
        ("evil.pth", "mnist_conv", "14", "asks to run code"),
        ("other.pth", "mnist_conv", "14", "is neither a state dict nor a checkpoint with one"),
        ("numbered.pth", "mnist_conv", "14", "is neither a state dict nor a checkpoint with one"),
        ("text.pth", "mnist_conv", "14", "it is damaged, cut short, or no checkpoint"),
        ("whole.pth", "mnist_conv", "14", "give the weights before they were quantised"),
        ("bare.pth", "lenet5", None, "these are not the weights of lenet5"),
        ("missing.pth", "mnist_conv", "14", "no checkpoint at"),
        ("c.pth", "mnist_conv", "-1", "--radius must be positive and finite"),
    ]
    for file, network, radius, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main([
                str(tmp_path / file), str(tmp_path / "out"), "--network", network,
                *(["--data", "mnist"] if radius is None else ["--radius", radius]),
            ])  # fmt: skip
        printed = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in printed
        assert printed.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil-was-here").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = build("mnist_conv").state_dict()
    state["prior.conv1.bias"][0] = torch.nan
    torch.save({"model_state_dict": state}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="not finite"):
        import_checkpoint(tmp_path / "nan.pth", "mnist_conv", 1.0)


@pytest.mark.parametrize(
    ("name", "key", "prefix", "arguments"),
    [
        ("mnist_classifier", "model_state_dict", "", []),
        ("wide_resnet", "model_state_dict", "module.", ["depth=10", "width=1"]),
        ("lenet5", "model", "", ["image_shape=[1,32,32]", "mean=[0.2]", "std=[0.5]"]),
    ],
)
def test_classifiers_become_models(tmp_path, name, key, prefix, arguments):
    made = build_classifier(name, **OmegaConf.to_container(OmegaConf.from_dotlist(arguments)))
    own = {k: v for k, v in made.state_dict().items() if k not in ("0.mu", "0.std") or name == "wide_resnet"}
    if name == "lenet5":  # whose normalisation is not in its checkpoint
        own = {k.removeprefix("1."): v for k, v in own.items()}
    torch.save({key: {prefix + k: v for k, v in own.items()}, "epoch": 3}, tmp_path / "c.pth")
    options = [part for argument in arguments for part in ("--argument", argument)]
    main([str(tmp_path / "c.pth"), str(tmp_path / "m"), "--network", name, *options])
    model = load_model(tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    x = torch.rand(2, *stored["image_shape"])
    torch.testing.assert_close(model(x), made.eval()(x))
    assert stored["classes"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "lenet5", "--radius", "3"], "--radius and --calibrate are for perturbation sets"),
        (["--network", "mnist_fc"], "a set needs a radius: give --radius, or --calibrate data=…"),
        (["--network", "mnist_fc", "--calibrate", "data=nothing"], "--calibrate data=nothing"),
        (["--network", "wide_resnet", "--argument", "depth=11"], "6 n"),
        (["--network", "wide_resnet", "--argument", "colour=11"], "colour"),
        (["--network", "mnist_fc", "--radius", "3", "--norm", "linf"], "--norm is for flows, and mnist_fc is none"),
        (["--network", "glow", "--radius", "3", "--likelihood", "gaussian"], "--likelihood is for CVAEs"),
        (["--network", "mnist_fc", "--radius", "3", "--data", "mnist"], "--data is for classifiers"),
        (
            ["--network", "mnist_fc", "--radius", "3", "--image-shape", "1", "28", "28"],
            "--image-shape is for classifiers and flows",
        ),
        (["--network", "wide_resnet", "--argument", "depth=[10"], "--argument needs name=value"),
        (["--network", "unet", "--radius", "3", "--argument", "latents=[-1,1,1,1,1]"], "latents"),
        (
            ["--network", "mnist_fc", "--calibrate", "data=null"],
            "--calibrate data=null leaves no data: name some",
        ),
        (
            ["--network", "mnist_fc", "--calibrate", "data=scene_folder"],
            "--calibrate data=scene_folder: data.source.folder=… is missing",
        ),
        (["--export", "--network", "glow", "--radius", "3"], "not --network, --radius"),
    ],
)
def test_wrong_options_give_one_line(tmp_path, capsys, options, message):
    torch.save({"model_state_dict": {}}, tmp_path / "c.pth")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "c.pth"), str(tmp_path / "m"), *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("golden", "network", "wrapped"),
    [("glow", "glow", True), ("glow_mnist", "glow", True), ("freia", "fully_connected", False)],
)
def test_published_flows_become_sets_of_their_own_size(tmp_path, capsys, golden, network, wrapped):
    state = published_state(golden)
    parallel = {"model": {f"module.{name}": value for name, value in state.items()}}
    torch.save(parallel if wrapped else state, tmp_path / "f.pt")
    main([str(tmp_path / "f.pt"), str(tmp_path / "set"), "--network", network, "--radius", "0.5", "--norm", "linf"])
    said = capsys.readouterr().out
    assert "perturbation set" in said
    assert "--image-shape C H W states another" in said
    perturbations = load_perturbation_set(tmp_path / "set")
    assert (perturbations.ball.norm, perturbations.ball.radius) == ("linf", 0.5)
    x, y = wave((2, *perturbations.image_shape), 0.05, 1), torch.tensor([3, 7])
    np.testing.assert_allclose(perturbations.at(x, y).z.flatten(1), GOLDEN[f"{golden}.z"].reshape(2, -1), atol=2e-4)
    assert bool(perturbations.network.initialized)


def test_the_size_of_a_glows_images_can_be_said(tmp_path, capsys):
    """Its weights fit images of any size."""
    torch.save(published_state("glow"), tmp_path / "f.pt")
    options = [str(tmp_path / "f.pt"), str(tmp_path / "set"), "--network", "glow", "--radius", "1"]
    main([*options, "--image-shape", "3", "16", "64"])
    assert "is taken" not in capsys.readouterr().out
    assert load_perturbation_set(tmp_path / "set").image_shape == (3, 16, 64)


def test_other_weights_than_a_flows_are_refused(tmp_path, capsys):
    published(tmp_path / "c.pth")
    for network in ("glow", "fully_connected"):
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", network, "--radius", "1"])
        assert stopped.value.code == 2
        assert "is missing" in capsys.readouterr().err
        assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("flows.steps.0.coup.nn.in_conv.weight", (3,), "begins with no convolution"),
        ("flows.steps.99999.x", (1,), "has gaps below 99999"),
    ],
)
def test_what_a_flow_s_weights_claim_is_checked_before_it_is_built(tmp_path, name, shape, message):
    state = {"flows.steps.0.coup.nn.in_conv.weight": torch.zeros(8, 2, 3, 3), name: torch.zeros(shape)}
    torch.save({"model": state}, tmp_path / "f.pt")
    with pytest.raises(InputError, match=message):
        import_flow(tmp_path / "f.pt", "glow", 1.0)


WRAPPED = {  # of the flow project: the network, its arguments, and what its code standardises images with
    "mnist": ("lenet5", {}, [0.1307], [0.3081], []),
    "cifar100": ("resnet18", {"classes": 100}, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761], []),
    "cifar10": ("resnet20", {}, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], ["--data", "cifar10"]),
    "svhn": (
        "resnet18", {}, [0.4376821, 0.4437697, 0.47280442], [0.19803012, 0.20101562, 0.19703614], ["--data", "svhn"],
    ),
}  # fmt: skip


def wrapped(path, name, **arguments):
    network = build_classifier(name, **arguments).eval()
    torch.save({"model": {f"model.{key}": value for key, value in network.state_dict().items()}}, path)
    return network


@pytest.mark.parametrize("data", list(WRAPPED))
def test_classifiers_of_the_flow_paper_keep_the_standardisation_that_their_files_leave_out(tmp_path, data):
    name, arguments, mean, std, options = WRAPPED[data]
    network = wrapped(tmp_path / "c.pt", name, **arguments)
    options = options + [part for key, value in arguments.items() for part in ("--argument", f"{key}={value}")]
    main([str(tmp_path / "c.pt"), str(tmp_path / "m"), "--network", name, *options])
    x = torch.rand(2, len(mean), 28 if data == "mnist" else 32, 28 if data == "mnist" else 32)
    centred = (x - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m")(x), network(centred), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prefix", "options", "message"),
    [
        ("resnet18", "model.", [], r"give --data cifar10\|svhn, or --argument mean"),
        ("resnet18", "model.", ["--data", "mnist"], "does not fit a network for 3 channels"),
        ("resnet18", "", [], "nothing tells how the images of this resnet18"),
        ("lenet5", "", [], "nothing tells how the images of this lenet5"),
        ("preactresnet18", "", [], "nothing tells how the images of this preactresnet18"),
        ("preactresnet18", "", ["--data", "svhn"], "lenet5, resnet18, resnet20"),
        ("resnet18", "model.", ["--data", "svhn", "--argument", "mean=[0]"], "not given by mean and std"),
        (
            "wide_resnet",
            "",
            ["--argument", "depth=10", "--argument", "mean=[0.5]"],
            "mean is given alone: mean and std go together",
        ),
    ],
)
def test_a_normalisation_that_nobody_knows_is_refused(tmp_path, capsys, name, prefix, options, message):
    arguments = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    network = build_classifier(name, **arguments)
    torch.save({"model": {prefix + key: value for key, value in network.state_dict().items()}}, tmp_path / "c.pt")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "c.pt"), str(tmp_path / "m"), "--network", name, *options])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_mean_and_std_can_be_given(tmp_path):
    network = wrapped(tmp_path / "c.pt", "resnet20")
    options = ["--argument", "mean=[0.5,0.5,0.5]", "--argument", "std=[0.25,0.25,0.25]"]
    main([str(tmp_path / "c.pt"), str(tmp_path / "m"), "--network", "resnet20", *options])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m")(x), network((x - 0.5) / 0.25), rtol=1e-5, atol=1e-5)


def test_a_wide_resnet_published_without_normalisation_gets_none(tmp_path):
    network = build_classifier("wide_resnet", depth=10, width=1, mean=None, std=None).eval()
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "c.pth")
    options = ["--argument", "depth=10", "--argument", "width=1"]
    main([str(tmp_path / "c.pth"), str(tmp_path / "m"), "--network", "wide_resnet", *options])
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / "m")(x), network(x))


@pytest.mark.parametrize(("golden", "network"), [("glow", "glow"), ("freia", "fully_connected")])
def test_flows_are_exported_as_they_were_published(tmp_path, golden, network):
    state = published_state(golden)
    torch.save(state, tmp_path / "f.pt")
    main([str(tmp_path / "f.pt"), str(tmp_path / "set"), "--network", network, "--radius", "0.5"])
    main([str(tmp_path / "set"), str(tmp_path / "again.pt"), "--export"])
    found = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_sets_and_classifiers_are_exported_as_they_were_published(tmp_path, capsys):
    network = build("mnist_fc", hidden=16, latent=4)
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "c.pth")
    options = ["--argument", "hidden=16", "--argument", "latent=4", "--radius", "2"]
    main([str(tmp_path / "c.pth"), str(tmp_path / "set"), "--network", "mnist_fc", *options])
    main([str(tmp_path / "set"), str(tmp_path / "again.pth"), "--export"])
    found = torch.load(tmp_path / "again.pth", weights_only=True)["model_state_dict"]
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    main([str(tmp_path / "again.pth"), str(tmp_path / "set"), "--network", "mnist_fc", *options])
    lenet = build_classifier("lenet5", mean=[0.1], std=[0.3])
    folder = save_model(lenet, tmp_path / "model", image_shape=(1, 28, 28), classes=10, data="")
    main([str(folder), str(tmp_path / "lenet.pt"), "--export"])
    plain = torch.load(tmp_path / "lenet.pt", weights_only=True)["model_state_dict"]
    assert plain.keys() == build_classifier("lenet5").state_dict().keys()
    for arguments in (["nowhere", "x.pt", "--export"], [str(tmp_path / "c.pth"), "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "\n" not in capsys.readouterr().err.strip().splitlines()[-1]


RESNET = {"type": "cifar10_rectangle", "output_distribution": "gaussian", "latent_dim": 8, "nblocks": 1}
RESNET |= {"big_ch": 8, "small_ch": 4, "kernel_size": 3, "padding": 1}
UNET = {"type": "mi_unet", "output_distribution": "gaussian", "chs": [4, 4, 16], "latent_dim": [2, 2, 2]}
UNET |= {"dim": [16, 24], "bilinear": True, "pool": [[16, 24], [8, 12], [4, 6]]}
WIDE = {"type": "wideresnet", "layers": 10, "width_factor": 1, "n_classes": 7, "normalize": False}
GLOW = {"_target_": "flpert.models.Glow", "num_channels": 8, "num_levels": 1, "num_steps": 2, "in_channels": 3}
LENET = {"_target_": "flpert.models.LeNet", "standardize": True}
SVHN = {"name": "svhn", "dim": [3, 32, 32], "num_classes": 10, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
PUBLISHED = [
    ({"model": RESNET}, "resnet", {"latent": 8, "blocks": 1, "wide": 8, "narrow": 4}, "gaussian"),
    (
        {"model": UNET},
        "unet",
        {k: UNET[k] for k in ("pool",)} | {"channels": [4, 4, 8], "latents": [2, 2, 2], "image_shape": [3, 16, 24]},
        "gaussian",
    ),
    (
        {"model": {"type": "mnist_stn", "output_distribution": "bernoulli"}, "dataset": {"padding": 7}},
        "mnist_stn",
        {"image_shape": [1, 42, 42]},
        "bernoulli",
    ),
    (
        {"model": {"type": "mnist_conv", "output_distribution": "bernoulli"}, "dataset": {"padding": 0}},
        "mnist_conv",
        {"image_shape": [1, 28, 28]},
        "bernoulli",
    ),
    ({"model": WIDE}, "wide_resnet", {"depth": 10, "width": 1, "classes": 7, "mean": None, "std": None}, None),
    ({"model": {"type": "mnist_conv"}}, "mnist_classifier", {}, None),
    (
        {"model": GLOW, "dataset": {"dim": [3, 32, 32], "root": "${hydra:runtime.cwd}/data"}},
        "glow",
        {"image_shape": [3, 32, 32], "levels": 1, "steps": 2, "hidden": 8},
        None,
    ),
    (
        {"model": LENET, "dataset": SVHN},
        "lenet5",
        {"image_shape": [3, 32, 32], "classes": 10, "mean": SVHN["mean"], "std": SVHN["std"]},
        None,
    ),
]


@pytest.mark.parametrize(("content", "network", "arguments", "likelihood"), PUBLISHED)
def test_a_published_configuration_says_what_a_checkpoint_holds(tmp_path, content, network, arguments, likelihood):
    """As the two projects leave them: JSON in the folder above the checkpoints, Hydra's YAML beside them."""
    if "_target_" in content["model"]:
        file, checkpoint = tmp_path / ".hydra" / "config.yaml", tmp_path / "final_model.pt"
        file.parent.mkdir()
        OmegaConf.save(OmegaConf.create(content), file)
    else:
        file, checkpoint = tmp_path / "config.json", tmp_path / "checkpoints" / "checkpoint_best.pth"
        file.write_text(json.dumps(content))
    found = read_published(file)
    assert beside(checkpoint) == found
    assert found.file == file
    assert beside(checkpoint, "a network of another kind") is None
    assert (found.network, found.arguments, found.likelihood) == (network, arguments, likelihood)


def test_a_checkpoint_is_converted_by_its_configuration(tmp_path, capsys):
    small = {"latent": 8, "wide": 8, "narrow": 4, "blocks": 1}
    torch.save({"model_state_dict": build("resnet", **small).state_dict()}, tmp_path / "c.pth")
    command = [str(tmp_path / "c.pth"), str(tmp_path / "set"), "--radius", "28"]
    with pytest.raises(SystemExit):
        main(command)
    assert "no published configuration lies beside it" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model": RESNET}))
    main(command)
    perturbations = load_perturbation_set(tmp_path / "set")
    assert (perturbations.likelihood, perturbations.ball.shape) == ("gaussian", (8,))
    (tmp_path / "config2.json").write_text(json.dumps({"model": UNET}))  # of a neighbour
    main([*command, "--network", "resnet"])
    (tmp_path / "config2.json").unlink()
    bad = {
        "two": ("another.json", {"model": UNET}, "holds several configurations"),
        "contradicts": ("x.json", {"model": RESNET}, "--network mnist_fc contradicts"),
        "unknown": ("x.json", {"model": {"type": "vit"}}, "there is no network for the type vit"),
        "nothing": ("x.json", {"training": {}}, "it has no model"),
        "missing": ("x.json", {"model": {"type": "wideresnet"}}, "KeyError 'layers'"),
    }
    for name, (file, content, message) in bad.items():
        if file:
            (tmp_path / file).write_text(json.dumps(content))
        options = ["--config", str(tmp_path / file)] if file == "x.json" else []
        options += ["--network", "mnist_fc"] if name == "contradicts" else []
        with pytest.raises(SystemExit) as stopped:
            main([*command, *options])
        printed = capsys.readouterr().err
        assert (stopped.value.code, printed.count("\n")) == (2, 1), name
        assert message in printed
        (tmp_path / file).unlink() if file else None


def test_a_flow_of_another_size_is_told_by_its_permutations(tmp_path):
    network = build_flow("fully_connected", image_shape=[1, 5, 5], classes=0, blocks=2, hidden=8)
    folder = save_perturbation_set(FlowSet(network, "l2", 1.0), tmp_path / "own")
    main([str(folder), str(tmp_path / "f.pth"), "--export"])
    options = ["--network", "fully_connected", "--radius", "2", "--argument", "image_shape=[1,5,5]"]
    main([str(tmp_path / "f.pth"), str(tmp_path / "again"), *options])
    x = torch.rand(3, 1, 5, 5)
    assert torch.equal(load_perturbation_set(tmp_path / "again").at(x).z, load_perturbation_set(folder).at(x).z)


def test_what_a_published_layout_cannot_say_is_not_lost_in_silence(tmp_path, capsys):
    network = build_flow("fully_connected", image_shape=[1, 5, 5], classes=0, blocks=2, hidden=8, clamp=1.0)
    folder = save_perturbation_set(FlowSet(network, "l2", 1.0), tmp_path / "clamped")
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), str(tmp_path / "f.pth"), "--export"])
    assert stopped.value.code == 2
    assert "a flow with clamp=1, which the published layout cannot say" in capsys.readouterr().err
    assert not (tmp_path / "f.pth").exists()
    network = build("mnist_fc", image_shape=[1, 5, 5], hidden=16, latent=4)
    part = CVAESet(network, "bernoulli", 1.0).restrict([0, 2])
    folder = save_perturbation_set(part, tmp_path / "part")
    main([str(folder), str(tmp_path / "c.pth"), "--export"])
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert "is restricted to 2 of its latents, which the published layout" in said


def test_a_folder_of_another_sort_is_not_replaced(tmp_path):
    network = build("mnist_fc", image_shape=[1, 5, 5], hidden=16, latent=4)
    folder = save_perturbation_set(CVAESet(network, "bernoulli", 1.0), tmp_path / "set")
    with pytest.raises(InputError, match="set holds something other than a model: name a new folder"):
        save_model(build_classifier("lenet5"), folder, image_shape=(1, 28, 28), classes=10, data="")
    assert save_perturbation_set(CVAESet(network, "bernoulli", 2.0), folder) == folder
    assert load_perturbation_set(folder).ball.radius == 2
    other = tmp_path / "theirs"  # as other libraries name their files
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"weights")
    for content in ('{"model_type": "vit"}', "[]", "{"):
        (other / "config.json").write_text(content)
        with pytest.raises(InputError, match="holds something other than a perturbation set"):
            save_perturbation_set(CVAESet(network, "bernoulli", 1.0), other)
    assert (other / "model.safetensors").read_bytes() == b"weights"


def test_constants_that_the_checkpoint_contradicts_are_refused(tmp_path, capsys):
    network = build_classifier("wide_resnet", depth=10, width=1, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2])
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "c.pth")
    options = ["--network", "wide_resnet", "--argument", "depth=10", "--argument", "width=1", "--argument"]
    command = [str(tmp_path / "c.pth"), str(tmp_path / "m"), *options, "std=[0.2,0.2,0.2]", "--argument"]
    with pytest.raises(SystemExit):
        main([*command, "mean=[0.5,0.5,0.5]"])
    assert "contradicts the checkpoint, whose weights hold [0.5, 0.4, 0.3]" in capsys.readouterr().err
    main([*command, "mean=[0.5,0.4,0.3]"])
    assert load_model(tmp_path / "m").description["arguments"]["mean"] == [0.5, 0.4, 0.3]


def test_what_was_never_published_is_not_exported_as_if_it_were(tmp_path, capsys):
    model = build_classifier("pooled_cnn", image_shape=[1, 28, 28], width=4)
    folder = save_model(model, tmp_path / "cnn", image_shape=(1, 28, 28), classes=10, data="")
    with pytest.raises(SystemExit):
        main([str(folder), str(tmp_path / "cnn.pt"), "--export"])
    assert "holds a network pooled_cnn, which was never published in this layout" in capsys.readouterr().err
    constants = {"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}
    model = build_classifier("segmentation_unet", channels=[4, 4], **constants)
    folder = save_model(model, tmp_path / "m", image_shape=(3, 20, 30), classes=36, data="")
    main([str(folder), str(tmp_path / "m.pt"), "--export"])
    assert "do it before, with mean [0.1, 0.1, 0.1] and std [0.5, 0.5, 0.5]" in capsys.readouterr().err
    written = torch.load(tmp_path / "m.pt", weights_only=True)["model_state_dict"]
    assert written.keys() == build_classifier("segmentation_unet", channels=[4, 4]).state_dict().keys()


def test_what_a_configuration_says_of_a_classifier_s_images_is_kept_and_contradicted_by_name(tmp_path, capsys):
    network = build_classifier("resnet18", channels=3)
    torch.save({"model": network.state_dict()}, tmp_path / "best.pt")
    (tmp_path / ".hydra").mkdir()
    dataset = {"name": "cifar10", "dim": [3, 64, 64], "num_classes": 10}
    content = {"model": {"_target_": "src.models.ResNet18"}, "dataset": dataset}

    def convert(*options, **changed):
        OmegaConf.save({**content, "dataset": {**dataset, **changed}}, tmp_path / ".hydra" / "config.yaml")
        main([str(tmp_path / "best.pt"), str(tmp_path / "m"), *options])
        return json.loads((tmp_path / "m" / "config.json").read_text())

    assert convert()["image_shape"] == [3, 64, 64]
    assert convert("--image-shape", "3", "40", "48")["image_shape"] == [3, 40, 48]
    own = {"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}
    assert convert(**own)["network"]["arguments"]["mean"] == [0.1, 0.1, 0.1]
    named = convert("--data", "svhn", **own)["network"]["arguments"]["mean"]  # what is said here wins
    assert named == pytest.approx([0.4376821, 0.4437697, 0.47280442])
    for options, changed, message in (
        (["--data", "svhn"], {}, "which says cifar10"),
        ([], {"name": "tinyimagenet"}, "names the data tinyimagenet, of which no mean"),
        (["--image-shape", "3", "0", "4"], {}, "--image-shape needs three positive numbers"),
        (["--image-shape", "1", "32", "32"], {}, "is for images of 3 channels, not of shape [1, 32, 32]"),
    ):
        with pytest.raises(SystemExit):
            convert(*options, **changed)
        assert message in capsys.readouterr().err


def test_weights_without_values_are_refused_and_long_lists_of_names_are_cut(tmp_path):
    state = build("mnist_fc").state_dict()
    name = next(iter(state))
    torch.save({"model_state_dict": {**state, name: state[name].to_sparse()}}, tmp_path / "sparse.pth")
    with pytest.raises(InputError, match="holds weights that are sparse or have no values"):
        import_checkpoint(tmp_path / "sparse.pth", "mnist_fc", 1.0)
    network = build_classifier("wide_resnet", depth=16, width=1)
    torch.save({f"_orig_mod.{key}": value for key, value in network.state_dict().items()}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="is not a checkpoint of wide_resnet") as refused:
        import_classifier(tmp_path / "c.pth", "wide_resnet", depth=16, width=1)
    assert len(str(refused.value)) < 1000
