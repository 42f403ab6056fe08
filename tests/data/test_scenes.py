"""Pairs of lights within a scene, and maps that follow their images."""

import numpy as np
import pytest
import torch

from latentrobust.data.lights.materials import CLASSES, KNOWN, MATERIALS, OTHER, UNKNOWN, to_classes
from latentrobust.data.lights.module import LightPairs
from latentrobust.data.lights.scenes import Scenes, SceneSplits
from latentrobust.errors import InputError
from latentrobust.transforms.augmentation import Cutout, HorizontalFlip, RandomCrop, RandomTranslation
from latentrobust.transforms.augmix import AugMix

LIGHTS, SCENES = 4, 9


def source(materials=True, lights=LIGHTS):
    """Scene s under light l: red s, green l, blue the material."""

    def scenes(count, start):
        images = torch.zeros(count, lights, 3, 6, 8, dtype=torch.uint8)
        maps = torch.randint(0, len(MATERIALS), (count, 6, 8), dtype=torch.uint8)
        images[:, :, 0] = torch.arange(start, start + count)[:, None, None, None]
        images[:, :, 1] = torch.arange(lights)[None, :, None, None] + 1
        images[:, :, 2] = maps[:, None] + 1
        return Scenes(images, maps if materials else None, tuple(f"s{start + n}" for n in range(count)))

    return lambda: SceneSplits(scenes(SCENES, 1), scenes(3, 50), scenes(5, 80), tuple("abcdefgh"[:lights]), "a note")


def module(**settings):
    settings = {"batch_size": 4, **settings}
    data = LightPairs(settings.pop("source", source()), "scenes", **settings)
    data.setup()
    return data


def read(images):
    return (images * 255).round().long()


def test_pairs_are_ordered_pairs_of_different_lights_of_one_scene():
    data = module()
    seen = set()
    for epoch in range(60):
        pairs = data.pairs("train", torch.arange(SCENES), epoch)
        clean, perturbed = read(pairs.x), read(pairs.perturbed)
        assert torch.equal(clean[:, 0], perturbed[:, 0])
        lights = torch.stack([clean[:, 1, 0, 0], perturbed[:, 1, 0, 0]], 1) - 1
        assert (lights[:, 0] != lights[:, 1]).all()
        assert torch.equal(lights[:, 1], pairs.kind)
        assert pairs.index.tolist() == list(range(SCENES))
        seen |= set(map(tuple, lights.tolist()))
    assert len(seen) == LIGHTS * (LIGHTS - 1)


def test_evaluation_has_every_scene_under_every_light_and_never_changes():
    data = module()
    assert data.count("test") == 5 * LIGHTS
    index = torch.arange(data.count("test"))
    pairs, again = data.pairs("test", index), data.pairs("test", index, epoch=3)
    assert torch.equal(pairs.x, again.x)
    assert (read(pairs.perturbed)[:, 1, 0, 0] - 1 == pairs.kind).all()
    assert (read(pairs.x)[:, 1, 0, 0] - 1 != pairs.kind).all()
    assert torch.equal(pairs.kind, index // 5)
    one = data.pairs_of_kind("test", torch.tensor([3]), 2)
    assert torch.equal(one.perturbed[0], pairs.perturbed[2 * 5 + 3])
    assert torch.equal(one.x[0], pairs.x[2 * 5 + 3])
    assert data.first_pairs("test", 3).kind.tolist() == [0, 1, 2]


def test_fewer_target_lights_are_spread_and_keep_their_names():
    data = module(targets=2)
    assert data.count("validation") == 3 * 2
    assert data.pairs("validation", torch.arange(6)).kind.tolist() == [0, 0, 0, 2, 2, 2]
    assert data.kinds == ("a", "b", "c", "d")


def test_a_fixed_light_is_the_first_half_of_every_pair():
    data = module(train_light=2, test_light=1)
    for epoch in range(5):
        pairs = data.pairs("train", torch.arange(SCENES), epoch)
        assert (read(pairs.x)[:, 1] == 3).all()
        assert (pairs.kind != 2).all()
    assert data.count("test") == 5 * 3  # no pair of a light with itself
    pairs = data.pairs("test", torch.arange(15))
    assert (read(pairs.x)[:, 1] == 2).all()
    assert pairs.kind.unique().tolist() == [0, 2, 3]
    assert module(test_light=0).first_kinds("test").unique().tolist() == [1]
    assert module(test_light="c").lights["test"] == 2


def test_a_light_is_found_by_its_name_before_its_place():
    def numbered():
        return source()()._replace(lights=("0", "10", "2", "3")[:LIGHTS])

    data = module(source=numbered, test_light=2)
    assert data.kinds[data.lights["test"]] == "2"
    assert module(source=numbered, test_light="10").lights["test"] == 1
    assert module(test_light=2).lights["test"] == 2  # no light is called 2: the third one


def test_maps_move_with_both_images():
    data = module(joint={"flip": HorizontalFlip(), "crop": RandomCrop(3)})
    plain = module()
    flipped = moved = 0
    for epoch in range(10):
        pairs = data.pairs("train", torch.arange(SCENES), epoch)
        material = read(pairs.x)[:, 2]
        assert torch.equal(material, read(pairs.perturbed)[:, 2])
        inside = material > 0
        classes = to_classes((material - 1).clamp_min(0).to(torch.uint8))
        assert torch.equal(pairs.labels, classes.where(inside, -1))
        before = plain.pairs("train", torch.arange(SCENES), epoch)
        assert torch.equal(pairs.kind, before.kind)
        moved += int((~inside).any())
        flipped += int((pairs.labels != before.labels).any())
    assert moved
    assert flipped


class Brighter:
    def __call__(self, images, keys):
        return images * 1.2


def test_what_changes_colours_is_not_done_to_maps():
    for changed in (Brighter(), AugMix()):
        with pytest.raises(InputError, match=r"data\.joint\.mine changes colours, .* leave it out"):
            module(joint={"flip": HorizontalFlip(), "mine": changed})
        assert module(source=source(materials=False), joint={"mine": changed}).count("train")
    kept = {"flip": HorizontalFlip(), "crop": RandomCrop(2), "cutout": Cutout(3), "shift": RandomTranslation()}
    assert module(joint=kept).count("train")


def test_images_on_disk_and_resident_ones_are_the_same():
    for split in ("train", "test"):
        index = torch.arange(5)
        torch.manual_seed(1)
        kept = module(source=source()).pairs(split, index)
        torch.manual_seed(1)
        read_each = module(source=source(), resident=False).pairs(split, index)
        assert torch.equal(kept.x, read_each.x)
        assert torch.equal(kept.labels, read_each.labels)


def test_classes_are_the_papers_36():
    assert len(CLASSES) == 36
    assert list(KNOWN) == sorted(KNOWN)
    assert len(MATERIALS) == 41
    indices = torch.arange(41, dtype=torch.uint8)
    classes = to_classes(indices)
    assert sorted(set(classes.tolist())) == list(range(36))
    assert [CLASSES[number] for number in classes.tolist()] == [
        "Other" if index in UNKNOWN else MATERIALS[index] for index in range(41)
    ]
    ignoring = to_classes(indices, ignore_other=True)
    assert (ignoring[list(UNKNOWN)] == -1).all()
    assert torch.equal(ignoring[classes != OTHER], classes[classes != OTHER])


def test_scenes_without_maps_have_no_classes():
    data = module(source=source(materials=False))
    assert not data.per_pixel
    assert data.pairs("train", torch.arange(4)).y is None
    with pytest.raises(InputError, match="no maps of materials"):
        _ = data.classes
    assert module().classes == 36
    assert module().other_class == OTHER
    assert module(ignore_other=True).other_class is None


def test_parts_are_drawn_and_limited():
    data = module(train_size=5, test_size=2, validation_size=1)
    assert data.count("train") == 5
    rows = data.rows["train"].tolist()
    assert len(set(rows)) == 5
    shown = (read(data.pairs("train", torch.arange(5)).x)[:, 0, 0, 0] - 1).tolist()
    assert shown == rows
    assert (data.count("validation"), data.count("test")) == (LIGHTS, 2 * LIGHTS)
    assert data.note == "a note"
    assert data.image_shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_light": 4}, "data.train_light=4: the scenes have lights 0 to 3"),
        ({"test_light": -1}, "data.test_light=-1"),
        ({"train_light": "z"}, "data.train_light=z: the scenes have lights 0 to 3, or by name a, b, c, d"),
        ({"train_light": 1.5}, "train_light must be a whole number or text or null, got 1.5"),
        ({"targets": 5}, "data.targets=5: there are 4 lights"),
        ({"targets": "two"}, "targets must be a whole number at least 1 or null, got 'two'"),
        ({"validation_size": 0}, "validation_size must be a whole number at least 1 or null, got 0"),
        ({"train_size": 10}, "data.train_size=10 of 9"),
        ({"batch_size": 10}, "data.batch_size=10 exceeds the 9"),
        ({"targets": 0}, "targets must be a whole number at least 1"),
    ],
)
def test_sizes_and_lights_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        module(**settings)


def test_an_image_is_as_it_was_stored():
    stored = source()().test
    data = module(source=lambda: SceneSplits(stored, stored, stored, tuple("abcd")))
    pairs = data.pairs("test", torch.arange(20))
    np.testing.assert_array_equal(read(pairs.perturbed).numpy(), stored.images.transpose(0, 1).flatten(0, 1).numpy())
