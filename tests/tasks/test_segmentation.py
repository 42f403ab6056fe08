"""Scores of maps of classes, against loops over pixels."""

import dataclasses
import re
import warnings

import pytest
import torch
from torch import nn

from latentrobust import CertifySettings, PixelBall, RobustSettings, RTSSet, assess
from latentrobust.batch import Batch
from latentrobust.data.corruptions.grid import CorruptionGrid
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.reporting.segmentation import maps_under_attack
from latentrobust.robustness.attacks import PGD
from latentrobust.robustness.criteria import PixelAccuracy
from latentrobust.robustness.maps import intersection_over_union
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training.base import Unperturbed
from latentrobust.schedules import PiecewiseLinear
from latentrobust.tasks.classification import ClassificationTask
from latentrobust.tasks.corruptions import GridAccuracy
from latentrobust.tasks.segmentation import SegmentationTask
from latentrobust.transforms.affine import RotationTranslationScale


def scores(predictions, labels, classes):
    """Mean intersection over union by its definition: over classes that occur, pixels with a label alone."""
    pairs = [(int(p), int(t)) for p, t in zip(predictions.flatten(), labels.flatten(), strict=True) if t >= 0]
    values = []
    for label in range(classes):
        both = sum(p == t == label for p, t in pairs)
        either = sum(label in (p, t) for p, t in pairs)
        if either:
            values.append(both / either)
    return sum(values) / len(values)


def test_the_published_mistake_is_not_repeated():
    """Bits of class numbers gave 0.4 for this pair of maps; the intersection over union is a quarter."""
    iou = intersection_over_union(36)
    iou.update(torch.tensor([[[1, 2]]]), torch.tensor([[[2, 2]]]))
    assert float(iou.compute()) == 0.25


def test_intersection_over_union_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 5, (6, 4, 5), generator=generator)
    predictions = torch.randint(0, 6, (6, 4, 5), generator=generator)  # class 6 of 7 never occurs
    iou = intersection_over_union(7)
    for part in (slice(0, 2), slice(2, 6)):
        iou.update(predictions[part], labels[part])
    torch.testing.assert_close(float(iou.compute()), scores(predictions, labels, 7), rtol=1e-6, atol=1e-6)


def test_a_batch_in_which_nothing_counts_leaves_the_training_accuracy_alone():
    def model(x):
        return torch.cat([0.5 - x, x - 0.5], 1)

    task = ClassificationTask(
        nn.Conv2d(1, 2, 1), Unperturbed(), Standard(), torch.optim.Adam, PiecewiseLinear([1.0], [0]), select_on="clean"
    )
    task._steps_of, task._has_pairs, task.criterion = (model,), False, PixelAccuracy()
    task.log = task.log_rate = lambda *_, **__: None
    x = torch.rand(3, 1, 4, 4)
    y = (x[:, 0] > 0.5).long()
    y[0, 0] = 1 - y[0, 0]  # a quarter of the first image is wrong
    y[2] = -1
    for rows in (slice(0, 3), slice(2, 3)):
        task.training_step(Batch.of(x[rows], y[rows]), 0)
    assert float(task.fit_metrics["accuracy"].compute()) == pytest.approx((0.75 + 1) / 2)


def test_newly_wrong_pixels_are_of_those_that_count():
    truth = torch.zeros(1, 2, 4, dtype=torch.int64)
    truth[0, 0] = -1
    before, after = torch.zeros_like(truth), torch.zeros_like(truth)
    after[0, :, :2] = 1  # of four that count, two
    images = {"example": torch.rand(1, 3, 2, 4), "attacked": torch.rand(1, 3, 2, 4)}
    title = "a title that is a good deal wider than the one picture below it, and would be cut off at both of its ends"
    figure = maps_under_attack(images, {"example": before, "attacked": after}, truth, ["a", "b"], title)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["50.0 % newly wrong"]
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_maps_of_classes_that_the_data_does_not_name_are_drawn():
    truth = torch.zeros(1, 2, 4, dtype=torch.int64)
    images = {"example": torch.rand(1, 3, 2, 4), "attacked": torch.rand(1, 3, 2, 4)}
    said = {"example": truth, "attacked": truth + 75}
    figure = maps_under_attack(images, said, truth, ["a", "b"], "maps")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "class 75"]


def test_all_names_below_a_narrow_figure_are_within_it():
    names = [f"material number {number}" for number in range(36)]
    truth = torch.arange(72).reshape(2, 6, 6) % 36
    images = {"example": torch.rand(2, 3, 6, 6), "attacked": torch.rand(2, 3, 6, 6)}
    figure = maps_under_attack(images, {"example": truth, "attacked": truth}, truth, names, "maps")
    figure.canvas.draw()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == 36
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1


class Bright(nn.Module):
    """Class 1 where a pixel is bright: a turned image has the turned map."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


def test_perturbations_that_move_pixels_are_refused_where_each_has_a_class():
    """They would leave the classes where they were, and a perfect model would be called wrong."""
    x = torch.rand(4, 1, 8, 8)
    y = (x[:, 0] > 0.5).long()
    s = RTSSet((1, 8, 8), degrees=45.0, scale=0.3, shift=2)
    with pytest.raises(InputError, match="RTSSet moves pixels, and their classes would stay"):
        assess(Bright(), s, (x, y), robust=RobustSettings(radii=[1.0]))
    with pytest.raises(InputError, match="RotationTranslationScale moves pixels"):
        assess(Bright(), data=(x, y), ood={"rts": RotationTranslationScale()}, robust=None)
    with pytest.raises(InputError, match="RTSSet moves pixels"):
        SegmentationTask(
            Bright(), Unperturbed(), Standard(), torch.optim.Adam, PiecewiseLinear([1.0], [0]), s, select_on="clean"
        )
    assert assess(Bright(), PixelBall((1, 8, 8), "linf", 0.01), (x, y), robust=None).value("accuracy/clean") == 1
    assert assess(lambda x: Bright()(x).mean((2, 3)), s, (x, y[:, 0, 0]), robust=None)  # a class per image may move
    assert assess(Bright(), s, (x, y), robust=None).value("accuracy/clean") == 1  # nothing is measured over the set


@pytest.mark.parametrize(("options", "warned"), [({"warps": 1}, True), ({"warps": 0}, False)])
def test_learned_sets_that_can_move_pixels_are_warned_about_where_each_has_a_class(options, warned):
    network = build("structured", image_shape=(1, 16, 16), latent=4, blur=False, light=2, residual=0, **options)
    s = CVAESet(network.eval(), "gaussian", 1.0)
    x = torch.rand(2, 1, 16, 16)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assess(Bright(), s, (x, (x[:, 0] > 0.5).long()), robust=RobustSettings(attacks={"pgd": PGD(steps=1)}))
    assert any("can move pixels (warps)" in str(each.message) for each in said) == warned


@pytest.mark.parametrize(
    ("given", "is_right"),
    [(lambda y: y.to(torch.uint16), True), (lambda y: y.double(), False), (lambda y: y.bool(), False),
     (lambda y: torch.where(y > 0, torch.nan, 0.0), False), (lambda y: y.numpy().astype(str), False)],
)  # fmt: skip
def test_maps_of_any_type_are_measured_or_refused_in_a_line(given, is_right):
    x = torch.rand(4, 1, 8, 8)
    y = given((x[:, 0] > 0.5).long())
    x = x if isinstance(y, torch.Tensor) else x.numpy()
    if is_right:
        assert assess(Bright(), data=(x, y), robust=None).value("accuracy/clean") == 1
    else:
        with pytest.raises(InputError):
            assess(Bright(), data=(x, y), robust=None)


def test_maps_in_which_no_pixel_counts_do_not_spoil_the_accuracy_on_corruptions():
    x = torch.rand(6, 3, 40, 40)
    y = (x[:, 0] > 0.5).long()
    y[2] = -1
    with pytest.warns(RobustnessWarning, match="elastic_transform moves pixels"):
        found = assess(
            lambda x: Bright()(x[:, :1]), data=(x, y), robust=None,
            corruptions=GridAccuracy(CorruptionGrid(kinds=["brightness", "elastic_transform"], severities=[1])),
        )  # fmt: skip
    assert 0.5 < found.value("accuracy/corruption/brightness") < 1
    assert 0.1 < found.value("mce") < 0.5


def test_large_maps_are_measured_a_few_at_once(monkeypatch):
    """What is held at once are logits of each class and pixel."""
    monkeypatch.setattr("latentrobust.robustness.assess.VALUES_AT_ONCE", 6 * 20 * 20 * 10)
    seen = []

    def model(x):
        seen.append(len(x))
        return torch.nn.functional.one_hot((x[:, 0] * 9).long(), 10).movedim(-1, 1).float()

    x = torch.rand(15, 1, 20, 20)
    y = (x[:, 0] * 9).long()
    y[:, 0, 0] = 9
    assert assess(model, data=(x, y), robust=None).value("accuracy/clean") == pytest.approx(399 / 400)
    assert max(seen) == 6


def test_radii_at_which_no_map_can_be_certified_as_a_whole_are_named():
    """The noise level is chosen so that one pixel reaches them; all 64 share α."""
    x = torch.rand(2, 1, 8, 8)
    y = (x[:, 0] > 2).long()
    settings = CertifySettings(radii=[0.05, 0.5], n=1000, adaptive=False)

    def model(x):
        return torch.cat([x * 0 + 1, x * 0], 1)

    ball = PixelBall((1, 8, 8), "l2", 1.0)
    with pytest.warns(
        RobustnessWarning, match=r"all 64 pixels .* certified_image is 0 at 0\.5 \(sigma=(0\.\d+) "
    ) as said:
        found = assess(model, ball, (x, y), robust=None, certify=settings)
    assert found.value("certified_image", radius=0.5) == 0
    assert found.value("certified", radius=0.5) == found.value("certified_image", radius=0.05) == 1
    sigma = float(re.search(r"sigma=(0\.\d+)", str(said[0].message))[1])
    again = assess(model, ball, (x, y), robust=None, certify=dataclasses.replace(settings, sigma=1.01 * sigma))
    assert again.value("certified_image", radius=0.5) == 1


def test_labels_below_0_do_not_count_in_a_validation_whichever_they_are(monkeypatch):
    task = SegmentationTask.__new__(SegmentationTask)
    nn.Module.__init__(task)
    task._iou, logged = intersection_over_union(3), {}
    monkeypatch.setattr(ClassificationTask, "_count_perturbed", lambda *_: None)
    monkeypatch.setattr(SegmentationTask, "log", lambda self, name, metric, **_: logged.update({name: metric}))
    y = torch.tensor([[[0, 1], [-100, 2]]])
    task._count_perturbed(torch.randn(1, 3, 2, 2), y)
    task._iou.reset()
    task._count_perturbed(torch.nn.functional.one_hot(y.clamp_min(0), 3).permute(0, 3, 1, 2).float(), y)
    assert float(logged["val/miou/perturbed"].compute()) == 1
