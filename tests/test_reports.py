"""What reports say: they judge, count what they know, and tell how sure it is."""

import csv
import io
import json
import math
import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console
from scipy.stats import norm
from torch import nn

from latentrobust import RobustSettings, assess
from latentrobust.batch import Batch
from latentrobust.networks import flows
from latentrobust.perturbation_sets import FlowSet, PixelBall
from latentrobust.perturbation_sets.coverage import Coverage
from latentrobust.perturbation_sets.judgement import judged
from latentrobust.perturbation_sets.likelihood import squared_error
from latentrobust.perturbation_sets.quality import pgd_error
from latentrobust.reporting import aggregate, figures, tables
from latentrobust.reporting.density import _least, curve, interpolations
from latentrobust.reporting.figures import image_rows, write_figure
from latentrobust.reporting.finished import find_runs
from latentrobust.reporting.models import _certified_titles, _count, _flattered, _promise, _robust_titles, _verdicts
from latentrobust.reporting.outcome import curves_of
from latentrobust.reporting.quality import _coverage, _verdict, usage
from latentrobust.reporting.summary import in_short
from latentrobust.reporting.terminal import print_changes, print_quality
from latentrobust.reporting.training import read_curves
from latentrobust.robustness.assessor import CertifySettings
from latentrobust.robustness.attacks import APGD, PGD
from latentrobust.robustness.criteria import Classification, PixelAccuracy
from latentrobust.robustness.results import Entry
from latentrobust.runs import train
from latentrobust.trained_for import trained_for

from .conftest import compose_in_process
from .e2e.test_models import TINY_MODEL
from .test_report import run as leave_run

ADVERSARIAL = {"_target_": "latentrobust.robustness.training.Adversarial", "radius": 2.0, "norm": None}
CURRICULUM = {"_target_": "latentrobust.robustness.training.Curriculum", "perturbation": ADVERSARIAL}
METRICS = {"radius": 2.0, "latent_norm/max": 1.9, "quality/no_change": 0.02}


@pytest.mark.parametrize(
    ("pgd", "over", "says"),
    [
        (0.002, 0.3, None),
        (0.028, 0.3, "Unusable"),  # explains −40 %
        (0.019, 0.3, "Unusable"),
        (0.0150, 0.0152, "Collapsed"),
        (0.028, 0.0281, "Collapsed"),
        (math.nan, 0.3, "Unusable"),
    ],
)
def test_a_set_of_no_use_is_called_so(pgd, over, says):
    metrics = {**METRICS, "quality/pgd_ae": pgd, "quality/over_ae": over}
    assert (judged(metrics) is None) == (says is None)
    assert judged(METRICS) is None  # nothing was measured
    for bits, known in ((7.9, True), (8.0, False), (math.nan, False)):
        assert (judged({"bits_per_dim": bits}) is None) == known
    assert _verdict(metrics).startswith(says or "The nearest point of the set explains 90.0 %")


def test_robust_accuracies_of_pgd_alone_are_labelled(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    data = (x, model(x).argmax(1))
    alone = RobustSettings(attacks={"pgd": PGD(steps=30)}, radii=["full"])
    both = RobustSettings(attacks={"pgd": PGD(steps=30), "apgd": APGD(steps=5)}, radii=[0.1])
    texts = [
        assess(model, PixelBall((1, 4, 4), "linf", 0.1), data, robust=each).to_markdown() for each in (alone, both)
    ]
    assert "| robust/eps=0.1 (PGD only) |" in texts[0]
    assert "| robust/full (PGD only) |" in texts[0]
    assert "| robust/examples |" in texts[0]
    assert "PGD only" not in texts[1]
    for name, target in (("one", "PGD"), ("two", "latent_autoattack")):
        resolved = {"evaluation.robust.attacks.it._target_": f"latentrobust.robustness.attacks.{target}", "name": name}
        leave_run(tmp_path, name, {"robust/full": 0.5, "accuracy/clean": 0.9}, resolved=resolved)
    runs, _ = find_runs(tmp_path)
    text = tables.markdown(aggregate.summarise(runs, ["*"]))
    assert text.count("50.00 (PGD only)") == 1
    assert text.count("50.00") == 2
    assert "90.00 (PGD only)" not in text


def test_the_centre_is_always_attacked_too():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(20, 1, 4, 4)
    report = assess(
        model, PixelBall((1, 4, 4), "linf", 0.1), (x, model(x).argmax(1)),
        robust=RobustSettings(attacks={"pgd": PGD(steps=30)}, radii=[0.1]),
    )  # fmt: skip
    assert report.metrics["robust/eps=0"] == report.metrics["accuracy/clean"] == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A model trained for half of the set's radius."""
    folder = tmp_path_factory.mktemp("report") / "run"
    own = ["training_perturbation.radius=0.05", "print_config=false", f"paths.output_dir={folder}"]
    return train(compose_in_process("train", *TINY_MODEL, *own))


def rows(html):
    return {row[0]: row[1] for row in re.findall(r"<tr><td>([^<]*)</td><td[^>]*>([^<]*)</td>", html)}


def test_a_models_report_leads_with_its_radius_and_says_how_sure_it_is(finished):
    html = (finished.folder / "report.html").read_text()
    table = rows(html)
    robust = [title for title in table if "ε = " in title]
    assert robust[0] == "worst case that PGD alone finds within ε = 0.05, trained for"
    assert robust[1].startswith("at the set&#39;s centre, ε = 0")
    assert "0.0 % " not in table["clean accuracy"]
    assert re.fullmatch(r"[\d.]+ % \(\d+–\d+\)", table["clean accuracy"])
    assert re.search(
        r"in the worst case that PGD alone finds within ε = 0\.05, the radius that it was trained for", html
    )
    certified = [title for title in table if title.startswith("certified at")]
    assert certified
    assert all("% of the set&#39;s" in title for title in certified)
    assert "PGD alone often overstates robustness" in html
    assert finished.metrics["robust/eps=0.05"] >= 0


def test_a_report_says_how_much_pgd_alone_flatters():
    both = {"pgd": PGD(), "apgd": APGD()}
    measured = SimpleNamespace(
        robust=RobustSettings(attacks=both),
        entries=[Entry("robust", 0.62, "pgd", 2.0), Entry("robust", 0.4, "apgd", 2.0)],
    )
    assert _flattered(measured, 0.4, 2.0) == " (PGD alone would have said 62.0 %)"
    assert not _flattered(measured, 0.62, 2.0)
    for attacks in ({"pgd": PGD()}, {"apgd": APGD()}):
        measured.robust = RobustSettings(attacks=attacks)
        assert not _flattered(measured, 0.4, 2.0)


def test_a_report_shows_command_date_warnings_and_curves(finished):
    html = (finished.folder / "report.html").read_text()
    assert re.search(r"latentrobust [\d.]+, 20\d\d-\d\d-\d\d \d\d:\d\d", html)
    assert "<h2>Training</h2>" in html
    assert (finished.folder / "figures" / "training.png").is_file()
    stored = json.loads((finished.folder / "metrics.json").read_text())["warnings"]
    assert stored == finished.warnings
    for message in stored:
        assert message in unescape(html)
    curves = read_curves(finished.folder / "logs" / "metrics.csv")
    logged = list(csv.DictReader((finished.folder / "logs" / "metrics.csv").open()))
    assert [value for _, value in curves["train/loss"]] == [float(r["train/loss"]) for r in logged if r["train/loss"]]
    assert [epoch for epoch, _ in curves["train/loss"]] == list(range(1, len(curves["train/loss"]) + 1))


@pytest.mark.parametrize(
    ("training", "radius"),
    [
        (None, None),
        ({"_target_": "latentrobust.robustness.training.Unperturbed"}, None),
        ({"_target_": "latentrobust.robustness.training.Adversarial", "radius": None, "norm": None}, "full"),
        ({"_target_": "latentrobust.robustness.training.Adversarial", "radius": "p75"}, "p75"),
        ({"_target_": "latentrobust.robustness.training.Adversarial", "radius": 2.0, "norm": "linf"}, None),
        ({"_target_": "latentrobust.robustness.training.Gaussian", "target": "p50", "sigma": None}, "p50"),
        ({"_target_": "latentrobust.robustness.training.Gaussian", "target": "p50", "sigma": 0.05}, None),
        (
            {
                "_target_": "latentrobust.robustness.training.Schedule",
                "stages": {
                    "a": {"_target_": "latentrobust.robustness.training.PairedData"},
                    "b": {"_target_": "latentrobust.robustness.training.Sample", "radius": 1.5},
                },
            },
            1.5,
        ),
        (CURRICULUM | {"values": [0, 1]}, 2.0),
        (CURRICULUM | {"values": [0, 0.25]}, 0.5),
        (CURRICULUM | {"values": [0, 0.25], "perturbation": ADVERSARIAL | {"radius": "p75"}}, None),
        ({"_target_": "x.Joint", "parts": {"a": {"_target_": "x.PairedData"}, "b": ADVERSARIAL}}, 2.0),
        ({"_target_": "x.Joint", "parts": {"a": ADVERSARIAL, "b": ADVERSARIAL | {"radius": "p50"}}}, None),
    ],
)
def test_the_radius_that_a_model_was_trained_for(training, radius):
    assert trained_for(training) == radius
    assert trained_for(training, "l2") == radius


def test_a_radius_in_the_norm_of_the_set_is_one_that_a_model_was_trained_for():
    training = ADVERSARIAL | {"radius": "p50", "norm": "linf"}
    assert trained_for(training, "linf") == "p50"
    assert trained_for(CURRICULUM | {"values": [0, 1], "perturbation": training}, "linf") == "p50"
    assert trained_for({"_target_": "x.Joint", "parts": {"a": training}}, "linf") == "p50"
    assert trained_for(training, "l2") is None


def test_the_pgd_error_does_not_rise_with_the_radius(small_set):
    """Started from what the smaller ball gave, whatever the search does in the larger one."""
    x, x_tilde = torch.rand(40, 1, 8, 8), torch.rand(40, 1, 8, 8)
    s = small_set.at(x)
    u = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 2, "relative_step": 0.7}
    found, alone = None, []
    errors = []
    for radius in (0.2, 0.5, 1.0, 2.0, 4.0):
        ball = small_set.ball.with_radius(radius)
        alone.append(pgd_error(s, x_tilde, u, ball, squared_error, **settings).values)
        found = pgd_error(s, x_tilde, u, ball, squared_error, **settings, also=None if found is None else found.offsets)
        errors.append(found.values)
    assert (torch.stack(alone).diff(dim=0) > 1e-7).any()  # else the next line says little
    assert (torch.stack(errors).diff(dim=0) <= 1e-7).all()


@pytest.mark.parametrize("name", ["$", "a$b$", "$\\frac{", "_^{}$$", "100 %"])
def test_names_are_shown_as_they_are(tmp_path, name):
    """Matplotlib would read what is between dollars as mathematics, and stop at what is none."""
    rows = {name: [torch.rand(1, 4, 4)]}
    figure = image_rows(rows, f"title {name}", [name])
    assert write_figure(figure, tmp_path / "x.png").stat().st_size > 1000
    axis = (other := Figure()).subplots()
    axis.bar([name, "b"], [1, 100])
    axis.set_yscale("log")  # whose numbers stay powers of ten
    axis.legend([name])
    write_figure(other, tmp_path / "y.png")
    texts = [text.get_text() for text in other.findobj(Text)]
    assert name in texts
    assert any(r"10^{" in text for text in texts)


def test_a_light_with_a_dollar_in_its_name_costs_no_run(tmp_path):
    for scene in range(4):
        (tmp_path / "scenes" / f"s{scene}").mkdir(parents=True)
        for light in ("$a", "b$", "c"):
            picture = Image.fromarray((torch.rand(8, 8) * 255).byte().numpy())
            picture.save(tmp_path / "scenes" / f"s{scene}" / f"{light}.png")
    cfg = compose_in_process(
        "train", "data=scene_folder", f"data.source.folder={tmp_path}/scenes", "learner/network=mnist_fc",
        "learner.network.image_shape=[1,8,8]", "learner.network.hidden=4", "learner.network.latent=2",
        "data.batch_size=1", "trainer.max_epochs=1", "evaluation.quality.settings.steps=1", "trainer=cpu",
        "callbacks.progress=null", "print_config=false", f"paths.output_dir={tmp_path}/run",
    )  # fmt: skip
    run = train(cfg)
    assert (run.folder / "DONE").is_file()
    assert "$a" in (run.folder / "metrics.json").read_text()


def measured_model(**metrics):
    return SimpleNamespace(
        tables={"robust": {}}, radii={0.0: "", 2.0: "p50", 3.0: "p75, full"}, leading_radius=3.0,
        criterion=Classification(), certify=CertifySettings(), perturbations=PixelBall((1, 2, 2), "l2", 4.0),
        robust=SimpleNamespace(only_pgd=False),
        entries=[Entry("robust", value, radius=float(name[10:])) for name, value in metrics.items()],
    )  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_a_report_explains_the_statements_that_were_made(together):
    test = SimpleNamespace(criterion=PixelAccuracy(), certificate_table=SimpleNamespace(together=together))
    said = _promise({"": test})
    assert "A pixel's certificate holds with probability 1 − α for that pixel alone" in said
    assert ("all pixels of an image at once" in said) == together


def test_charts_of_loggers_show_both_statements_about_maps():
    test = measured_model()
    test.entries += [Entry(name, share, radius=radius) for name, share, radius in (
        ("certified", 0.5, 1.0), ("certified_image", 0.25, 2.0), ("certified_image", 0.375, 1.0),
    )]  # fmt: skip
    charts = curves_of({"": test})
    assert charts["certified accuracy"] == {"model": [(1.0, 0.5)]}
    assert charts["certified accuracy, all pixels of an image at once"] == {"model": [(1.0, 0.375), (2.0, 0.25)]}


def test_the_first_lines_say_what_was_learned_and_how_safe_the_models_are():
    metrics = {"quality/pgd_ae": 0.001, "quality/no_change": 0.08, "seen/set": 0.0}
    unmeasured = SimpleNamespace(metrics=metrics, perturbations=SimpleNamespace(data=""), coverage=None)
    assert in_short(unmeasured, {}) == [
        "The set comes to within 0.001 (mean squared error) of an unseen perturbation, which differs from the image"
        " itself by 0.08."
    ]
    covered = SimpleNamespace(
        metrics={
            **metrics, "coverage/radius": 0.954, "coverage/radius/low": 0.9, "coverage/radius/high": 0.985,
            "coverage/tolerance": 0.0011,
        },
        perturbations=SimpleNamespace(data="faces"), coverage=SimpleNamespace(centre=0.124),
    )  # fmt: skip
    safe, other = measured_model(robust_eps2=0.85, robust_eps3=0.5), measured_model(robust_eps2=0.0)
    safe.entries.append(Entry("certified", 0.516, radius=2.0, names=("p50",)))
    said = in_short(covered, {"safe": safe, "other": other})
    assert said[0].startswith(
        "The set learned from faces contains 95 % [90, 98] of unseen perturbations to within 0.0011"
    )
    assert said[0].endswith("Without any offset it is as near to 12 % of them.")
    for part in (unmeasured, covered):
        part.metrics = {**part.metrics, "seen/set": 0.5}
        assert "unseen" not in in_short(part, {})[0]
        assert "a perturbation (50%" in in_short(part, {})[0] or "of perturbations (50%" in in_short(part, {})[0]
        del part.metrics["seen/set"]  # nobody knows
        assert "unseen" not in in_short(part, {})[0]
        assert "test perturbation" in in_short(part, {})[0]
    coarse = SimpleNamespace(
        metrics={**covered.metrics, "coverage/tolerance": 0.08}, perturbations=covered.perturbations, coverage=object()
    )
    assert in_short(coarse, {})[0].startswith("The set learned from faces is too coarse to speak of coverage")
    assert in_short(coarse, {})[0].endswith("explains 99% of that difference.")
    assert said[1].endswith("leaves this share of images right: 85 % for “safe”, 0 % for “other”.")
    assert said[2] == (
        "“safe”, smoothed, is certified right on 52 % of images, whatever the offset within the median norm (ℓ2 2, 50 %"
        " of the set's; each certificate holds with 99.9 %)."
    )
    alone = measured_model(robust_eps3=0.5)
    alone.radii = {0.0: "", 3.0: "full"}
    assert in_short(None, {"": alone}) == [
        "Within ε = 3, the worst case that was found leaves this share of images right: 50 %."
    ]
    alone.robust.only_pgd = True
    assert "the worst case that PGD alone, which often overstates robustness, found" in in_short(None, {"": alone})[0]
    collapsed = SimpleNamespace(**vars(covered) | {"metrics": covered.metrics | {"quality/over_ae": 0.001}})
    assert in_short(collapsed, {})[0].startswith("Collapsed: ")


def test_the_header_and_the_table_of_a_set_keep_what_matters_on_a_narrow_terminal():
    place = "/a/long/path" * 10
    configuration = {"name": "own", "paths": {"output_dir": place}, "data": {"size": [32, 32]}}
    configuration["overrides"] = ["data.size=[32,32]", f"paths.output_dir={place}", "~callbacks", "print_config=true"]
    console = Console(width=50, record=True, file=io.StringIO())
    print_changes(configuration, console)
    lines = console.export_text().splitlines()
    assert lines[0] == f"own in {place}"
    assert [line[4:] for line in lines[1:3]] == ["data.size: [32, 32]", "~callbacks"]
    assert len(lines) == 4
    metrics = {"radius": 1.0, "quality/pgd_ae": 0.01, "quality/no_change": 0.5}
    for further, heads in ({}, ["value"]), ({"quality/pgd_ae_nll": 3.0}, ["value", "own loss"]):
        print_quality(metrics | further, console)
        head = next(line for line in console.export_text().splitlines() if "metric" in line)
        assert [part.strip() for part in head.strip("┃").split("┃")] == ["metric", *heads]


def test_a_row_says_which_models_were_trained_for_its_radius():
    own = {"trained_for": 2.0, "radii": {0.0: "", 2.0: "p50"}, "robust": None}
    tests = {
        "one": SimpleNamespace(**own), "two": SimpleNamespace(**own | {"trained_for": None}),
        "three": SimpleNamespace(**own),
    }  # fmt: skip
    assert _robust_titles(tests)[0][0].endswith("(p50), trained for (“one”, “three”)")


def test_coverage_is_said_to_be_of_the_pairs_it_was_measured_on():
    contained = Coverage(0.01, (0.0, 1.0), (0.5, 0.9), (0.4, 0.8), (0.6, 1.0), pairs=20, groups=10, split="validation")
    labels = [text.get_text() for text in figures.coverage(contained, {}, 1.0).findobj(Text)]
    assert "share of validation pairs contained" in labels


def test_what_is_validated_after_the_last_epoch_stands_at_that_epoch(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/encoder_ae\n0,1,3.0,\n1,2,2.0,\n2,2,,0.5\n")
    assert read_curves(log) == {"train/loss": [(1.0, 3.0), (2.0, 2.0)], "val/encoder_ae": [(2.0, 0.5)]}
    log.write_text("epoch,step,train/loss,val/encoder_ae\n1,2,2.0,0.7\n2,2,,0.5\n")
    assert read_curves(log)["val/encoder_ae"] == [(2.0, 0.7)]
    log.write_text("epoch,step,val/encoder_ae\n2,2,0.5\n")
    assert read_curves(log) == {"val/encoder_ae": [(3.0, 0.5)]}


def test_a_curve_of_one_epoch_can_be_seen():
    (axis,) = curve({"epoch": [1], "train": [5.0], "val": [5.5]}).axes
    assert all(line.get_marker() == "." for line in axis.lines)


def test_the_interval_of_a_held_out_corruption_is_of_the_images_that_were_asked():
    grid = SimpleNamespace(kinds=("spatter", "saturate"))
    tables = {"accuracy": {"index": np.arange(9)}, "held_out": {"index": np.array([0, 1, 0, 1])}}
    test = SimpleNamespace(held_out=SimpleNamespace(grid=grid), tables=tables)
    names = ("clean", "ood", "ood/spatter", "ood/uniform")
    assert [_count(test, f"accuracy/{name}") for name in names] == [9, 2, 2, 9]
    tables["accuracy"]["group"] = np.arange(9) // 3
    assert [_count(test, f"accuracy/{name}") for name in names] == [3, 1, 1, 3]


@pytest.mark.parametrize(
    ("classes", "y", "rows"),
    [
        (0, None, ["images 0 and 1", "images 2 and 3"]),
        (0, [0, 1, 2, 3], ["images 0 and 1", "images 2 and 3"]),
        (4, [0, 1, 1, 0], ["class 0", "class 1"]),
        (4, [0, 1, 2, 3], None),
    ],
)
def test_a_flow_is_pictured_between_the_images_there_are(classes, y, rows):
    network = flows.build("fully_connected", image_shape=[1, 4, 4], classes=classes, blocks=2, hidden=8).eval()
    batch = Batch.of(torch.rand(4, 1, 4, 4), None if y is None else torch.tensor(y))
    found = interpolations(FlowSet(network, "l2", 1.0), batch)
    if found is not None and classes:
        called = interpolations(FlowSet(network, "l2", 1.0), batch, ("Äpfel", "Birnen"))
        assert {"Äpfel", "Birnen"} <= {text.get_text() for text in called.findobj(Text)}
    named = None if found is None else [text.get_text() for text in found.findobj(Text)]
    assert named is None if rows is None else set(rows) <= set(named)
    assert interpolations(FlowSet(network, "l2", 1.0), batch.at(torch.tensor([0]))) is None


def test_a_model_has_one_colour_in_all_figures_of_a_report():
    curves = {"_mine": {0.0: 1.0, 1.0: 0.5}, "other": {0.0: 1.0, 1.0: 0.2}}
    colours = figures.one_each(curves)
    (both,) = figures.robust_accuracy(curves, colours).axes
    (alone,) = figures.certified_accuracy({"other": np.array([-1.0, 0.5])}, [], {}, colours).axes
    assert both.lines[1].get_color() == alone.lines[0].get_color() != both.lines[0].get_color()
    assert [text.get_text().strip() for text in both.get_legend().get_texts()] == ["_mine", "other"]


def test_an_axis_of_radii_goes_up_where_nothing_is_certified():
    (axis,) = figures.certified_accuracy({"a": np.array([-1.0, -1.0])}, []).axes
    assert axis.get_xlim() == (0, 1)


def test_rows_of_radii_that_are_close_are_told_apart():
    test = SimpleNamespace(
        trained_for=None, radii={1.001: "", 1.002: "", 2.0: "full"}, robust=None, perturbations=None,
        entries=[Entry("certified", 0.5, radius=radius) for radius in (1.001, 1.002)],
    )  # fmt: skip
    titles = [title.removesuffix(" (full)").rpartition(" ")[2] for title, _ in _robust_titles({"": test})]
    assert titles == ["1.001", "1.002", "2"]
    assert len(set(_certified_titles({"": test}).values())) == 2


@pytest.mark.parametrize(("no_change", "is_coarse"), [(0.05, False), (0.01, True)])
def test_a_share_that_says_nothing_is_said_to(no_change, is_coarse):
    ball = SimpleNamespace(radius=2.0)
    found = SimpleNamespace(at=lambda _: (1.0, 0.29, 1.0), pairs=29, groups=3, tolerance=0.02, centre=0.5)
    test = SimpleNamespace(coverage=found, perturbations=SimpleNamespace(ball=ball))
    text = _coverage(test, {"coverage/tolerance": 0.02, "quality/no_change": no_change})
    assert text.startswith("At this radius the set contains 100% [29%, 100%]")
    assert ("too coarse for this share to say anything" in text) == is_coarse


def test_what_decoding_costs_is_of_the_images_that_were_attacked():
    """Of 100 images 90 are right, of the first ten, which were attacked, 6; decoding them costs nothing."""
    right = np.repeat([1.0, 0.0, 1.0], [6, 4, 84]).tolist() + [0.0] * 6
    table = {"index": np.arange(100), "clean": np.array(right)}
    test = measured_model(robust_eps0=0.6, robust_eps3=0.2)
    test.tables, test.trained_for = {"accuracy": table, "robust": {"index": np.arange(10)}}, None
    test.robust.pgd_alone = []
    (said,) = _verdicts({"": test}, {"accuracy/clean": 0.9})
    assert "90.0 % right on clean images, 20.0 % in the worst case found within ε = 3" in said
    assert "of the 10 images that were attacked, 60.0 % are right unattacked" in said
    assert "decoding" not in said
    test.entries = measured_model(robust_eps0=0.4, robust_eps3=0.2).entries
    assert (
        "40.0 % already at ε = 0, so part of the loss is what decoding does"
        in _verdicts({"": test}, {"accuracy/clean": 0.9})[0]
    )
    test.tables["robust"]["index"] = np.arange(100)
    assert "that were attacked" not in _verdicts({"": test}, {"accuracy/clean": 0.9})[0]


@pytest.mark.parametrize(
    ("reached", "said"), [(0.04, "explains 20.0 % of"), (0.05, "explains 0.0 % of"), (0.2, "is farther off than")]
)
def test_a_set_that_is_farther_off_than_the_image_itself_explains_nothing(reached, said):
    metrics = {"quality/pgd_ae": reached, "quality/no_change": 0.05, "latent_norm/max": 1.0, "radius": 2.0}
    assert f"The nearest point of the set {said} the change between" in _verdict(metrics)
    assert "-" not in _verdict(metrics)


def test_what_bits_a_value_cost_at_least_is_the_entropy_of_the_noise():
    network = flows.build("fully_connected", image_shape=[1, 4, 4], classes=0, blocks=2, hidden=8)
    bits = float(norm(scale=0.1 * 255).entropy()) / math.log(2)  # of 256 levels
    assert f"a grey value costs {bits:.1f} whoever" in _least(FlowSet(network, "l2", 1.0))
    for noise in (0.0, 5e-4):  # none, and less than a level
        network.noise = noise
        assert _least(FlowSet(network, "l2", 1.0)) == ""


def test_what_is_said_of_a_set_s_use_runs(tmp_path):
    network = flows.build("fully_connected", image_shape=[1, 4, 4], classes=3, blocks=2, hidden=8).eval()
    for name, perturbations in (("labels", FlowSet(network, "l2", 1.0)), ("none", PixelBall((1, 4, 4), "l2", 1.0))):
        place = perturbations.save(tmp_path / name)
        told = {"x": torch.rand(2, 1, 4, 4), "y": torch.tensor([0, 2])}
        exec(usage(str(place), perturbations.needs_label), told)
        assert told["images"].shape == (5, 2, 1, 4, 4)
