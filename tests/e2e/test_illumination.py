"""The setting of lights as a user runs it: the chain on rendered scenes, somebody's own scenes, other resolutions."""

import json

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentrobust import load_model, load_perturbation_set
from latentrobust.errors import InputError

TWIN = ["experiment=multi_illumination/model", "size=small"]
TINY = [
    "data.source.height=16", "data.source.width=24", "data.source.train=12", "data.source.validation=2",
    "data.source.test=3", "data.source.lights=4", "data.source.supersample=1", "data.targets=3", "data.batch_size=4",
    "trainer.accelerator=cpu", "print_config=false", "callbacks.progress=null",
]  # fmt: skip
NETWORK = [
    "learner.network.image_shape=[3,16,24]", "learner.network.channels=[4,6,8]", "learner.network.latents=[2,2,2]",
    "learner.network.pool=null", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1",
    "evaluation.quality.settings.steps=2", "evaluation.quality.settings.likelihood_draws=2",
]  # fmt: skip
FEW = [
    "evaluation.quality.detail=2", "model.channels=[4,8,8]", "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2",
    "evaluation.certify.n=100", "evaluation.certify.examples=2",
]  # fmt: skip
MODELS = ("data_augmentation", "adversarial", "smoothing")
EPOCHS = [f"models.{name}.trainer.{key}=1" for name in MODELS for key in ("max_epochs", "check_val_every_n_epoch")]


@pytest.fixture(scope="module")
def chain(run):
    return run("chain", "experiment=synthetic_illumination/chain", "report=true", *TINY, *NETWORK, *FEW, *EPOCHS)


def pixels_by_hand(chain, name):
    """Share of the pixels that count that a stored model has right, a mean over test scenes."""
    data = chain.modules[-1].trainer.datamodule
    batch = data.pairs("test", torch.arange(data.count("test")))
    with torch.no_grad():
        right = load_model(chain.folder / "models" / name)(batch.x).argmax(1) == batch.labels
    counts = batch.labels >= 0
    return float(((right & counts).flatten(1).sum(1) / counts.flatten(1).sum(1)).mean())


def test_the_chain_learns_trains_attacks_certifies_and_reports(chain):
    metrics = json.loads((chain.folder / "metrics.json").read_text())
    assert 0 < metrics["quality/pgd_ae"] <= metrics["quality/encoder_ae"]
    for name in MODELS:
        assert metrics[f"{name}/accuracy/clean"] == pytest.approx(pixels_by_hand(chain, name), abs=1e-5)
        # A mean over the classes that are there, of which few are learned in one epoch.
        assert metrics[f"{name}/miou/perturbed"] <= metrics[f"{name}/accuracy/perturbed"]
        assert metrics[f"{name}/robust/full"] <= metrics[f"{name}/robust/p50"] <= 1
        assert {f"{name}/accuracy/perturbed/light_0", f"{name}/accuracy/perturbed/light_2"} <= set(metrics)
    assert metrics["smoothing/certified_image/p25"] <= metrics["smoothing/certified/p25"]
    assert "adversarial/certified/p25" not in metrics
    figures = {path.stem for path in (chain.folder / "figures").iterdir()}
    assert {"samples", "between_kinds", "certified_pixels", *(f"adversarial_{name}" for name in MODELS)} <= figures
    report = (chain.folder / "report.html").read_text()
    assert "all pixels of an image at once" in report
    assert "Rendered scenes, not photographs." in report
    assert "lowering the share of right pixels" in report
    assert "No certificate can reach farther than its draws allow" in report


def test_what_would_move_pixels_is_refused_before_anything_is_learned(run):
    moving = "+evaluation.accuracy.ood.turned._target_=latentrobust.transforms.affine.RotationTranslationScale"
    with pytest.raises(InputError, match=r"evaluation\.accuracy\.ood\.turned moves pixels"):
        run("moving", "experiment=synthetic_illumination/chain", *TINY, *NETWORK, *FEW, *EPOCHS, moving)


def test_a_stored_segmenter_is_found_again_and_measured_the_same(run, chain):
    model = load_model(chain.folder / "models" / "smoothing")
    assert model(torch.rand(1, 3, 16, 24)).shape == (1, 36, 16, 24)
    again = run(
        "again", *TWIN, "method=smoothing", *TINY, f"from={chain.folder}",
        "model=trained", f"model.path={chain.folder}/models/smoothing", "evaluation.robust.radii=[p50,p75,full]",
        "evaluation/robust=paper",
        "evaluation.robust.attacks.pgd.steps=2", "evaluation.certify.n=100", "evaluation.certify.examples=2",
        "evaluation.certify.radii=[p25,p50]", "evaluation.certify.target=p50", "evaluation.robust.examples=30",
        entry="evaluate",
    ).metrics  # fmt: skip
    for key in ("accuracy/clean", "miou/perturbed", "robust/full", "certified/p25", "certified_image/p50"):
        assert again[key] == pytest.approx(chain.metrics[f"smoothing/{key}"], abs=2e-3)


def test_a_row_with_a_fixed_light_is_trained_over_the_set(run, chain):
    finished = run(
        "fixed", *TWIN, "method=adversarial", *TINY, f"from={chain.folder}",
        "data.train_light=1", "data.ignore_other=true", "model.channels=[4,8,8]", "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1", "task.attack_every_n_epochs=1", "task.attack_examples=2",
        "evaluation/robust=paper",
        "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.examples=2", "objective=trades",
        "logger=tensorboard",
    )  # fmt: skip
    metrics = finished.metrics
    board = EventAccumulator(str(finished.folder / "tensorboard"), {"images": 0})
    board.Reload()
    assert len(board.Images("val/adversarial")) == 1  # what the validation attack found, as maps
    assert "accuracy_known/clean" not in metrics  # nothing else counts
    assert 0 <= metrics["robust/full"] <= metrics["robust/p75"] <= metrics["robust/p50"] <= 1


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Grey pictures of five rooms under three lights, of an odd size."""
    folder = tmp_path_factory.mktemp("rooms")
    generator = np.random.default_rng(0)
    for room in range(5):
        (folder / f"room{room}").mkdir()
        picture = generator.integers(60, 200, (17, 27))
        for light, factor in (("dim", 0.5), ("left", np.linspace(1.2, 0.4, 27)), ("right", np.linspace(0.4, 1.2, 27))):
            pixels = (picture * factor).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"room{room}" / f"{light}.png")
    return folder


OWN = [
    "experiment=multi_illumination/set", "data=scene_folder", "data.batch_size=2", "learner.network.channels=[4,6,8]",
    "learner.network.latents=[2,2,2]", "evaluation.quality.detail=2", "trainer.accelerator=cpu", "print_config=false",
    "callbacks.progress=null", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
    "evaluation.quality.settings.steps=2", "evaluation.quality.settings.likelihood_draws=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(run, rooms):
    return run(
        "small", *OWN, f"data.source.folder={rooms}", "data.source.size=[9,14]", f"data.source.cache={rooms}/.small",
        "learner.network.image_shape=[1,9,14]", "learner.network.pool=[[9,14],[4,7],[2,3]]",
    )  # fmt: skip


def test_somebodys_own_grey_scenes_of_an_odd_size(small):
    assert small.perturbations.image_shape == (1, 9, 14)
    assert {"latent_norm/dim/max", "latent_norm/right/max"} <= set(small.metrics)
    assert small.metrics["quality/pgd_ae"] > 0


def test_fine_tuning_begins_with_the_weights_of_another_resolution(run, rooms, small):
    larger = [
        *OWN, f"data.source.folder={rooms}", "learner.network.image_shape=[1,17,27]",
        "learner.network.pool=[[9,14],[4,7],[2,3]]", f"learner.init_from={small.folder}",
    ]  # fmt: skip
    tuned = run("tuned", *larger, "learner.optimizer.lr=1e-12", "learner.optimizer.weight_decay=0")
    assert tuned.perturbations.image_shape == (1, 17, 27)
    before = load_perturbation_set(small.folder).network.state_dict()
    after = tuned.perturbations.network.state_dict()
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    with pytest.raises(InstantiationException, match=r"learner.init_from=.* holds the weights of another network"):
        run("wrong", *larger, "learner.network.latents=[2,2,3]")


def test_a_resumed_run_does_not_need_the_one_it_began_with(run, rooms, small):
    resumed = run(
        "resumed", *OWN, f"data.source.folder={rooms}", "data.source.size=[9,14]", f"data.source.cache={rooms}/.small",
        "learner.network.image_shape=[1,9,14]", "learner.network.pool=[[9,14],[4,7],[2,3]]", "trainer.max_epochs=3",
        "learner.init_from=nowhere", "learner.channels_last=true", f"ckpt_path={small.folder}/checkpoints/last.ckpt",
    )  # fmt: skip
    assert resumed.metrics["epochs"] == 3
    weight = resumed.modules[0].network.generator.inc.double_conv[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_models_of_materials_need_maps(run, rooms, small):
    with pytest.raises(InputError, match="no maps of classes"):
        run(
            "maps", "experiment=multi_illumination/model", "method=data_augmentation", "data=scene_folder",
            "data.batch_size=2",
            f"data.source.folder={rooms}", "data.source.size=[9,14]", f"data.source.cache={rooms}/.small",
            f"from={small.folder}", "model.image_channels=1", "print_config=false",
        )  # fmt: skip


def test_a_task_that_does_not_fit_the_labels_is_refused(run, chain):
    row = [
        "experiment=multi_illumination/model",
        "method=adversarial",
        "size=small",
        *TINY,
        f"from={chain.folder}",
    ]
    with pytest.raises(InputError, match="choose task=segmentation"):
        run("task", *row, "task=classification", "task.select_on=clean")
    with pytest.raises(InstantiationException, match=r"objective=consistency compares"):
        run("views", *row, "objective=consistency")
    with pytest.raises(InputError, match="RGB images one by one"):
        run("grid", *row, "evaluation/accuracy=cifar10c_grid")
    with pytest.raises(InstantiationException, match=r"use data.joint instead"):
        run("moved", *row, "image_augmentation@task.augmentation=common")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_the_chain_in_bf16_on_a_gpu(run, resident):
    tiny = [part for part in TINY if not part.startswith("trainer.accelerator")]
    metrics = run(
        f"gpu_{resident}", "experiment=synthetic_illumination/chain", "trainer=gpu_bf16", *tiny, *NETWORK, *FEW,
        *EPOCHS, f"data.resident={resident}", "learner.channels_last=true", "learner.optimizer.fused=true",
    ).metrics  # fmt: skip
    assert 0 < metrics["quality/pgd_ae"] <= metrics["quality/encoder_ae"] + 1e-3
    assert 0 <= metrics["smoothing/certified_image/p25"] <= metrics["smoothing/certified/p25"]
