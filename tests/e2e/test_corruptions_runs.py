"""Learning a set of corruptions, training over it, and measuring by kind and severity, as a user does."""

import json

import pytest
import torch

import latentrobust as lr
from latentrobust import load_model, load_perturbation_set
from latentrobust.data.__main__ import main as data_main
from latentrobust.data.corruptions.grid import CorruptionGrid
from latentrobust.errors import InputError
from latentrobust.tasks.corruptions import GridAccuracy

KINDS = ["fog", "contrast", "defocus_blur", "pixelate"]
PHOTOS = [
    "data.source.train=120", "data.source.test=20", "data.train_size=96", "data.validation=8", "data.test_size=5",
    "data.batch_size=16", f"data.kinds=[{','.join(KINDS)}]", "trainer.accelerator=cpu", "print_config=false",
    "callbacks.progress=null", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1",
]  # fmt: skip
TWIN = ["experiment=cifar10c/model", "size=small"]
SET = [
    *PHOTOS, "learner.network.latent=6", "learner.network.wide=8", "learner.network.narrow=4",
    "learner.network.blocks=1", "evaluation.quality.settings.steps=2", "evaluation.quality.detail=2",
]  # fmt: skip
MODEL = [
    *PHOTOS, "task.attack_every_n_epochs=1", "task.attack_examples=4", "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2",
]  # fmt: skip
GRID = [
    "evaluation/accuracy=cifar10c_grid", "evaluation.accuracy.corruptions.grid.kinds=[fog,snow]",
    "evaluation.accuracy.corruptions.grid.severities=[1,5]", "evaluation.accuracy.corruptions.grid.examples=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def learned(run):
    return run("set", "experiment=cifar10c/set/paper", "size=small", "report=true", *SET)


def test_a_set_of_corruptions_has_norms_and_pictures_by_kind(learned):
    metrics = json.loads((learned.folder / "metrics.json").read_text())
    for kind in KINDS:
        assert metrics[f"latent_norm/{kind}/max"] <= metrics["latent_norm/max"]
        assert metrics[f"latent_norm/{kind}/p25"] <= metrics[f"latent_norm/{kind}/p75"]
    rows = (learned.folder / "per_example.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 4
    for figure in ("latent_norms", "between_kinds", "samples", "pairs"):
        assert (learned.folder / "figures" / f"{figure}.png").is_file()
    assert "20 test pairs. Corrupted test images: generated." in (learned.folder / "report.html").read_text()
    loaded = load_perturbation_set(learned.folder)
    assert loaded.image_shape == (3, 32, 32)
    assert loaded.likelihood == "gaussian"


@pytest.mark.parametrize("pairing", ["original_perturbed", "perturbed_only"])
def test_other_pairings_are_learned(run, pairing):
    metrics = run(
        pairing,
        "experiment=cifar10c/set/paper",
        "size=small",
        f"data.pairing={pairing}",
        *SET,
        "trainer.limit_train_batches=2",
    ).metrics
    assert 0 < metrics["quality/pgd_ae"] <= metrics["quality/encoder_ae"]
    assert ("latent_norm/original/max" in metrics) == (pairing == "original_perturbed")


@pytest.fixture(scope="module")
def augmented(run, learned):
    return run(
        "augmented",
        *TWIN,
        "method=data_augmentation",
        f"from={learned.folder}",
        *MODEL,
        *GRID,
        "report=true",
    )


def test_a_model_is_measured_by_kind_and_severity(augmented):
    metrics = json.loads((augmented.folder / "metrics.json").read_text())
    kinds = [metrics[f"accuracy/perturbed/{kind}"] for kind in KINDS]
    assert metrics["accuracy/perturbed"] == pytest.approx(sum(kinds) / 4)
    held_out = [metrics[f"accuracy/ood/{kind}"] for kind in ("gaussian_blur", "spatter", "saturate")]
    assert metrics["accuracy/ood"] == pytest.approx(sum(held_out) / 3)
    for kind in ("fog", "snow"):
        each = [metrics[f"accuracy/corruption/{kind}/severity={severity}"] for severity in (1, 5)]
        assert metrics[f"accuracy/corruption/{kind}"] == pytest.approx(sum(each) / 2)
    errors = [1 - metrics[f"accuracy/corruption/{kind}"] for kind in ("fog", "snow")]
    assert metrics["mce"] == pytest.approx(sum(errors) / 2)
    assert "robust/p50" in metrics
    for figure in ("accuracy_by_kind", "accuracy_by_severity", "robust_accuracy", "adversarial"):
        assert (augmented.folder / "figures" / f"{figure}.png").is_file()
    rows = (augmented.folder / "per_example.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 4
    assert {"ood/spatter_5", "corruption/fog_1", "corruption/snow_5"} <= set(rows[0].split(","))
    clean = rows[0].split(",").index("clean")
    assert sum(bool(row.split(",")[clean]) for row in rows[1:]) == 5  # an image is measured once, its kinds each


def test_assess_measures_the_same_corruptions(augmented):
    """With the data module as the command; from bare images (exact in 8 bits) where they are the data's own."""
    data = augmented.data
    seed = data.split_seed
    held_out = CorruptionGrid(("gaussian_blur", "spatter", "saturate"), (5,), seed=seed, examples=40)
    grid = CorruptionGrid(("fog", "snow"), (1, 5), seed=seed, examples=4)
    grids = {"held_out": GridAccuracy(held_out), "corruptions": GridAccuracy(grid)}
    model = load_model(augmented.folder)
    measured = lr.assess(model, data=data, robust=None, **grids)
    wanted = {key: value for key, value in augmented.metrics.items() if key.startswith(("accuracy/", "mce"))}
    assert {key: value for key, value in measured.metrics.items() if key in wanted} == pytest.approx(wanted)
    images = torch.rand(6, 1, 32, 32)
    with pytest.raises(InputError, match="corruptions are for RGB images"):
        lr.assess(torch.nn.Flatten(), data=(images, torch.zeros(6).long()), robust=None, **grids)
    y = data.pairs("test", torch.arange(5)).labels
    x = data.pairs("test", torch.arange(5)).x
    bare = lr.assess(model, data=(x, y), robust=None, corruptions=GridAccuracy(grid))
    assert {key for key in wanted if "corruption" in key} <= set(bare.metrics)


def test_a_stored_model_is_compared_with_a_baseline_on_files(augmented, learned, run, tmp_path):
    folder = tmp_path / "cifar10c" / "CIFAR-10-C"
    command = ["corrupt", str(folder), "--data", "photos", "--split", "test", "--kinds", "held_out", "snow", *KINDS]
    data_main([*command, "--severities", "1", "5", "--layout", "archive"])
    # The same images: the command takes the default number of photos.
    photos = [override for override in MODEL if "source.t" not in override and "robust" not in override]
    again = run(
        "again", *TWIN, "method=data_augmentation", f"from={learned.folder}",
        *photos, *GRID, "model=trained", f"model.path={augmented.folder}", "evaluation.robust=null",
        f"paths.data_dir={tmp_path}", f"+data.root={tmp_path}", "data.test_images=archive",
        f"evaluation.accuracy.corruptions.baseline={augmented.folder}", "report=true", entry="evaluate",
    )  # fmt: skip
    metrics = again.metrics
    # The files hold what was generated for the first run: of other test images, the first five are the same.
    for name in ("mce", "accuracy/corruption/fog", "accuracy/perturbed/fog", "accuracy/ood"):
        assert metrics[name] == augmented.metrics[name]
    assert metrics["mce/relative"] == 1
    assert "robust/p50" not in metrics
    report = (again.folder / "report.html").read_text()
    assert "Corrupted test images: read from files that were generated (seed 0)." in report


def test_smoothing_certifies_at_a_percentile_of_the_norms(run, learned):
    metrics = run(
        "smoothed", *TWIN, "method=smoothing", f"from={learned.folder}", *MODEL,
        "evaluation.certify.n=100", "evaluation.certify.n0=10", "evaluation.certify.examples=2",
    ).metrics  # fmt: skip
    assert any(key.startswith("certified/eps=") for key in metrics)


def test_adversarial_training_on_corruptions_runs(run, learned):
    found = run(
        "adversarial",
        "experiment=cifar10c/model",
        "method=adversarial",
        "size=small",
        f"from={learned.folder}",
        *MODEL,
    )
    assert torch.isfinite(torch.tensor(found.metrics["fit_loss"]))
    assert found.metrics["robust/p25"] >= found.metrics["robust/p75"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.accuracy.corruptions.baseline=nowhere"], "cannot read nowhere"),
        (["evaluation.accuracy.corruptions.grid.kinds=[fgo]"], "did you mean fog"),
        (["data.kinds=[snwo]"], "did you mean snow"),
        (["data.test_images=archive"], "no data root is named"),
        (["evaluation.accuracy.corruptions.grid.severities=[]"], "at least one corruption and one severity"),
        (["data.pairing=perturbed_only"], "data.pairing=centred"),
    ],
)
def test_bad_values_are_named_before_any_work(run, learned, overrides, message):
    arguments = [
        "experiment=cifar10c/model",
        "method=standard",
        "size=small",
        f"from={learned.folder}",
        *MODEL,
        *GRID,
    ]
    with pytest.raises(Exception, match=message) as raised:
        run("bad", *arguments, *overrides)
    assert isinstance(raised.value, InputError) or isinstance(raised.value.__cause__, InputError)
