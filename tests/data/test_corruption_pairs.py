"""CIFAR-10-C and its like: which images make a pair, splits, files on disk, bad input."""

import json
import re

import numpy as np
import pytest
import torch

from latentrobust.data.__main__ import main
from latentrobust.data.corruptions.files import Corrupted, Plan, write_corrupted
from latentrobust.data.corruptions.grid import CorruptionGrid
from latentrobust.data.corruptions.module import CorruptionPairs, OneCorruption, to_levels
from latentrobust.data.images import photos
from latentrobust.data.images.base import Images, Split
from latentrobust.errors import InputError
from latentrobust.transforms.augmentation import HorizontalFlip, RandomCrop
from latentrobust.transforms.corruptions import textures

KINDS = ("contrast", "fog", "motion_blur")
MORE = ("zoom_blur", "frost", "elastic_transform", "jpeg_compression")


def source():
    return photos(32, 60, 20)


def module(**changes):
    arguments = {"source": source, "name": "photos", "kinds": KINDS, "batch_size": 8, "validation": 10}
    data = CorruptionPairs(**{**arguments, "test_images": "generated", **changes})
    data.setup()
    return data


def grey():
    return Images(*[Split(torch.zeros(20, 1, 8, 8).byte(), torch.zeros(20).long())] * 2)


def everything(data, split):
    return data.pairs(split, torch.arange(data.count(split)))


def test_photos_are_patches_that_say_which_photo():
    images = source()
    assert images.train.images.shape == (60, 3, 32, 32)
    assert images.train.labels.unique().tolist() == images.test.labels.unique().tolist() == list(range(10))
    assert torch.equal(images.train.images, source().train.images)
    with pytest.raises(InputError, match=r"side must be at most 48"):
        photos(64)


def test_centred_pairs_have_every_kind_of_every_test_image():
    data = module()
    assert data.kinds == KINDS
    assert data.count("test") == 60
    pairs = everything(data, "test")
    assert pairs.kind.bincount().tolist() == [20, 20, 20]
    assert torch.equal(pairs.x[:20], pairs.x[20:40])
    assert torch.equal(pairs.labels, data.splits["test"].labels.repeat(3))
    assert (pairs.x != pairs.perturbed).flatten(1).any(1).all()
    assert data.count("train") == 50


def test_training_pairs_take_another_kind_in_another_epoch():
    data = module()
    index = torch.arange(50)
    kinds = torch.stack([data.pairs("train", index, epoch).kind for epoch in range(30)])
    assert (kinds.flatten().bincount() > 350).all()
    assert len({tuple(row.tolist()) for row in kinds}) == 30
    one = data.pairs("train", index, 3)
    two = data.pairs("train", index.flip(0), 3)
    assert torch.equal(one.perturbed, two.perturbed.flip(0))
    # The same image and kind is the same corruption, whatever the epoch.
    first, second = data.pairs("train", index, 0), data.pairs("train", index, 1)
    same = first.kind == second.kind
    assert same.any()
    assert torch.equal(first.perturbed[same], second.perturbed[same])


@pytest.mark.parametrize(
    ("pairing", "kinds"), [("original_perturbed", ("original", *KINDS)), ("perturbed_only", KINDS)]
)
def test_other_pairings_are_ordered_pairs_of_different_versions(pairing, kinds):
    data = module(pairing=pairing)
    assert data.kinds == kinds
    pairs = everything(data, "test")
    assert data.count("test") == 20 * len(kinds)
    centred = everything(module(), "test")
    versions = [centred.perturbed[20 * n : 20 * n + 20] for n in range(3)]
    if pairing == "original_perturbed":
        versions = [centred.x[:20], *versions]
    conditions = set()
    for clean, perturbed, kind, example in zip(pairs.x, pairs.perturbed, pairs.kind, pairs.index, strict=True):
        assert torch.equal(perturbed, versions[kind][example])
        places = [number for number, images in enumerate(versions) if torch.equal(clean, images[example])]
        assert int(kind) not in places
        assert places
        conditions |= set(places)
    assert conditions == set(range(len(kinds)))


def moves(image, moved):
    """Which crops (row, column, flipped or not) of a padded image give ``moved``."""
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    windows = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    return {
        (*place, flipped)
        for place, window in windows.items()
        for flipped in (False, True)
        if torch.equal(window.flip(-1) if flipped else window, moved)
    }


def test_joint_augmentation_changes_both_halves_alike_and_only_in_training():
    plain = module()
    moved = module(joint={"crop": RandomCrop(4), "flip": HorizontalFlip()})
    index = torch.arange(50)
    one, two = plain.pairs("train", index), moved.pairs("train", index)
    assert torch.equal(one.kind, two.kind)
    changed = 0
    for number in range(50):
        first, second = (moves(getattr(one, half)[number], getattr(two, half)[number]) for half in ("x", "x_tilde"))
        assert first & second
        changed += (4, 4, False) not in first
    assert changed > 40
    assert torch.equal(everything(plain, "test").perturbed, everything(moved, "test").perturbed)


def test_images_are_split_before_they_are_corrupted():
    data = module()
    assert not set(data.rows["train"].tolist()) & set(data.rows["validation"].tolist())
    pairs = everything(data, "validation")
    assert torch.equal(to_levels(pairs.x[:10]), source().train.images[data.rows["validation"]])


@pytest.mark.parametrize("draws", [1, 2, None])
def test_making_them_for_each_batch_gives_the_same(draws):
    kinds = (*KINDS, *MORE) if draws == 1 else KINDS
    kept, anew = (module(kinds=kinds, draws_per_example=draws, keep=keep) for keep in (True, False))
    for split in ("train", "validation", "test"):
        assert torch.equal(everything(kept, split).perturbed, everything(anew, split).perturbed)
    if draws == 1:
        return
    index = torch.arange(50)
    epochs = [anew.pairs("train", index, epoch) for epoch in range(12)]
    of_fog = [
        {tuple((pairs.perturbed[i].flatten()[:40] * 255).int().tolist()) for pairs in epochs if pairs.kind[i] == 1}
        for i in range(50)
    ]
    most = max(map(len, of_fog))
    assert most == draws if draws else most > 2


def test_one_draw_is_one_corruption_in_every_epoch():
    data = module(keep=False)
    epochs = [data.pairs("train", torch.arange(50), epoch) for epoch in range(12)]
    for number in range(50):
        of_fog = [pairs.perturbed[number] for pairs in epochs if pairs.kind[number] == 1]
        assert all(torch.equal(image, of_fog[0]) for image in of_fog)


def test_corruptions_rest_as_levels():
    data = module()
    everything(data, "train")
    assert data._kept["train"].dtype == torch.uint8
    assert data._kept["train"].shape == (3, 50, 3, 32, 32)


def test_files_hold_what_is_generated(tmp_path):
    written = write_corrupted(source().train, Plan("train", KINDS), tmp_path)
    assert written == ["contrast_5.npy", "fog_5.npy", "motion_blur_5.npy"]
    assert np.load(tmp_path / "fog_5.npy").shape == (60, 32, 32, 3)
    read, made = module(corrupted=str(tmp_path)), module()
    for split in ("train", "validation"):
        assert torch.equal(everything(read, split).perturbed, everything(made, split).perturbed)
    assert torch.equal(
        everything(module(corrupted=str(tmp_path), keep=False), "train").perturbed, everything(made, "train").perturbed
    )


def archive(folder, kinds, severities=(1, 2, 3, 4, 5)):
    write_corrupted(source().test, Plan("test", tuple(kinds), tuple(severities), "archive"), folder)


@pytest.mark.parametrize("place", ["cifar10c", "cifar10/CIFAR-10-C", "", "cifar10c/CIFAR-10-C/CIFAR-10-C"])
def test_an_archive_one_folder_off_is_named_and_not_replaced(tmp_path, place):
    folder = tmp_path / place
    archive(folder, KINDS)
    (folder / "corruptions.json").unlink()  # the published archive has no manifest
    for wanted in ("auto", "archive"):
        with pytest.raises(InputError, match=re.escape(f"{folder} looks like CIFAR-10-C")):
            module(test_images=wanted, root=str(tmp_path))
    assert module(test_images="generated", root=str(tmp_path)).count("test")


def test_another_data_sets_corruptions_are_left_alone(tmp_path):
    folder = tmp_path / "CIFAR-100-C"
    archive(folder, KINDS)
    (folder / "corruptions.json").unlink()
    np.save(folder / "labels.npy", np.arange(100, dtype=np.uint8))
    assert module(test_images="auto", root=str(tmp_path)).count("test")


def test_an_archive_without_labels_is_named(tmp_path):
    folder = tmp_path / "cifar10c" / "CIFAR-10-C"
    archive(folder, KINDS)
    for name in ("labels.npy", "corruptions.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"with its labels\.npy"):
        module(test_images="auto", root=str(tmp_path))


def test_generated_test_images_are_said_to_be(tmp_path, capsys):
    module(test_images="auto", root=str(tmp_path))
    assert "has no CIFAR-10-C: test images are corrupted here" in capsys.readouterr().err


def test_the_archive_is_used_where_there_is_one(tmp_path):
    folder = tmp_path / "cifar10c" / "CIFAR-10-C"
    archive(folder, KINDS)
    marked = np.load(folder / "fog.npy")
    marked[4 * 20 : 5 * 20] = 7
    np.save(folder / "fog.npy", marked)
    (folder / "corruptions.json").unlink()  # the published one has none
    pairs = everything(module(test_images="auto", root=str(tmp_path)), "test")
    assert (to_levels(pairs.perturbed[pairs.kind == 1]) == 7).all()
    made = everything(module(), "test")
    assert torch.equal(pairs.perturbed[pairs.kind != 1], made.perturbed[made.kind != 1])
    grid = CorruptionGrid(["fog"], [4, 5], "archive", str(tmp_path))
    data = module(test_size=8)
    grid.setup(data)
    data = module()
    rows = torch.arange(20)
    originals = data.splits["test"].images
    assert (grid.images("fog", 5, originals, rows) * 255 == 7).all()
    generated = CorruptionGrid(["fog"], [4, 5], "generated").images("fog", 4, originals, rows)
    assert torch.equal(grid.images("fog", 4, originals, rows), generated)


def test_an_interrupted_folder_goes_on_and_is_verified(tmp_path, capsys):
    plan = Plan("train", KINDS)
    write_corrupted(source().train, Plan("train", KINDS[:1]), tmp_path)
    (tmp_path / ".fog_5.npy.part").write_bytes(b"half")
    assert write_corrupted(source().train, plan, tmp_path) == ["fog_5.npy", "motion_blur_5.npy"]
    assert write_corrupted(source().train, plan, tmp_path) == []
    content = (tmp_path / "fog_5.npy").read_bytes()
    (tmp_path / "fog_5.npy").write_bytes(content[:-100])
    assert write_corrupted(source().train, plan, tmp_path) == ["fog_5.npy"]
    assert (tmp_path / "fog_5.npy").read_bytes() == content
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="begun with other settings \\(seed=0\\)"):
        write_corrupted(source().train, Plan("train", KINDS, seed=1), tmp_path)
    (tmp_path / "corruptions.json").write_text("{")
    with pytest.raises(InputError, match="is not readable"):
        write_corrupted(source().train, plan, tmp_path)
    (tmp_path / "corruptions.json").unlink()
    with pytest.raises(InputError, match=r"files that this command did not write \(contrast_5.npy, .*labels.npy, mot"):
        write_corrupted(source().train, plan, tmp_path)
    assert (tmp_path / "fog_5.npy").read_bytes() == content


@pytest.mark.parametrize("count", [256, 1000])
def test_labels_beyond_a_byte_do_not_wrap_around(tmp_path, count):
    images = Split(source().train.images[:3], torch.tensor([0, count - 1, 2]))
    write_corrupted(images, Plan("train", ("contrast",), (1, 5), "archive"), tmp_path)
    stored = np.load(tmp_path / "labels.npy")
    assert stored.tolist() == [0, count - 1, 2] * 2
    assert (stored.dtype == np.uint8) == (count <= 256)
    Corrupted(tmp_path, 3, (3, 32, 32)).check(["contrast"], [1, 5], images, "train")


def test_a_folder_may_get_frost_later(tmp_path):
    write_corrupted(source().train, Plan("train", ("contrast",)), tmp_path)
    assert write_corrupted(source().train, Plan("train", ("contrast", "frost")), tmp_path) == ["frost_5.npy"]
    assert json.loads((tmp_path / "corruptions.json").read_text())["frost"] == textures.source()


def test_the_command_writes_and_says_so(tmp_path, capsys):
    common = [str(tmp_path / "out"), "--data", "photos", "--split", "test", "--kinds", "held_out", "fog", "fog"]
    main(["corrupt", *common, "--severities", "2", "3", "--layout", "archive"])
    assert "4 files, 4 written" in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "spatter.npy").shape == (2000, 32, 32, 3)
    manifest = json.loads((tmp_path / "out" / "corruptions.json").read_text())
    assert manifest["severities"] == [2, 3]
    assert manifest["frost"] is None
    read = Corrupted(tmp_path / "out", 1000, (3, 32, 32))
    images = photos().test
    read.check(["fog"], [2, 3], images, "test")
    with pytest.raises(InputError, match=r"lacks fog \(severity 5\), snow \(severity 5\), snow \(severity 2\)"):
        read.check(["fog", "snow"], [5, 2], images, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "frog"], "no corruption 'frog': did you mean fog"),
        (["--severities", "7"], "no severity 7"),
    ],
)
def test_the_command_refuses_before_it_reads(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["corrupt", str(tmp_path / "out"), "--data-dir", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["fogs"]}, "no corruption 'fogs': did you mean fog"),
        ({"kinds": []}, "data.kinds needs at least one corruption"),
        ({"kinds": "fog"}, "kinds must be a list, got 'fog'"),
        ({"kinds": [5]}, "kinds must be a list whose entry 0 is text"),
        ({"severity": 5.5}, "severity must be a whole number at least 1 and at most 5, got 5.5"),
        ({"kinds": ["fog", "fog"]}, "names a corruption or severity twice: fog, fog"),
        ({"severity": 6}, "severity must be a whole number at least 1 and at most 5, got 6"),
        ({"pairing": "both"}, "data.pairing must be one of centred, original_perturbed, perturbed_only"),
        ({"pairing": "perturbed_only", "kinds": ["fog"]}, "needs two kinds"),
        ({"test_images": "zenodo"}, "test_images must be one of auto, archive, generated"),
        ({"test_images": "archive", "root": "nowhere"}, "nowhere has no cifar10c/CIFAR-10-C: place the archive"),
        ({"test_images": "archive"}, "no data root is named"),
        ({"corrupted": "nowhere"}, "there is no folder nowhere"),
        ({"corrupted": "x", "draws_per_example": None}, "data.draws_per_example=1"),
        (
            {"source": grey},
            "are for RGB",
        ),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        module(**changes)


def test_bad_files_are_named(tmp_path):
    write_corrupted(source().train, Plan("train", KINDS), tmp_path)
    fog = tmp_path / "fog_5.npy"
    content = fog.read_bytes()
    fog.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"fog_5\.npy is truncated or not a NumPy file"):
        module(corrupted=str(tmp_path))
    np.save(fog, np.zeros((60, 32, 32, 3), np.float32))
    with pytest.raises(InputError, match=r"fog_5\.npy: expected uint8 \[60, 32, 32, 3\], got float32"):
        module(corrupted=str(tmp_path))
    for content in (b"", b"no array"):
        fog.write_bytes(content)
        with pytest.raises(InputError, match=r"fog_5\.npy is truncated or not a NumPy file"):
            module(corrupted=str(tmp_path))
    fog.unlink()
    with pytest.raises(InputError, match=r"lacks fog \(severity 5\)"):
        module(corrupted=str(tmp_path))
    folder = tmp_path / "cifar10c" / "CIFAR-10-C"
    archive(folder, KINDS)
    np.save(folder / "labels.npy", np.zeros(100, np.uint8))
    with pytest.raises(InputError, match="does not have the labels of the data"):
        module(test_images="archive", root=str(tmp_path))
    grid = CorruptionGrid(["fog", "snow"], [1], "archive", str(tmp_path))
    with pytest.raises(InputError, match=r"lacks snow \(severity 1\)"):
        grid.setup(module())


def test_files_of_other_images_are_refused(tmp_path):
    others = photos(32, 60, 20, seed=1)  # with the same labels
    write_corrupted(others.train, Plan("train", KINDS), tmp_path / "train")
    with pytest.raises(InputError, match="was made of the train split of other data"):
        module(corrupted=str(tmp_path / "train"))
    write_corrupted(photos(32, 120, 20).train, Plan("train", KINDS), tmp_path / "longer")
    with pytest.raises(InputError, match=r"expected uint8 \[60, 32, 32, 3\], got uint8 \[120, 32, 32, 3\]"):
        module(corrupted=str(tmp_path / "longer"))
    folder = tmp_path / "cifar10c" / "CIFAR-10-C"
    write_corrupted(photos(32, 60, 40).test, Plan("test", KINDS, (1, 2, 3, 4, 5), "archive"), folder)
    with pytest.raises(InputError, match=r"expected uint8 \[100, 32, 32, 3\], got uint8 \[200"):
        module(test_images="archive", root=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": []}, "at least one corruption"),
        ({"severities": []}, "at least one corruption"),
        ({"severities": [5, 5]}, "twice"),
        ({"examples": 0}, "examples must be a whole number at least 1"),
        ({"test_images": "zenodo"}, "test_images must be one of auto, archive, generated"),
    ],
)
def test_bad_grids_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        CorruptionGrid(**arguments)


def test_one_corruption_is_a_perturbation_like_others():
    perturbation = OneCorruption("fog", 3)
    assert perturbation.name == "fog"
    images = source().test.images[:4].float() / 255
    keys = perturbation.draw(torch.arange(4), (3, 32, 32))
    changed = perturbation.apply(images, keys)
    assert changed.dtype == torch.float32
    assert not torch.equal(changed, images)
    assert torch.equal(changed, perturbation.apply(images, keys))
    assert not torch.equal(changed, perturbation.apply(images, keys + 1))
    with pytest.raises(InputError, match="for RGB images"):
        perturbation.draw(torch.arange(4), (1, 32, 32))
    with pytest.raises(InputError, match="did you mean"):
        OneCorruption("fig")
