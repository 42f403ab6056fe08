"""Sets and models know what they were made with, and say so where they are measured on it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import latentrobust as lr
from latentrobust import CoverageSettings, RTSSet, seen
from latentrobust.calibration import calibrate
from latentrobust.data.images import digits
from latentrobust.data.images.base import Images, Split
from latentrobust.data.lights.module import LightPairs
from latentrobust.data.lights.scenes import Scenes, SceneSplits
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.errors import RobustnessWarning
from latentrobust.networks.classifiers import build
from latentrobust.seen import Hashes, Seen, hashes_of, note_seen, seen_by, share_seen
from latentrobust.transforms.noise import UniformNoise


def noise(count, seed=0, side=6):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), dtype=np.uint8))


def part_of(known, asked):
    found, count = known.known(asked)
    return found / max(count, 1)


def of(images):
    return Hashes(hashes_of(images), np.arange(len(images)))


def test_images_are_told_apart_by_each_pixel_and_those_of_one_colour_not_at_all():
    images = noise(4)
    changed = images.clone()
    changed[0, 0, 5, 5] += 1
    again = hashes_of(torch.cat([images, changed]))
    assert len(set(again.tolist())) == 5
    assert (again[1:4] == again[5:]).all()
    plain = torch.tensor([3, 9, 200], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 6, 6)
    assert hashes_of(plain).tolist() == [0, 0]
    assert part_of(Seen.smallest(hashes_of(plain)), of(plain)) == 0


def test_an_example_is_known_by_any_of_its_images():
    images = noise(6)
    known = Seen.smallest(hashes_of(images[:2]))
    assert part_of(known, of(images)) == pytest.approx(1 / 3)
    assert part_of(known, Hashes(hashes_of(images), np.array([0, 1, 0, 1, 2, 3]))) == 0.5
    assert part_of(known, Hashes(hashes_of(images), np.array([0, 0, 0, 1, 2, 3]))) == 0.25


def test_of_many_images_the_share_is_estimated_from_the_smallest_hashes(monkeypatch):
    monkeypatch.setattr(seen, "MOST", 500)
    images = noise(4000)
    hashes = hashes_of(images)
    known = Seen.smallest(hashes[:3000])
    assert len(known.hashes) == 500
    assert part_of(known, of(images)) == pytest.approx(0.75, abs=0.05)
    assert part_of(known, of(images[3000:])) == 0
    more = Seen.smallest(hashes[3000:3400]).joined(known)
    assert len(more.hashes) == 500
    assert more.below < known.below
    assert part_of(more, of(images)) == pytest.approx(0.85, abs=0.05)
    assert part_of(Seen.from_text(more.to_text()), of(images)) == part_of(more, of(images))


def test_what_is_stored_comes_back_and_what_is_damaged_is_not_known():
    known = Seen.smallest(hashes_of(noise(5)))
    again = Seen.from_text(known.to_text())
    assert again.below == known.below == 1 << 64
    assert (again.hashes == known.hashes).all()
    assert Seen.from_text({}) is None
    stored = json.loads(known.to_text()["seen"])
    for damaged in ({"below": "many"}, {"below": -5}, {"below": 1 << 65}, {"hashes": "AAAA"}, {"hashes": None}):
        assert Seen.from_text({"seen": json.dumps(stored | damaged)}) is None
    assert Seen.from_text({"seen": "{"}) is Seen.from_text({"seen": "[1]"}) is None


def own_pairs(centred=True):
    x = noise(60).numpy()
    if centred:
        return lr.pairs(x, 255 - x, y=np.arange(60) % 2)
    return lr.pairs(x, 255 - x, group=np.arange(60) // 3)


def lights():
    images = noise(3 * 20).reshape(20, 3, 1, 6, 6)
    parts = images[:12], images[12:15], images[15:]
    scenes = [Scenes(part, None, tuple(f"s{n}" for n in range(len(part)))) for part in parts]
    return SceneSplits(*scenes, ("a", "b", "c"))


def of_images(split_seed=0, canvas=None, swapped=False):
    found = digits()
    if swapped:
        found = Images(Split(*found.test), Split(*found.train))
    perturbation = UniformNoise(0.1)
    return FormulaPairs(lambda: found, perturbation, "digits", canvas, 16, 50, split_seed=split_seed)


@pytest.mark.parametrize(
    ("data", "other", "share"),
    [
        (lambda: own_pairs().as_data(split_seed=0), lambda: own_pairs().as_data(split_seed=5), 0.8),
        (
            lambda: own_pairs(centred=False).as_data(split_seed=0),
            lambda: own_pairs(centred=False).as_data(split_seed=5),
            0.8,
        ),
        (of_images, lambda: of_images(swapped=True), 1.0),
        (lambda: of_images(canvas=32), lambda: of_images(canvas=32, swapped=True), 1.0),
        (lambda: of_images(canvas=32), lambda: of_images(swapped=True), 0.0),  # other images to a network
        (
            lambda: LightPairs(lights, "scenes", batch_size=4),
            lambda: LightPairs(lambda: lights()._replace(test=lights().train), "scenes", batch_size=4),
            1.0,
        ),
    ],
    ids=["pairs", "groups", "images", "canvas", "another canvas", "scenes"],
)
def test_data_knows_its_images(data, other, share):
    own, other = data(), other()
    known = Seen.of(own)
    for split, expected in (("train", 1.0), ("validation", 1.0), ("test", 0.0)):
        assert part_of(known, own.hashes(split)) == expected
        assert len(np.unique(own.hashes(split).example)) == own.examples(split)
    assert part_of(known, other.hashes("test")) == pytest.approx(share, abs=0.35 * (0 < share < 1))


def test_more_images_than_can_be_read_are_not_known(monkeypatch):
    monkeypatch.setattr("latentrobust.data.pairs.given.LARGEST", 100)
    assert Seen.of(own_pairs().as_data()) is None


def test_a_few_images_twice_are_not_worth_a_word_and_more_are():
    module = nn.Identity()
    images = noise(200)
    note_seen(module, None)
    assert share_seen(module, lambda: of(images), "the set") is None  # nobody knows what it was learned from
    note_seen(module, Seen.smallest(hashes_of(images[:2])))
    assert share_seen(module, lambda: of(images), "the set") == 0
    assert share_seen(module, lambda: None, "the set") is None
    assert share_seen(module, lambda: of(torch.zeros(4, 1, 6, 6, dtype=torch.uint8)), "the set") is None  # one colour
    note_seen(module, Seen.smallest(hashes_of(images[100:150])))
    with pytest.warns(RobustnessWarning, match=r"the set was learned from, or selected on, 26% of the images"):
        assert share_seen(module, lambda: of(images), "the set") == pytest.approx(0.26)
    note_seen(twins := nn.Identity(), Seen.smallest(hashes_of(images[:2])))
    assert share_seen(twins, lambda: of(images[:20]), "the set") == 0  # two of twenty
    wrapped = nn.Sequential(lr.wrap(module))
    with pytest.warns(RobustnessWarning, match="the model was learned from"):
        assert share_seen(wrapped, lambda: of(images), "the model") == pytest.approx(0.26)


def test_the_same_set_is_the_same_file(tmp_path):
    files = []
    for number in range(6):
        perturbations = lr.PixelBall((1, 6, 6), "l2", 1.0)
        note_seen(perturbations, Seen.smallest(hashes_of(noise(5))))
        files.append((perturbations.save(tmp_path / str(number)) / "model.safetensors").read_bytes())
    assert len(set(files)) == 1


def test_learned_sets_keep_what_they_were_learned_from(tmp_path):
    pairs = own_pairs()
    learned = lr.learn(pairs, network="mnist_fc", epochs=1, measure=False, progress=False, device="cpu")
    loaded = lr.load_perturbation_set(learned.save(tmp_path / "s"))
    for perturbations in (learned, loaded, loaded.restrict([0, 1]), lr.load_perturbation_set(tmp_path / "s")):
        assert part_of(seen_by(perturbations), pairs.as_data().hashes("train")) == 1
        assert part_of(seen_by(perturbations), pairs.as_data().hashes("test")) == 0
    tuned = lr.learn(
        lr.pairs(noise(30, seed=8).numpy(), noise(30, seed=9).numpy()), network="mnist_fc", epochs=1, measure=False,
        progress=False, device="cpu", overrides=[f"learner.init_from={tmp_path}/s"],
    )  # fmt: skip
    assert part_of(seen_by(tuned), pairs.as_data().hashes("train")) == 1
    assert part_of(seen_by(tuned), of(noise(30, seed=8))) == pytest.approx(24 / 30)


def test_a_calibrated_set_was_selected_on_data():
    data = own_pairs().as_data()
    perturbations = lr.PixelBall((1, 6, 6), "l2", 1.0)
    calibrate(perturbations, data)
    assert part_of(seen_by(perturbations), data.hashes("validation")) == 1
    assert seen_by(RTSSet((1, 6, 6))) is None


def test_who_is_measured_on_what_it_knows_is_told_so(tmp_path):
    pairs = own_pairs()
    model = build("pooled_cnn", image_shape=[1, 6, 6], classes=2, width=4)
    note_seen(model, Seen.of(pairs.as_data()))
    place = lr.save_model(model, tmp_path / "m", image_shape=(1, 6, 6), classes=2, data="mine")
    model = lr.load_model(place)
    perturbations = lr.PixelBall((1, 6, 6), "l2", 1.0)
    note_seen(perturbations, Seen.of(pairs.as_data(split_seed=5)))
    settings = {"robust": None, "coverage": CoverageSettings(steps=1)}
    with pytest.warns(RobustnessWarning, match="the model was learned from"):
        results = lr.assess(model, perturbations, pairs.as_data(split_seed=5), **settings)
    known = part_of(seen_by(model), pairs.as_data(split_seed=5).hashes("test"))
    assert 0.5 < known < 1
    assert results.metrics["seen/model"] == known
    assert results.metrics["seen/set"] == 0
    assert any(f"the model was learned from, or selected on, {known:.0%} of" in said for said in results.warnings)
    x = pairs.images[pairs.clean].float() / 255
    given = x, pairs.label, pairs.images[pairs.perturbed].float() / 255
    with pytest.warns(RobustnessWarning, match="the set was learned from"):
        results = lr.assess(model, perturbations, given, **settings)
    assert results.metrics["seen/model"] == results.metrics["seen/set"] == 0.8
    attacked = lr.RobustSettings(attacks={"pgd": lr.PGD(steps=1, checks=False)}, radii=["full"])
    with pytest.warns(RobustnessWarning, match="the set was learned from"):
        results = lr.assess(model, perturbations, given, robust=attacked)
    assert results.metrics["seen/set"] == 0.8  # what is attacked over a set is measured with it
    assert "seen/set" not in lr.assess(model, perturbations, given, robust=None).metrics
    own = lr.assess(model, None, pairs.as_data())
    assert own.metrics["seen/model"] == 0
    assert not any("was learned from" in said for said in own.warnings)
