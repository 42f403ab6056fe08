"""One call for anybody's model, and certificates that survive an interruption."""

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latentrobust
from latentrobust import CertifySettings, RobustSettings, assess, wrap
from latentrobust.batch import Batch
from latentrobust.data.corruptions.grid import CorruptionGrid
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets import CVAESet, PixelBall
from latentrobust.perturbation_sets.coverage import CoverageSettings
from latentrobust.perturbation_sets.judgement import judged
from latentrobust.perturbation_sets.quality import QualitySettings
from latentrobust.robustness import assessor as module
from latentrobust.robustness.assessment import Assessment, Facts
from latentrobust.robustness.attacks import APGD, PGD, RandomSearch
from latentrobust.robustness.criteria import PixelAccuracy
from latentrobust.robustness.journal import fingerprint
from latentrobust.robustness.results import Entry, flat
from latentrobust.robustness.statistics import GroupSequential, noise_level
from latentrobust.tasks.corruptions import GridAccuracy
from latentrobust.tasks.quality import QualityTest
from latentrobust.transforms.noise import UniformNoise

from .conftest import SHAPE, Linear, ball


def data(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return x, Linear()(x).argmax(1)


class Threshold(nn.Module):
    """Two classes for each pixel, on the sides of one half."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


def test_everything_about_a_model_of_pixels():
    """The worst case in an ℓ∞ ball takes each pixel alone; pixels without a label do not count."""
    x = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0.5).long()
    y[:, 0, 0] = -1
    y[0, 1] = -100
    y[1] = 1 - y[1].clamp_min(0)  # all of an image wrong
    y[2] = -1  # nothing of an image counts
    robust = RobustSettings(attacks={"pgd": PGD(steps=10, relative_step=0.3, loss="margin")}, radii=[0.05, 0.2])
    certify = CertifySettings(radii=[0.05, 0.1], sigma=0.1, n=300, n0=20, alpha=0.01, adaptive=False)
    report = assess(Threshold(), ball("linf", 0.2), (x, y, x), robust=robust, certify=certify)
    counted, right = y >= 0, (x[:, 0] > 0.5).long() == y
    assert report.metrics["accuracy/clean"] == pytest.approx(38 / 39)
    assert report.metrics["accuracy/perturbed"] == report.metrics["accuracy/clean"]
    kept = torch.arange(40) != 2
    alone = assess(Threshold(), ball("linf", 0.2), (x[kept], y[kept]), robust=None)
    assert report.metrics["loss/clean"] == pytest.approx(alone.metrics["loss/clean"])
    for radius in (0.05, 0.2):
        stays = right & ((x[:, 0] - 0.5).abs() >= radius)
        expected = (stays.flatten(1).sum(1) / counted.flatten(1).sum(1)).nanmean().item()
        assert report.metrics[f"robust/eps={radius:g}"] == pytest.approx(expected, abs=1e-6)
    table = report.per_example["certified"]
    assert np.isnan(table["right"]).tolist() == [number == 2 for number in range(40)]
    assert np.nanmax(table["right"] + table["abstained"]) <= 1 + 1e-9
    for radius in (0.05, 0.1):
        each, together = (report.metrics[f"{name}/eps={radius:g}"] for name in ("certified", "certified_image"))
        assert 0 < together <= each <= report.metrics["smoothed/clean"]
        assert each == pytest.approx(np.nanmean(table[f"certified/eps={radius:g}"]))
    for statement in ("certified", "certified_image"):
        curve = [np.nanmean(table[f"curve/{statement}/{number}"]) for number in range(33)]
        assert curve == sorted(curve, reverse=True)
    with pytest.raises(InputError, match="classes, H, W"):
        assess(Linear(), ball(), (x.double(), y), robust=None)


def test_accuracy_on_known_classes_is_what_it_would_be_without_the_other():
    """A mean over images, of their pixels that count, on clean images and on all pairs."""
    generator = torch.Generator().manual_seed(5)
    x, x_tilde = (torch.rand(12, *SHAPE, generator=generator) for _ in range(2))
    y = torch.randint(-1, 3, (12, *SHAPE[1:]), generator=generator).clamp_max(1)
    y[0] = 1  # nothing of an image is known
    found = []
    for labels, other in ((y, 1), (y.where(y != 1, -1), None)):
        facts = Facts(
            ("a", "b"), True, True, 2, other, first_kinds=torch.zeros(6, dtype=torch.int64), examples=6, pairs=12
        )
        assessment = Assessment(Threshold(), None, facts)
        batch = Batch.of(x, labels, x_tilde)
        index, kind = torch.arange(6).repeat(2), torch.arange(2).repeat_interleave(6)
        assessment.update(dataclasses.replace(batch, index=index, kind=kind))
        found.append(assessment.compute().metrics)
    for half in ("clean", "perturbed"):
        assert found[0][f"accuracy_known/{half}"] == pytest.approx(found[1][f"accuracy/{half}"])
        assert found[0][f"accuracy/{half}"] != pytest.approx(found[1][f"accuracy/{half}"])


def test_adaptive_certificates_of_pixels_have_one_statement_alone():
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0.5).long()
    certify = CertifySettings(radii=[0.05], sigma=0.1, n=300, n0=20, alpha=0.01)
    metrics = assess(Threshold(), ball("l2", 0.2), (x, y), robust=None, certify=certify).metrics
    assert "certified/eps=0.05" in metrics
    assert not [name for name in metrics if name.startswith("certified_image")]


CERTIFY = CertifySettings(radii=[0.05, 0.1], n=200, n0=20, alpha=0.01, examples=12)


def test_everything_about_a_linear_model():
    x, y = data()
    model, perturbations = Linear(), ball("l2", 0.2)
    robust = RobustSettings(
        attacks={"pgd": PGD(steps=20, start="zero"), "random": RandomSearch(draws=5, refinements=5)},
        radii=[0.1, "full", 0.05],
        examples=50,
    )
    report = assess(model, perturbations, (x, y, x + 0.01), robust=robust, certify=CERTIFY)
    distance = (model(x)[:, 0] - model(x)[:, 1]).abs() / (model.weight[0] - model.weight[1]).norm()
    for radius in (0.05, 0.1, 0.2):
        expected = (distance[:50] >= radius).double().mean().item()
        assert report.metrics[f"robust/eps={radius:g}"] == pytest.approx(expected)
        assert report.metrics[f"robust/pgd/eps={radius:g}"] == pytest.approx(expected)
        assert report.metrics[f"robust/random/eps={radius:g}"] >= expected
    assert report.metrics["robust/full"] == report.metrics["robust/eps=0.2"]
    assert report.metrics["accuracy/clean"] == 1
    assert report.metrics["accuracy/perturbed"] == (model(x + 0.01).argmax(1) == y).double().mean().item()
    table = report.per_example["robust"]
    fooled = np.isfinite(table["smallest_fooling_norm"])
    assert (table["smallest_fooling_norm"][fooled] >= distance[:50].detach().numpy()[fooled] - 1e-6).all()
    certified = report.per_example["certified"]
    assert len(certified["index"]) == 12
    assert (certified["radius"] <= distance[:12].detach().numpy() * 1.3).all()
    sigma = noise_level(0.1, procedure=GroupSequential(200, 0.01))
    assert report.metrics["smoothed/sigma"] == pytest.approx(sigma)
    assert report.metrics["certified/eps=0.1"] <= report.metrics["certified/eps=0.05"]
    assert json.loads(report.to_json())["robust/full"] == report.metrics["robust/full"]
    assert "| robust/full (first 50 of 60) |" in report.to_markdown()
    assert "| accuracy/clean |" in report.to_markdown()
    assert "does not change for any latent offset within the certified ℓ2 radius" in report.to_markdown()


def test_batches_and_one_tensor_give_the_same():
    x, y = data(30)
    robust = RobustSettings(attacks={"apgd": APGD(steps=5)}, radii=[0.05])
    whole = assess(Linear(), ball(), (x, y), robust=robust, certify=CERTIFY)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    parts = assess(Linear(), ball(), loader, robust=robust, certify=CERTIFY)
    assert whole.metrics == parts.metrics
    for name, table in whole.per_example.items():
        for column, values in table.items():
            np.testing.assert_allclose(values, parts.per_example[name][column], err_msg=f"{name}/{column}")


def test_a_models_mode_and_weights_come_back(small_set):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small_set.latent_norms = {"p25": 1.0, "p50": 1.5, "p75": 2.0, "mean": 1.5}
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    report = assess(model, small_set, (x, y), robust=RobustSettings(attacks={"pgd": PGD(steps=2)}))
    assert {"robust/p25", "robust/p50", "robust/p75", "robust/full", "robust/eps=1.5"} <= set(report.metrics)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Interrupting(Linear):
    """Stops after so many calls, as an interrupt would."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().forward(x)


def certify(model, journal):
    return assess(model, ball(), data(30), robust=None, certify=CertifySettings(
        radii=[0.1], n=200, n0=20, alpha=0.01, examples=None, batch=400), journal=journal)  # fmt: skip


def test_an_interrupted_certification_goes_on_where_it_stopped(tmp_path):
    whole = certify(Linear(), None)
    journal = tmp_path / "run" / "certificates.jsonl"
    with pytest.raises(KeyboardInterrupt):
        certify(Interrupting(60), journal)
    kept = len(journal.read_text().splitlines()) - 1
    assert 0 < kept < 30
    counted = Interrupting(10_000)
    resumed = certify(counted, journal)
    assert resumed.metrics == whole.metrics
    assert len(journal.read_text().splitlines()) == 31
    fresh = Interrupting(10_000)
    certify(fresh, None)
    assert counted.calls > fresh.calls  # some of the work was done before
    again = Interrupting(3)  # the accuracy, and two questions by which the model is recognised
    assert certify(again, journal).metrics == whole.metrics


def test_damaged_lines_are_certified_again_and_said_so(tmp_path):
    journal = tmp_path / "certificates.jsonl"
    whole = certify(Linear(), journal)
    lines = journal.read_text().splitlines()
    lines[4] = lines[4].replace('"p_lower": 0.', '"p_lower": 1.')
    lines[7] = lines[7][:20]
    lines[-1] = lines[-1][:-3]
    journal.write_text("\n".join(lines))
    with pytest.warns(RobustnessWarning, match="3 of 31 lines are damaged; their examples are certified again"):
        resumed = certify(Linear(), journal)
    assert resumed.metrics == whole.metrics
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify(Linear(), journal)  # mended
    journal.write_bytes(b"\x00\xff garbage")
    with pytest.warns(RobustnessWarning, match="damaged"):
        assert certify(Linear(), journal).metrics == whole.metrics
    assert (tmp_path / "certificates.jsonl.damaged").read_bytes() == b"\x00\xff garbage"


def test_a_file_that_is_no_journal_is_not_lost(tmp_path):
    table = tmp_path / "results.csv"
    for content in ("a,b\n1,2\n3,4\n", "c\n"):
        table.write_text(content)
        with pytest.warns(RobustnessWarning, match=r"lines are damaged \(they are in results\.csv\.damaged1? now\)"):
            certify(Linear(), table)
    assert (tmp_path / "results.csv.damaged").read_text() == "a,b\n1,2\n3,4\n"
    assert (tmp_path / "results.csv.damaged1").read_text() == "c\n"


def test_certificates_of_other_settings_or_weights_are_not_mixed(tmp_path):
    journal = tmp_path / "certificates.jsonl"
    certify(Linear(), journal)
    before = journal.read_bytes()
    with pytest.raises(InputError, match="weights="):
        certify(Linear(seed=3), journal)
    with pytest.raises(InputError, match="holds certificates with radii="):
        assess(Linear(), ball(), data(), robust=None, certify=CERTIFY, journal=journal)
    assert journal.read_bytes() == before


def test_models_of_equal_weights_behind_other_means_have_other_fingerprints():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    marks = {fingerprint(wrap(linear, mean=[mean], std=[0.5])) for mean in (0.4, 0.5)}
    marks |= {fingerprint(wrap(linear, classes=[1, 0])), fingerprint(wrap(linear, outputs="probabilities"))}
    assert len(marks) == 4


class Negated(Linear):
    """The weights and the name of `Linear`; the forward pass has changed."""

    def forward(self, x):
        return -super().forward(x)

    def __repr__(self):
        return repr(Linear())


def test_certificates_of_a_model_that_answers_otherwise_are_not_taken_over(tmp_path):
    journal = tmp_path / "certificates.jsonl"
    certify(Linear(), journal)
    before = journal.read_bytes()
    with pytest.raises(InputError, match="answers otherwise"):
        certify(Negated(), journal)
    assert journal.read_bytes() == before


def test_certificates_of_another_version_are_not_taken_over(tmp_path, monkeypatch):
    journal = tmp_path / "certificates.jsonl"
    certify(Linear(), journal)
    monkeypatch.setattr("latentrobust.__version__", "0.0.0")
    with pytest.raises(InputError, match="holds certificates with version="):
        certify(Linear(), journal)


def test_progress_tells_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(module.Progress, "INTERVAL", 0.0)
    certify(Linear(), None)
    assert "certified 8 of 30, about 0:" in capsys.readouterr().err


def test_attacks_tell_the_time_left_within_a_batch(monkeypatch, capsys):
    monkeypatch.setattr(module.Progress, "INTERVAL", 0.0)
    robust = RobustSettings(attacks={"pgd": PGD(steps=2, chunk=5), "apgd": APGD(steps=2)}, radii=[0.5, 1.0])
    x, y = data(10)
    assess(Linear(), ball("l2", 1.0), (x, y), robust=robust)
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("attacked")]
    # Of 60 searches, with radius 0: PGD of two halves at three radii each, then APGD of all ten; the last is the end.
    assert said == [f"attacked {share}%" for share in (8, 17, 25, 33, 42, 50, 67, 83)]


def test_a_noise_level_that_is_too_low_is_warned_about():
    settings = CertifySettings(sigma=0.84413, radii=[2.7], n=10_000, alpha=0.001)
    with pytest.warns(RobustnessWarning, match=r"cannot certify the radii 2\.7 \(needs 0\.84\d+\).*adaptive"):
        module.Assessor(Linear(), ball("l2", 3.0), certify=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = CertifySettings(sigma=0.84413, radii=[2.7], adaptive=False)
        module.Assessor(Linear(), ball("l2", 3.0), certify=fixed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assess(Linear(), ball(), data(), robust=RobustSettings(radii=["p25"])), "it stores no latent norms"),
        (lambda: assess(Linear(), ball(), []), "no data"),
        (lambda: assess(Linear(), ball(), [(torch.rand(3, *SHAPE),)]), "data must be"),
        (lambda: assess(Linear(), ball(), (data()[0], data(5)[1])), "data must be"),
        (lambda: assess(Linear(), ball(), (data()[0], data()[1] + 5)), "labels must be 0 to 1"),
        (lambda: RobustSettings(radii=[]), "at least one"),
        (lambda: RobustSettings(attacks={}), "at least one"),
        (lambda: CertifySettings(n=3), "can certify nothing"),
        (
            lambda: assess(Linear(), ball(), data(), robust=RobustSettings(radii=[math.nan])),
            "entry 0 is a number at least 0",
        ),
    ],
)
def test_bad_input_gives_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_package_offers_it():
    assert latentrobust.assess is assess
    assert set(latentrobust.__all__) >= {"assess", "load_model", "SmoothedModel", "noise_level"}


def test_names_of_radii_in_an_linf_set_mean_the_ball_around_it():
    """Certificates are ℓ2: to cover an ℓ∞ ball of 12 dimensions takes √12 times its radius."""
    x, y = data(20)
    report = assess(
        Linear(), ball("linf", 0.02), (x, y), robust=RobustSettings(attacks={"pgd": PGD(start="zero")}),
        certify=CertifySettings(n=200, n0=20, alpha=0.01, examples=None),
    )  # fmt: skip
    around = 0.02 * math.sqrt(12)
    assert report.metrics["certified/full"] == report.metrics[f"certified/eps={around:g}"]
    assert report.metrics["smoothed/sigma"] == pytest.approx(noise_level(around, procedure=GroupSequential(200, 0.01)))
    certified = report.per_example["certified"]["radius"] >= around * (1 - 1e-9)
    stays = report.per_example["robust"]["pgd/eps=0.02"]
    assert stays[certified].all()


def test_certificates_belong_to_an_image_not_to_a_position(tmp_path):
    journal = tmp_path / "certificates.jsonl"
    x, y = data(12)
    settings = {"robust": None, "certify": CERTIFY, "journal": journal}
    assess(Linear(), ball(), (x, y), **settings)
    turned = assess(Linear(), ball(), (x.flip(0), y.flip(0)), **settings)
    fresh = assess(Linear(), ball(), (x.flip(0), y.flip(0)), robust=None, certify=CERTIFY)
    assert turned.metrics == fresh.metrics
    relabelled = assess(Linear(), ball(), (x.flip(0), 1 - y.flip(0)), **settings)
    assert relabelled.metrics["smoothed/clean"] == 0
    with pytest.raises(InputError, match="set="):
        assess(Linear(), ball("l2", 0.7), (x, y), **settings)


def test_a_journal_without_its_first_line_is_started_over(tmp_path):
    journal = tmp_path / "certificates.jsonl"
    whole = certify(Linear(), journal)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[1:]))
    counted = Interrupting(10_000)
    with pytest.warns(RobustnessWarning, match="damaged"):
        assert certify(counted, journal).metrics == whole.metrics
    fresh = Interrupting(10_000)
    certify(fresh, None)
    assert counted.calls == fresh.calls - 2  # questions by which the model is recognised
    journal.write_text("".join(lines)[:-1])  # a last line that lost its end
    with pytest.warns(RobustnessWarning, match="1 of 31 lines are damaged"):
        assert certify(Linear(), journal).metrics == whole.metrics
    assert len(journal.read_text().splitlines()) == 31


def test_everything_is_measured_by_default_whatever_brings_the_data():
    x, y = data(600)
    robust = RobustSettings(attacks={"pgd": PGD(steps=2)}, radii=[0.1])
    whole = assess(Linear(), data=(x, y), perturbations=ball(), robust=robust)
    assert whole.metrics["robust/examples"] == 600
    assert "first" not in whole.to_markdown()
    dataset = TensorDataset(x, y)
    before = torch.get_rng_state()
    for same in ((x.numpy(), y.numpy()), DataLoader(dataset, batch_size=70, generator=torch.Generator()), dataset):
        assert assess(Linear(), data=same, perturbations=ball(), robust=robust).metrics == whole.metrics
    assert torch.equal(torch.get_rng_state(), before)  # a loader of ours draws nothing from it


def test_images_that_do_not_fit_are_measured_in_parts(caplog):
    class Cramped(nn.Module):
        most = 100

        def forward(self, x):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("too many")
            return torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1)

    x, y = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    whole = assess(Cramped(), None, (x, y)).metrics
    Cramped.most = 4
    assert assess(Cramped(), None, (x, y)).metrics == whole
    said = {record.getMessage() for record in caplog.records if "do not fit into memory" in record.getMessage()}
    assert said == {"9 images at once do not fit into memory: going on with 4 (data.batch_size)"}
    Cramped.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        assess(Cramped(), None, (x, y))


def test_a_model_is_measured_without_a_set_too():
    x, y = data(30)
    found = assess(Linear(), data=(x, y), ood={"noise": UniformNoise(0.3)})
    assert found.metrics["accuracy/clean"] == 1
    assert found.metrics["accuracy/ood"] == found.metrics["accuracy/ood/noise"] < 1
    assert not any(name.startswith("robust") for name in found.metrics)


def test_swapped_arguments_are_named():
    x, y = data(5)
    for wrong in (
        lambda: assess(Linear(), (x, y), ball()),
        lambda: assess(Linear(), perturbations=(x, y), data=ball()),
    ):
        with pytest.raises(InputError, match=r"swapped: assess\(model, data=…, perturbations=…\)"):
            wrong()
    with pytest.raises(InputError, match="model is a perturbation set"):
        assess(ball(), data=(x, y), perturbations=ball())
    with pytest.raises(InputError, match="no data to assess"):
        assess(Linear(), perturbations=ball())
    with pytest.raises(InputError, match="x and x_tilde must have the same shape"):
        assess(Linear(), data=(x, y, x[..., :1]))


def test_radii_that_print_alike_stay_two():
    x, y = data(40)
    robust = RobustSettings(attacks={"pgd": PGD(steps=2)}, radii=[0.1000001, 0.1000004])
    certify = CertifySettings(sigma=0.2, radii=[0.1000001, 0.1000004], n=20, alpha=0.01)
    found = assess(Linear(), data=(x, y), perturbations=ball(), robust=robust, certify=certify)
    for measure in ("robust", "certified"):
        names = [name for name in found.metrics if name.startswith(f"{measure}/eps=0.1")]
        assert names == [f"{measure}/eps=0.1000001", f"{measure}/eps=0.1000004"]
    assert {"pgd/eps=0.1000001", "pgd/eps=0.1000004", "pgd/eps=0"} <= set(found.per_example["robust"])


def test_a_radius_with_two_names_has_both():
    """The smallest radius that contains enough pairs is often a percentile: ``robust/full`` must not be lost."""
    x, y = data(20)
    perturbations = ball("l2", 0.2)
    perturbations.latent_norms = {"p25": 0.1, "p50": 0.15, "p75": 0.2}
    robust = RobustSettings(attacks={"pgd": PGD(steps=2, relative_step=0.5)})
    certify = CertifySettings(sigma=0.2, n=20, alpha=0.01, radii=["p75", "full", 0.2])
    metrics = assess(Linear(), data=(x, y), perturbations=perturbations, robust=robust, certify=certify).metrics
    for measure in ("robust", "certified"):
        assert metrics[f"{measure}/full"] == metrics[f"{measure}/p75"] == metrics[f"{measure}/eps=0.2"]
    assert {"robust/p25", "robust/p50"} <= set(metrics)


def test_results_are_asked_by_number_and_by_name():
    x, y = data(40)
    perturbations = ball("linf", 0.2)
    perturbations.latent_norms = {"p50": 0.1, "max": 0.2}
    robust = RobustSettings({"pgd": PGD(steps=3), "random": RandomSearch(draws=5, refinements=5)}, examples=30)
    certify = CertifySettings(radii=["p50"], n=200, alpha=0.01, examples=5)
    found = assess(Linear(), perturbations, (x, y), robust=robust, certify=certify)
    assert found.value("robust", 0.1) == found.value("robust", "p50") == found.metrics["robust/p50"]
    assert found.value("robust", "full", attack="pgd") == found.metrics["robust/pgd/eps=0.2"]
    assert found.value("robust", 0.2) <= min(found.value("robust", 0.2, attack=name) for name in ("pgd", "random"))
    assert found.value("accuracy/clean") == found.metrics["accuracy/clean"]
    (name,) = [entry for entry in found.entries if entry.measure == "certified" and "p50" in entry.names]
    assert found.value("certified", "p50") == found.value("certified", name.radius) == name.value
    with pytest.raises(KeyError, match=r"robust of the worst case at 0.3 was not measured; there is pgd at 0.0"):
        found.value("robust", 0.3)
    with pytest.raises(KeyError, match="nothing of that name"):
        found.value("miou/clean")


def test_radii_that_print_alike_stay_two_entries():
    radii = [0.1, 0.1 + 1e-9]
    entries = [Entry("robust", 0.5 - place, radius=radius) for place, radius in enumerate(radii)]
    names = flat([*entries, Entry("certified", 1.0, radius=0.1)])
    assert len(names) == 3
    assert names["certified/eps=0.1"] == 1.0
    assert [float(name.partition("=")[2]) for name in names if name.startswith("robust")] == pytest.approx(radii, abs=0)


def test_what_is_wrong_with_the_data_is_said_of_the_data():
    x, y = data(8)
    table = latentrobust.pairs(x.float().numpy(), x.float().numpy())
    with pytest.raises(InputError, match=r"give data=pairs.as_data\(\)"):
        assess(Linear(), data=table, perturbations=ball())
    with pytest.raises(InputError, match="x_tilde holds NaN or infinity"):
        assess(Linear(), data=(x, y, x * math.nan), perturbations=ball(), robust=None)
    with pytest.raises(InputError, match="images hold NaN or infinity"):
        assess(Linear(), data=(x * math.nan, y), perturbations=ball(), robust=None)
    with pytest.raises(InputError, match="x must be an array of numbers, got one of object"):
        assess(Linear(), data=(x.numpy().astype(object), y), perturbations=ball())
    with pytest.warns(RobustnessWarning, match=r"x_tilde should lie in \[0, 1\]"):
        assess(Linear(), data=(x, y, x + 1), perturbations=ball(), robust=None)


def several_pairs(**columns):
    """Data of ten images, six to be tested, with four perturbed versions each: three are of the other class."""
    x = torch.linspace(0.2, 0.4, 10)[:, None, None, None].expand(10, 1, 8, 8).repeat_interleave(4, 0)
    amounts = torch.tensor([0.0, 0.4, 0.45, 0.5]).repeat(10)[:, None, None, None]
    return latentrobust.pairs(x, x + amounts, torch.zeros(40, dtype=torch.int64), **columns).as_data(2, 6)


def bright(images):
    """Logits of two classes: dark and bright."""
    level = images.mean((1, 2, 3))
    return torch.stack([0.5 - level, level - 0.5], 1)


@pytest.mark.parametrize("kind", [None, ["a", "b", "c", "d"] * 10])
def test_accuracy_on_perturbed_images_is_of_all_pairs(kind):
    """Also where the perturbed versions of an image have no names."""
    report = assess(bright, data=several_pairs(kind=kind), robust=None)
    assert report.metrics["accuracy/clean"] == 1
    assert report.metrics["accuracy/perturbed"] == pytest.approx(0.25)


def test_coverage_does_not_depend_on_how_pairs_are_batched(small_set):
    x = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x_tilde = (x + torch.linspace(0, 0.5, 70)[:, None, None, None]).clamp(max=1)  # the first ones hardly perturbed
    y = torch.arange(70) % 2
    found = []
    for batches in ((x, y, x_tilde), *(DataLoader(TensorDataset(x, y, x_tilde), batch_size=size) for size in (9, 64))):
        metrics = assess(bright, small_set, batches, robust=None, coverage=CoverageSettings(steps=2)).metrics
        found.append({name: value for name, value in metrics.items() if name.startswith("coverage/")})
    assert found[0]["coverage/pairs"] == 70
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_coverage_of_a_data_module_is_measured_as_the_command_does(small_set, monkeypatch):
    module = several_pairs(kind=["a", "b", "c", "d"] * 10)
    metrics = assess(bright, small_set, data=module, robust=None, coverage=CoverageSettings()).metrics
    # Its weights are random, and would be called collapsed; a wide tolerance is contained by whatever there is.
    for said, tolerance in (("its coverages say nothing", 0.9), ("Collapsed: the nearest point", None)):
        settings = CoverageSettings(tolerance=tolerance)
        test = QualityTest(small_set, QualitySettings(steps=2, likelihood_draws=0), coverage=settings)
        trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        judge = judged if tolerance is None else lambda metrics: None
        monkeypatch.setattr("latentrobust.tasks.quality.judged", judge)
        with pytest.warns(RobustnessWarning, match=f"about the set: {said}"):
            trainer.test(test, datamodule=module, verbose=False)
    ours = {name: value for name, value in test.metrics.items() if name.startswith("coverage/")}
    assert {name: metrics[name] for name in ours} == pytest.approx(ours)


def test_a_set_in_training_mode_is_measured_as_it_will_be_used():
    """Its batch norm neither sees the batch nor learns from it, and the mode comes back."""
    torch.manual_seed(0)
    network = build("structured", image_shape=[1, 8, 8], latent=4)
    network.recognition = Normed(network.recognition)
    perturbations = CVAESet(network, "gaussian", 2.0)
    x, y = torch.rand(24, 1, 8, 8), torch.arange(24) % 2
    found = []
    for training in (False, True):
        perturbations.train(training)
        before = {name: value.clone() for name, value in perturbations.state_dict().items()}
        settings = CoverageSettings(steps=0, tolerance=0.01)
        found.append(assess(bright, perturbations, (x, y, x), robust=None, coverage=settings).metrics)
        QualityTest(perturbations, QualitySettings())
        assert perturbations.training == training
        assert all(torch.equal(value, before[name]) for name, value in perturbations.state_dict().items())
    assert found[0] == found[1]


class Normed(nn.Module):
    """A recognition network with a batch norm in front."""

    def __init__(self, inner):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(1), inner

    def forward(self, x, x_tilde):
        return self.inner(self.norm(x), x_tilde)


@pytest.mark.parametrize(("shift", "is_coarse"), [(0.02, True), (0.5, False)])
def test_a_tolerance_as_wide_as_the_perturbations_is_said_to_say_nothing(small_set, shift, is_coarse):
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    settings = CoverageSettings(steps=2, tolerance=0.01)
    found = assess(bright, small_set, (x, torch.arange(12) % 2, x + shift), robust=None, coverage=settings)
    said = rf"its coverages say nothing, since they are to within 0.01, .* \({shift**2:.2g}\)"
    assert any(re.search(said, line) for line in found.warnings) == is_coarse
    assert set(found.per_example["coverage"]) == {"index", "kind", "covering_radius"}


class Shades(nn.Module):
    """One class per pixel: whether it is bright."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


def test_the_margin_of_maps_is_counted_from_one_threshold():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 1, 6, 6, generator=generator)
    y = (x[:, 0] > 0.5).long()
    attacks = {"all": PGD(steps=3), "some": PGD(steps=3, criterion=PixelAccuracy(0.3))}
    found = assess(
        Shades(), PixelBall((1, 6, 6), "linf", 0.05), (x, y), robust=RobustSettings(attacks, radii=[0.05])
    )  # fmt: skip
    table = found.per_example["robust"]
    worst = np.minimum(table["all/eps=0.05"], table["some/eps=0.05"])
    np.testing.assert_allclose(table["margin"], worst, atol=1e-6)
    assert worst.min() < 1


def test_maps_in_which_no_pixel_counts_are_refused():
    x = torch.rand(3, 1, 6, 6)
    with pytest.raises(InputError, match="no pixel of any label counts"):
        assess(Shades(), None, (x, torch.full((3, 6, 6), -1)))


@pytest.mark.parametrize("part", ["held_out", "corruptions"])
def test_an_archive_s_images_are_not_those_that_are_given(part):
    data = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for where in ("archive", "auto", "generated"):
        asked = {part: GridAccuracy(CorruptionGrid(["fog"], [1], where, "nowhere"))}
        if where == "archive":
            with pytest.raises(
                InputError, match="test_images=archive: an archive has the corrupted versions of a data"
            ):
                assess(model, data=data, robust=None, **asked)
        else:
            assert any("fog" in name for name in assess(model, data=data, robust=None, **asked).metrics)


def test_each_process_measures_what_it_was_given(tmp_path):
    """In a group of processes, as in somebody's own training: none waits for another one, nothing is counted twice."""
    x, y = data(5)
    settings = {
        "robust": RobustSettings(attacks={"pgd": PGD(steps=2)}, radii=[0.05]),
        "certify": CertifySettings(sigma=0.05, radii=[0.02], n=50, n0=10, alpha=0.01),
        "coverage": CoverageSettings(steps=1),
    }
    alone = assess(Linear(), ball(), (x, y, x), **settings)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patched:
            # One more process there is said to be, which would be waited for.
            patched.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
            patched.setattr(torch.distributed, "all_gather", lambda *_, **__: pytest.fail("waits for another process"))
            patched.setattr(torch.distributed, "barrier", lambda *_, **__: pytest.fail("waits for another process"))
            again = assess(Linear(), ball(), (x, y, x), **settings)
    finally:
        torch.distributed.destroy_process_group()
    assert again.metrics == alone.metrics
    assert again.metrics["robust/examples"] == 5
    assert again.per_example["accuracy"]["index"].tolist() == [0, 1, 2, 3, 4]


def test_examples_in_groups_are_counted_as_groups(tmp_path):
    """Twelve objects of ten images each: an interval for 120 images would be three times too narrow."""
    x = torch.rand(160, *SHAPE)
    split = ["train"] * 20 + ["validation"] * 20 + ["test"] * 120
    own = latentrobust.pairs(x, x * 0.9, y=np.arange(160) % 2, group=np.arange(160) // 10, split=split)
    robust = RobustSettings(attacks={"pgd": PGD(steps=1)}, radii=[0.1], examples=15)
    results = assess(Linear(), ball("l2", 1.0), own.as_data(), robust=robust)
    assert (results.metrics["accuracy/groups"], results.metrics["robust/groups"]) == (12, 2)
    assert len(np.unique(results.per_example["accuracy"]["group"])) == 12
    alone = assess(Linear(), ball("l2", 1.0), (x, torch.arange(160) % 2), robust=robust)
    assert "accuracy/groups" not in alone.metrics
    assert "group" not in alone.per_example["accuracy"]
