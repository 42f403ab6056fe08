"""Own pairs: layouts, images of every kind, splits by group, and bad input that is named all at once."""

import csv
import functools
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentrobust.data.pairs.packing
from latentrobust.batch import asked_once
from latentrobust.data.__main__ import main
from latentrobust.data.loader import IndexLoader
from latentrobust.data.pairs.from_arrays import pairs
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.data.pairs.inspection import inspect
from latentrobust.data.pairs.inspection import picture as draw_pairs
from latentrobust.data.pairs.listing import ProblemsError
from latentrobust.data.pairs.reading import read_pairs
from latentrobust.data.pictures import decoded, size_and_colour
from latentrobust.errors import InputError, RobustnessWarning

LIGHTS = 64


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTROBUST_CACHE", str(tmp_path / "cache"))


def save(path, level=100, size=(6, 8), mode="L", **options):
    """An image of one level; ``size`` is height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = level if mode in ("L", "I;16") else (level, level, level)
    Image.new(mode, size[::-1], colour).save(path, **options)


def faces(root, people=4, poses=3, lights=LIGHTS, size=(96, 84)):
    """Grey lighting pairs: a folder per person and pose, a file per light, named with both; some are missing."""
    for person in range(people):
        for pose in range(poses):
            group = root / f"person{person}" / f"P{pose:02d}"
            for light in range(lights):
                if person == 1 and light % 5 == pose:
                    continue
                level = 3 * light + person + 10 * pose
                save(group / f"P{pose:02d}_A{light - 32:+03d}.pgm", level, size)
            (group / "info.txt").write_text("no image")
    return root


def test_lighting_pairs_of_many_groups(tmp_path):
    read = read_pairs(faces(tmp_path / "faces"), label="parent")
    assert read.image_shape == (1, 96, 84)
    assert len(read) == 4 * 3 * LIGHTS - 3 * 13
    assert len(read.kinds) == LIGHTS
    assert read.kinds[0] == "A+00"
    assert read.groups[0] == "person0/P00"
    assert read.class_names == ("person0", "person1", "person2", "person3")
    assert not read.centred
    assert read.ignored == 12
    data = GivenPairs(read, validation=2, test=4)
    assert [data.count(split) for split in ("train", "validation", "test")] == [
        int(torch.isin(read.group, read.group[data.rows[split]].unique()).sum()) for split in data.rows
    ]
    for split in data.rows:
        batch = data.pairs(split, torch.arange(data.count(split)))
        level = (batch.x[:, 0, 0, 0] * 255).round().long(), (batch.perturbed[:, 0, 0, 0] * 255).round().long()
        names = [read.groups[group] for group in read.group[data.rows[split]].tolist()]
        offset = torch.tensor([int(name[6]) + 10 * int(name[-1]) for name in names])
        lights = [((part - offset) // 3) for part in level]
        assert all(((part - offset) % 3 == 0).all() for part in level), "both halves are of the group"
        assert (lights[0] != lights[1]).all()
        assert (lights[1] - 32 == torch.tensor([int(read.kinds[kind][1:]) for kind in batch.kind])).all()
    drawn = torch.stack([data.pairs("train", torch.arange(64), epoch).x[:, 0, 0, 0] for epoch in range(200)])
    assert (torch.tensor([len(column.unique()) for column in drawn.T]) > 40).all(), "any other light of the group"


def test_an_original_centres_pairs(tmp_path):
    root = faces(tmp_path / "faces", people=3, lights=8, size=(8, 8))
    with pytest.raises(ProblemsError, match="a problem: group person1/P00 lacks A-32") as caught:
        read_pairs(root, original="A-32")
    assert len(caught.value.problems) == 1
    read = read_pairs(root, original="A-32", incomplete="skip")
    assert read.centred
    assert len(read.groups) == 8
    assert "A-32" not in read.kinds
    data = GivenPairs(read, validation=1, test=2)
    batch = data.pairs("test", torch.arange(data.count("test")))
    assert batch.index.unique().tolist() == [0, 1]
    assert len(batch.x.flatten(1).unique(dim=0)) == 2
    with pytest.raises(InputError, match=r"original=A-320: no group .* did you mean A-32\?"):
        read_pairs(root, original="A-320")


def test_parallel_folders_of_mixed_formats_and_sizes(tmp_path):
    root = tmp_path / "both"
    endings = ["png", "jpg", "bmp", "tif", "webp"]
    for number in range(10):
        save(root / "clean" / f"a{number}.{endings[number % 5]}", 10 * number, (8 + number % 3, 9), "RGB")
        for kind in ("fog", "rain")[: 1 + number % 2]:
            save(root / "perturbed" / kind / f"a{number}.{endings[(number + 1) % 5]}", 200, (8, 9 + number % 2), "RGB")
    with pytest.raises(InputError, match=r"several sizes, height×width 8×10 .*give one, such as data.size=\[8,10\]"):
        read_pairs(root)
    read = read_pairs(root, size=[8, 9])
    assert (len(read), read.kinds, read.centred) == (15, ("fog", "rain"), True)
    assert list(read.groups[:3]) == ["a0", "a1", "a2"]
    assert (read.images[read.perturbed].float() - 200).abs().max() <= 3


def test_natural_order_of_names_that_are_numbers(tmp_path):
    for group in range(3):
        for variant in range(1, 13):
            save(tmp_path / "own" / f"g{group}" / f"{variant}.png")
    assert read_pairs(tmp_path / "own").kinds == tuple(map(str, range(1, 13)))


def test_folders_called_train_and_test_are_splits(tmp_path):
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for group in range(count):
            for variant in ("a", "b"):
                save(tmp_path / "own" / split / f"g{group}" / f"{variant}.png")
    data = GivenPairs(read_pairs(tmp_path / "own"))
    assert [len(data.rows[split]) for split in ("train", "validation", "test")] == [8, 2, 4]


def manifest(root, rows, header="clean,perturbed,kind,label,split"):
    for name in ("a", "b", "c", "d", "e", "f"):
        save(root / "images" / f"{name}.png", ord(name))
    path = root / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def test_a_manifest_with_labels_and_splits(tmp_path):
    rows = [
        [f"images/{clean}.png", f"images/{perturbed}.png", kind, label, split]
        for clean, perturbed, kind, label, split in (
            ("a", "b", "fog", "cat", "train"),
            ("c", "d", "rain", "dog", "validation"),
            ("e", "f", "fog", "dog", "test"),
        )
    ]
    read = read_pairs(manifest(tmp_path, rows))
    data = GivenPairs(read)
    assert read.class_names == ("cat", "dog")
    assert data.pairs("test", torch.tensor([0])).labels.tolist() == [1]
    assert (data.pairs("validation", torch.tensor([0])).x * 255).round().unique().tolist() == [ord("c")]
    by_numbers = read_pairs(
        manifest(tmp_path, [[*row[:3], row[3].replace("cat", "7").replace("dog", "2"), row[4]] for row in rows])
    )
    assert by_numbers.label.tolist() == [7, 2, 2]
    assert by_numbers.class_names == ()


def test_pairs_that_share_a_file_are_one_group(tmp_path):
    rows = [["images/a.png", "images/b.png"], ["images/b.png", "images/c.png"], ["images/d.png", "images/e.png"]]
    assert read_pairs(manifest(tmp_path, rows, "clean,perturbed")).group.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("clean,disturbed", ["images/a.png", "images/b.png"], "lacks the column perturbed"),
        ("clean,perturbed,kinds", ["images/a.png", "images/b.png", "x"], "did you mean kind"),
        ("clean,perturbed,kind,kind", ["images/a.png", "images/b.png", "x", "y"], "kind twice"),
        ("clean,perturbed", ["images/a.png", "images/none.png"], "line 3: there is no file images/none.png"),
        ("clean,perturbed", ["images/a.png", "../outside.png"], "line 3: ../outside.png lies outside"),
        ("clean,perturbed", ["images/a.png", "/etc/hostname"], "line 3: /etc/hostname lies outside"),
        ("clean,perturbed", ["images/a.png", ""], "line 3: names no perturbed image"),
        ("clean,perturbed", ["images/a.png", "images/a.png"], "line 3: pairs a file with itself"),
        ("clean,perturbed", ["images/a.png", "images/b.png", "more"], "line 3: has more cells"),
        ("clean,perturbed,label", ["images/c.png", "images/d.png", ""], "line 3: has no label, and others have one"),
        ("clean,perturbed,label", ["images/a.png", "images/c.png", "9"], "line 3: gives label 9 to an image that has"),
        ("clean,perturbed,split", ["images/c.png", "images/d.png", "dev"], "line 3: split 'dev' is none of"),
        (
            "clean,perturbed,split",
            ["images/a.png", "images/d.png", "test"],
            "line 3: puts a group into test that",
        ),
        ("clean,perturbed,group", ["images/a.png", "images/d.png", "h"], "line 3: puts a file of another group"),
        ("clean,perturbed", ["images/a.png", "images/b.png"], "line 3: repeats an earlier pair"),
    ],
)
def test_bad_manifests_are_named_by_line(tmp_path, header, row, message):
    (tmp_path / "data").mkdir()
    save(tmp_path / "outside.png")
    first = ["images/a.png", "images/b.png", *{"label": ["1"], "split": ["train"], "group": ["g"]}.get(header[16:], [])]
    path = manifest(tmp_path / "data", [first, row], header)
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_everything_that_is_wrong_is_named_at_once_and_can_be_left_out(tmp_path):
    root = tmp_path / "own"
    for group in range(5):
        for variant in ("a", "b", "c"):
            save(root / f"g{group}" / f"{variant}.png")
    (root / "g0" / "a.png").write_bytes(b"")
    whole = (root / "g1" / "b.png").read_bytes()
    (root / "g1" / "b.png").write_bytes(whole[: len(whole) // 2])
    frames = [Image.new("L", (8, 6), level) for level in (0, 9)]
    frames[0].save(root / "g2" / "moving.gif", save_all=True, append_images=frames[1:])
    save(root / "g3" / "a.bmp")
    save(root / "g4" / "C.png")
    save(root / "alone" / "a.png")
    save(root / "g2" / "deep.tif", mode="L")
    Image.fromarray(np.full((6, 8), 0.5, np.float32)).save(root / "g2" / "deep.tif")
    with pytest.raises(ProblemsError) as caught:
        read_pairs(root)
    said = " ".join(caught.value.problems)
    for part in (
        "g0/a.png is not an image", "g1/b.png", "moving.gif has 2 pages", "several files for a",
        "names differ only in case", "group alone has one image", "deep.tif has pixels of type F",
    ):  # fmt: skip
        assert part in said
    assert len(caught.value.problems) == 7
    kept = read_pairs(root, incomplete="skip")
    assert sorted(kept.group.bincount().tolist()) == [2, 2, 2, 2, 3]
    assert len(kept.left_out) == 7


def test_unpaired_files_of_parallel_folders_are_named(tmp_path):
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "own" / "clean" / f"{name}.png")
        save(tmp_path / "own" / "perturbed" / "fog" / f"{name}.png")
    save(tmp_path / "own" / "clean" / "lonely.png")
    save(tmp_path / "own" / "perturbed" / "fog" / "other.png")
    with pytest.raises(ProblemsError, match=r"perturbed/fog/other.png has no .*clean/lonely.png has no image"):
        read_pairs(tmp_path / "own")


def test_images_that_pillow_reads_in_every_mode(tmp_path):
    root = tmp_path / "own"
    for group in range(3):
        base = root / f"g{group}"
        save(base / "grey.png", 100)
        save(base / "sixteen.png", 100 * 257, mode="I;16")
        big = np.full((6, 8), 100 * 257, ">u2")
        (base / "big_endian.pgm").write_bytes(b"P5 8 6 65535\n" + big.tobytes())
        Image.new("RGB", (8, 6), (100, 100, 100)).convert("CMYK").save(base / "ink.tif")
        Image.new("RGB", (8, 6), (100, 100, 100)).quantize(4).save(base / "palette.gif")
        Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(base / "clear.png")
        turned = Image.new("RGB", (6, 8), (100, 100, 100))
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(base / "turned.jpg", exif=exif)
    with pytest.raises(InputError, match=r"9 images are grey and 12 are in colour: give data\.colour=grey"):
        read_pairs(root)
    for colour, channels in (("grey", 1), ("colour", 3)):
        read = read_pairs(root, colour=colour, background=7)
        assert read.image_shape == (channels, 6, 8)
        for kind, name in enumerate(read.kinds):
            level = read.images[read.perturbed[read.kind == kind]].float()
            assert (level - (7 if name == "clear" else 100)).abs().max() <= 2, name


@pytest.mark.parametrize("pad", [False, True])
def test_images_are_resized_by_area_or_padded(tmp_path, pad):
    root = tmp_path / "own"
    for group in range(3):
        (root / f"g{group}").mkdir(parents=True)
        checks = ((np.indices((12, 24)).sum(0) % 2) * (200 - 4 * group)).astype(np.uint8)
        Image.fromarray(checks).save(root / f"g{group}" / "large.png")
        save(root / f"g{group}" / "small.png", 60, (3, 4))
    read = read_pairs(root, size=[6, 6], fit="pad" if pad else "resize", background=9)
    large, small = (read.images[read.perturbed[read.kind == kind]][0, 0].tolist() for kind in (0, 1))
    if pad:  # 12×24 becomes 3×6, and 3×4 stays
        assert large == [[9] * 6, [100] * 6, [100] * 6, [100] * 6, [9] * 6, [9] * 6]
        assert small == [[9] * 6, *[[9, 60, 60, 60, 60, 9]] * 3, [9] * 6, [9] * 6]
    else:
        assert large == [[100] * 6] * 6
        assert small == [[60] * 6] * 6


def test_images_are_packed_once_outside_the_data(tmp_path, monkeypatch):
    root = faces(tmp_path / "faces", people=2, poses=2, lights=4, size=(8, 8))
    before = sorted(root.rglob("*"))
    first = read_pairs(root)
    monkeypatch.setattr(latentrobust.data.pairs.packing, "_write", lambda *_: pytest.fail("packed again"))
    assert torch.equal(read_pairs(root).images, first.images)
    assert sorted(root.rglob("*")) == before
    with pytest.raises(InputError, match="inside the data"):
        read_pairs(root, cache=root / "packed")
    with pytest.raises(BaseException, match="packed again"):
        read_pairs(root, size=[4, 4])
    save(root / "person0" / "P00" / "P00_A-32.pgm", 77, (8, 8))
    with pytest.raises(BaseException, match="packed again"):
        read_pairs(root)


def arrays(count=12, **changed):
    generator = np.random.default_rng(0)
    x = generator.random((count, 3, 8, 8))
    return {"x": x, "x_tilde": np.clip(x + 0.1, 0, 1), "y": np.arange(count) % 3, **changed}


def test_pairs_of_arrays_tensors_and_files_are_the_same(tmp_path):
    given = arrays(kind=["fog", "rain"] * 6, group=np.arange(12) // 2)
    one = pairs(given["x"], given["x_tilde"], given["y"], kind=given["kind"], group=given["group"])
    two = pairs(
        torch.tensor(given["x"]), torch.tensor(given["x_tilde"]), torch.tensor(given["y"]), kind=given["kind"],
        group=torch.tensor(given["group"]),
    )  # fmt: skip
    np.savez(tmp_path / "own.npz", **given)
    (tmp_path / "folder").mkdir()
    for name, array in given.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    channels_last = {**given, "x": given["x"].transpose(0, 2, 3, 1), "x_tilde": given["x_tilde"].transpose(0, 2, 3, 1)}
    three = pairs(**channels_last)
    for other in (two, three, read_pairs(tmp_path / "own.npz"), read_pairs(tmp_path / "folder")):
        for name in ("images", "clean", "perturbed", "kind", "group", "label"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert other.kinds == ("fog", "rain")


def test_arrays_in_files_are_mapped_and_not_read_into_memory(tmp_path, monkeypatch):
    given = arrays(group=np.arange(12) // 2)
    monkeypatch.setattr("latentrobust.data.pairs.from_arrays.AT_ONCE", 5 * given["x"][0].nbytes)
    for name in ("x", "y"):
        given[name][1] = given[name][0]  # an example in two pairs is one image
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, array in given.items():
        np.save(folder / f"{name}.npy", array)
    read = read_pairs(folder)
    (packed,) = (tmp_path / "cache" / "pairs").glob("*.npy")
    assert packed.stat().st_size == 128 + 23 * given["x"][0].size
    assert torch.equal(read.images, pairs(**given).images)
    stamp = packed.stat().st_mtime_ns
    read_pairs(folder)
    assert packed.stat().st_mtime_ns == stamp
    given["x_tilde"][7, 0, 0, 0] = np.nan
    np.save(folder / "x_tilde.npy", given["x_tilde"])
    with pytest.raises(InputError, match="x_tilde, from image 5 on: image 2 contains NaN"):
        read_pairs(folder)
    assert list((tmp_path / "cache" / "pairs").glob("*")) == [packed]


def test_a_manifest_in_the_folder_is_not_ignored(tmp_path):
    root = faces(tmp_path / "faces", people=1, lights=3, size=(4, 4))
    (root / "pairs.csv").write_text("clean,perturbed\n")
    with pytest.raises(InputError, match=r"has a manifest in it: give data.root=.*pairs.csv"):
        read_pairs(root)
    assert len(read_pairs(root, layout="groups"))
    (root / "pairs.csv").write_text("name,age\n")
    assert len(read_pairs(root))


def test_the_same_example_in_several_pairs_is_one_group():
    given = arrays()
    twice = pairs(np.concatenate([given["x"]] * 2), np.concatenate([given["x_tilde"], 1 - given["x"]]))
    assert len(twice.groups) == 12
    data = GivenPairs(twice)
    assert {split: data.examples(split) for split in ("validation", "test")} == {"validation": 1, "test": 2}
    assert data.count("test") == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_tilde": np.zeros((12, 3, 8, 9))}, "same shape"),
        ({"x": np.full((12, 3, 8, 8), 1.5)}, "values from 1.5"),
        ({"x": np.full((12, 3, 8, 8), np.nan)}, "NaN"),
        ({"x": np.zeros((12, 4, 8, 8))}, "1 or 3 channels"),
        ({"x": np.zeros((12, 3, 8, 8), np.int64)}, "uint8 images or floats"),
        ({"y": np.arange(11)}, "y must be 12 labels"),
        ({"y": np.arange(12) - 1}, "from -1"),
        ({"y": np.arange(12) / 2}, "whole numbers"),
        ({"kind": ["fog"]}, "kind must have one entry per pair"),
        ({"split": ["train"] * 11 + ["dev"]}, "got 'dev'"),
        ({"split": ["train", "test"] * 6, "group": [0] * 12}, "group 0 is in the splits"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(changed, message):
    with pytest.raises(InputError, match=message):
        pairs(**arrays(**changed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 6, "test": 6}, "leave no group of 12"),
        ({"validation": 1.5}, "validation must be a whole number at least 1 or"),
        ({"train_size": 12}, "there are 9 train groups"),
    ],
)
def test_splits_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GivenPairs(pairs(**arrays()), **options)


def test_a_split_without_pairs_is_refused():
    with pytest.raises(InputError, match="no group is in the test split"):
        GivenPairs(pairs(**arrays(split=["train"] * 12)))


def test_missing_labels_are_not_class_0():
    data = GivenPairs(pairs(*(arrays()[name] for name in ("x", "x_tilde"))))
    assert not data.has_labels
    assert data.pairs("train", torch.arange(3)).y is None
    with pytest.raises(InputError, match=r"no labels, so a set can be learned .*data.label=parent"):
        _ = data.classes


def test_classes_are_spread_over_the_splits():
    given = arrays(count=60)
    data = GivenPairs(pairs(given["x"], given["x_tilde"], np.arange(60) % 3), test=12, validation=6)
    for split, each in (("test", 4), ("validation", 2), ("train", 14)):
        labels = data.pairs(split, torch.arange(data.count(split))).labels
        assert labels.bincount().tolist() == [each] * 3


def test_an_epoch_may_see_more_or_fewer_pairs():
    data = functools.partial(GivenPairs, pairs(**arrays(count=40)), batch_size=4)
    fewer = data(pairs_per_epoch=10)
    assert fewer.count("train") == 10
    epochs = [fewer.pairs("train", torch.arange(10), epoch).x for epoch in range(2)]
    assert not torch.equal(*epochs)
    more = data(pairs_per_epoch=56).pairs("train", torch.arange(56)).x.flatten(1)
    assert len(more.unique(dim=0)) == 28


def test_inspect_says_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = faces(tmp_path / "faces", people=3, lights=8, size=(8, 10))
    save(root / "person0" / "P01" / "P01_A-27.pgm", 5, (9, 10))
    (root / "person2" / "P00" / "P00_A-27.pgm").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(root), "--label", "parent", "--picture", "shown.png"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    said = captured.out
    assert "1 problem, listed above" in captured.err
    for part in (
        "8×10 (", "9×10 (1)", "several sizes: give one, such as data.size=[8,10]", "8 kinds", "person1 (",
        "splits: train 6 groups", "a problem; data.incomplete=skip", "P00_A-27.pgm is not an image", "9 other files",
    ):  # fmt: skip
        assert part in said
    with Image.open(tmp_path / "shown.png") as picture:
        assert picture.width > 8 * 100  # small images are enlarged, so that there is room for the names of their kinds
    # A run with data.incomplete=skip would go on, and so does the look at it; splits as asked.
    asked = ["inspect", str(root), "--incomplete", "skip", "--picture", "shown.png"]
    splits = ["--test", "3", "--validation", "1"]
    for options, reason in ((splits, "images have several sizes"), (["--size", "8", "10", "--test", "40"], "groups")):
        with pytest.raises(SystemExit) as stopped:
            main([*asked, *options])
        assert stopped.value.code == 2
        refused = capsys.readouterr().err
        assert "a run would not start: " in refused
        assert reason in refused
    main([*asked, *splits, "--size", "8", "10"])
    said = capsys.readouterr().out
    assert "a problem; left out is" in said
    for part in ("train 5 groups", "validation 1 groups", "test 3 groups"):
        assert part in said
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(root), "--test", "1.5"])
    assert stopped.value.code == 2
    assert "share between 0 and 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "is_dark"), [(4095, True), (0, True), (40000, False)])
def test_inspect_points_out_images_that_are_almost_black(tmp_path, level, is_dark):
    for thing in "abc":
        for variant in ("original", "dark"):
            save(tmp_path / "twelve" / thing / f"{variant}.png", level, mode="I;16")
    (said,) = [line for line in inspect(tmp_path / "twelve").lines if line.startswith("dark: ")] or [""]
    assert said.startswith(f"dark: no value of the first 6 images is above {round(level / 257)} of 255") == is_dark


def test_inspect_replaces_no_picture_of_others(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = faces(tmp_path / "faces", people=3, lights=4, size=(40, 200))
    for _ in range(2):  # its own picture it does replace
        main(["inspect", str(root), "--label", "parent"])
        assert "pairs.png: some of the pairs" in capsys.readouterr().out
    picture = Path("pairs.png").read_bytes()
    for other in (b"", b"a text"):
        Path("pairs.png").write_bytes(other)
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", str(root)])
        assert stopped.value.code == 2
        assert "name another one with --picture FILE" in capsys.readouterr().err
        assert Path("pairs.png").read_bytes() == other
    main(["inspect", str(root), "--label", "parent", "--picture", "pairs.png"])  # as asked
    assert Path("pairs.png").read_bytes() == picture
    one = pairs(np.zeros((1, 3, 9, 12)), np.ones((1, 3, 9, 12)))
    drawn = tmp_path / "one.png"
    draw_pairs(one, drawn)
    with Image.open(drawn) as image:
        assert image.convert("L").getextrema() == (0, 255)


def test_labels_are_numbers_names_or_identifiers():
    x = np.random.default_rng(0).random((4, 8, 8))
    named = pairs(x, x * 0.5, ["b", "a", "b", "c"])
    assert named.class_names == ("a", "b", "c")
    assert named.label.tolist() == [1, 0, 1, 2]
    identified = pairs(x, x * 0.5, np.array([10**11, 7, 10**11, 7]))
    assert identified.class_names == ("7", "100000000000")
    assert identified.label.tolist() == [1, 0, 1, 0]
    assert "2 classes" in identified.describe()
    assert pairs(x, x * 0.5, np.arange(4, dtype=np.uint64)).label.tolist() == [0, 1, 2, 3]
    assert pairs(torch.from_numpy(x).bfloat16(), torch.from_numpy(x).bfloat16()).image_shape == (1, 8, 8)


def test_large_numbers_in_a_manifest_are_names(tmp_path):
    rows = ["clean,perturbed,label,group"]
    for number, person in enumerate(["100000000000", "7", "12345678901234567890123"]):
        for half in "ab":
            save(tmp_path / f"{half}{number}.png", 30 * number + (half == "b"))
        rows.append(f"a{number}.png,b{number}.png,{person},g{number}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    found = read_pairs(tmp_path / "pairs.csv")
    assert found.class_names == ("7", "100000000000", "12345678901234567890123")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": ["a", None, "b", "c"]}, "y lacks 1 of 4 labels"),
        ({"y": [[1], [2, 3], [4], [5]]}, "y is no array"),
        ({"group": [None, "a", "b", "c"]}, "group lacks an entry for some pairs"),
        ({"group": [[1], [2, 3], [4], [5]]}, "group is no array"),
        ({"x": [[[1.0]], [[1.0, 2.0]]]}, "x is no array"),
        ({"x": np.full((4, 8, 8), "a")}, "x must be numbers"),
    ],
)
def test_what_is_no_column_is_refused_in_one_line(changed, message):
    x = np.random.default_rng(0).random((4, 8, 8))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        pairs(**{"x": x, "x_tilde": x * 0.5, **changed})
    assert "\n" not in str(caught.value)


def test_one_image_in_two_groups_is_refused():
    x = np.random.default_rng(0).random((4, 8, 8))
    twice, changed = np.concatenate([x, x]), np.concatenate([x * 0.5, x * 0.7])
    with pytest.raises(InputError, match="the groups 0 and 4 have the same image"):
        pairs(twice, changed, group=np.arange(8))
    assert len(pairs(twice, changed, group=np.arange(8) % 4).groups) == 4


def test_options_for_image_files_are_not_ignored_for_arrays(tmp_path):
    x = np.random.default_rng(0).random((4, 8, 8))
    np.savez(tmp_path / "a.npz", x=x, x_tilde=x * 0.5)
    with pytest.raises(InputError, match=r"data.size=\[4, 4\], data.colour=colour is for image files"):
        read_pairs(tmp_path / "a.npz", size=[4, 4], colour="colour")
    assert len(read_pairs(tmp_path / "a.npz")) == 4


def test_capitals_of_parallel_folders_do_not_matter_but_those_of_kinds_do(tmp_path):
    for number in range(3):
        save(tmp_path / "one" / "Clean" / f"{number}.png", 40 * number)
        save(tmp_path / "one" / "Perturbed" / f"{number}.png", 40 * number + 9)
        save(tmp_path / "two" / "clean" / f"{number}.png", 40 * number)
        for kind in ("dark", "Dark"):
            save(tmp_path / "two" / "perturbed" / kind / f"{number}.png", 40 * number + 9)
    found = read_pairs(tmp_path / "one")
    assert (len(found), found.centred) == (3, True)
    with pytest.raises(InputError, match="the kinds Dark and dark differ in case alone"):
        read_pairs(tmp_path / "two")
    assert inspect(tmp_path / "two").problems == ("the kinds Dark and dark differ in case alone",)


def test_nothing_is_packed_before_everything_was_looked_at(tmp_path):
    for half in "ab":
        save(tmp_path / "d" / f"{half}.png", 50)
    rows = "clean,perturbed\na.png,b.png\na.png,nowhere.png\na.png,b\0.png\n"
    (tmp_path / "d" / "pairs.csv").write_text(rows)
    with pytest.raises(InputError, match=r"line 3: there is no file nowhere.png; line 4: .*NUL byte"):
        read_pairs(tmp_path / "d" / "pairs.csv", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_when_no_image_is_left_all_reasons_are_said(tmp_path):
    for number in range(2):
        for name in "ab":
            (tmp_path / f"g{number}").mkdir(exist_ok=True)
            (tmp_path / f"g{number}" / f"{name}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"4 problems: .*g0/a.png is not an image.*g1/b.png is not an image"):
        read_pairs(tmp_path, incomplete="skip")


def test_transparent_levels_and_32_bits(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "plain.png")
    Image.fromarray(ramp).save(tmp_path / "transparent.png", transparency=0)
    plain, transparent = (decoded(tmp_path / f"{name}.png", "L") for name in ("plain", "transparent"))
    assert torch.equal(plain, transparent)
    assert len(plain.unique()) > 32
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(InputError, match="pixels of 32 bits"):
        size_and_colour(tmp_path / "wide.tif")


def test_splits_in_folders_are_all_there_or_none(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            save(tmp_path / "d" / split / f"g_{split}" / f"{name}.png", 50)
    with pytest.raises(InputError, match=r"has train/, val/ but no test/: give all splits, or none"):
        read_pairs(tmp_path / "d")
    for name in "ab":
        save(tmp_path / "d" / "test" / "g_test" / f"{name}.png", 60)
    assert set(read_pairs(tmp_path / "d").split) == {"train", "validation", "test"}


def test_a_folder_called_as_a_part_of_its_files_names_loses_none(tmp_path):
    """``1/11.png`` is no variant ``1``; ``a/a_dark.png`` is ``dark``, unless ``a/dark.png`` is there too."""
    for group in ("1", "2"):
        for number in range(1, 13):
            save(tmp_path / "numbers" / group / f"{number}.png", number)
    found = read_pairs(tmp_path / "numbers", original="1")
    assert len(found.clean) == 2 * 11
    assert found.kinds == tuple(str(number) for number in range(2, 13))
    assert found.images[found.clean].flatten(1).float().mean(1).tolist() == [1] * 22
    for group in ("a", "b"):
        for level, name in enumerate((f"{group}_dark", f"{group}-bright", "dark")):
            save(tmp_path / "named" / group / f"{name}.png", level)
    assert len(read_pairs(tmp_path / "named").perturbed) == 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_ask_an_image_once_between_them(world):
    """Whichever of them has its first pair: several pairs of a kind are dealt to several processes."""
    x = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 1, 8, 8)
    module = pairs(x.repeat_interleave(3, 0), x.repeat_interleave(3, 0) + 1).as_data(2, 6, batch_size=4)
    asked = []
    for rank in range(world):
        own = torch.zeros(6, dtype=torch.bool)
        for indices in IndexLoader("test", module.count("test"), 4, shuffle=False, rank=rank, world=world):
            batch = module.pairs("test", indices.examples)
            asked += batch.index[asked_once(batch, module.first_kinds("test"), own)].tolist()
    assert sorted(asked) == list(range(6))


def test_images_with_a_gradient_are_refused_in_one_line():
    with pytest.raises(InputError, match="x is no array"):
        pairs([torch.zeros(1, 8, 8, requires_grad=True)] * 2, torch.zeros(2, 1, 8, 8))


def test_photographs_paired_in_both_orders_stay_in_one_split():
    """An image may be the first half of one pair and the second of another: all of its pairs belong together."""
    photographs = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 6, 3), dtype=np.uint8)
    first, second, third = photographs.swapaxes(0, 1)
    x, x_tilde = np.concatenate([first, second, second]), np.concatenate([second, first, third])
    found = pairs(x, x_tilde)
    assert len(found.groups) == 40
    assert [len(set(found.group[place::40].tolist())) for place in range(40)] == [1] * 40
    with pytest.raises(InputError, match="the groups 0 and 40 have the same image"):
        pairs(x, x_tilde, group=np.arange(120))


def test_perturbations_that_leave_nothing_do_not_join_images():
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    assert len(pairs(x, np.zeros_like(x)).groups) == 40
    assert len(pairs(x, np.zeros_like(x), group=np.arange(40)).groups) == 40


def test_links_to_folders_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "pairs", tmp_path / "elsewhere"
    for place in (root / "a", elsewhere / "b"):
        place.mkdir(parents=True)
        for name in ("one", "two"):
            Image.fromarray(np.full((6, 6), len(name) + ord(place.name) + ord(name[0]), np.uint8)).save(
                place / f"{name}.png"
            )
    (root / "b").symlink_to(elsewhere / "b")
    assert len(read_pairs(root).groups) == 2
    (root / "c").symlink_to(root / "a")
    (root / "a" / "round").symlink_to(root)
    with pytest.raises(InputError, match=r"(a/round is a link to the root|c is a link to a), which is read already"):
        read_pairs(root)
    assert len(read_pairs(root, incomplete="skip").groups) == 2


def test_a_variant_that_was_cut_short_is_meant(tmp_path):
    for number in range(3):
        for name in ("original", "left", "right"):
            save(tmp_path / f"{number}" / f"{name}.png", 40 * number)
    with pytest.raises(InputError, match="did you mean original"):
        read_pairs(tmp_path, original="orig")


def test_arrays_of_the_levels_0_and_1_are_pointed_out(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (8, 1, 6, 6), dtype=np.uint8)
    with pytest.warns(RobustnessWarning, match="nothing but the levels 0 and 1 of 255"):
        pairs(x, 1 - x)
    np.savez(tmp_path / "binary.npz", x=x, x_tilde=1 - x)
    assert any(
        line.startswith("dark: no value of the first 16 images") for line in inspect(tmp_path / "binary.npz").lines
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs(x.astype(np.float32), 1 - x.astype(np.float32))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_share_of_all_groups_is_not_one_group(split):
    x = np.random.default_rng(0).random((8, 1, 6, 6), dtype=np.float32)
    with pytest.raises(InputError, match=f"data.{split}=1.0 would be all groups"):
        GivenPairs(pairs(x, 1 - x), **{split: 1.0})
    assert GivenPairs(pairs(x, 1 - x), **{split: 1}).examples(split) == 1


@pytest.mark.parametrize("how", ["copies", "links", "plain"])
def test_copies_in_several_groups_are_named_and_can_be_left_out(tmp_path, how):
    generator = np.random.default_rng(0)
    root = tmp_path / "things"
    for number in range(8):
        group = root / f"thing{number}"
        group.mkdir(parents=True)
        for variant in ("original", "dark"):
            Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(group / f"{variant}.png")
    if how == "copies":
        shutil.copytree(root / "thing3", root / "Kopie von thing3")
    elif how == "links":
        (root / "thing5" / "original.png").unlink()
        (root / "thing5" / "original.png").symlink_to(root / "thing2" / "original.png")
    else:  # which all may be
        for number in (1, 4):
            Image.new("RGB", (5, 6), (255, 0, 40)).save(root / f"thing{number}" / "dark.png")
        for options in ({}, {"size": [9, 9], "fit": "pad", "background": 7}):
            assert len(read_pairs(root, original="original", **options)) == 8
        return
    names = ("Kopie von thing3", "thing3") if how == "copies" else ("thing2", "thing5")
    said = f"the groups {names[0]} and {names[1]} have the same image"
    with pytest.raises(ProblemsError, match=said):
        read_pairs(root, original="original")
    assert any(said in problem for problem in inspect(root, original="original").problems)
    read = read_pairs(root, original="original", incomplete="skip")
    assert len(read) == (8 if how == "copies" else 7)
    assert ("thing3" if how == "copies" else "thing5") not in read.groups


@pytest.mark.parametrize("place", ["train", "test"])
def test_copies_within_a_split_of_the_data_s_own_are_no_fault(tmp_path, place):
    generator = np.random.default_rng(0)
    root = tmp_path / "things"
    for split in ("train", "test"):
        for number in range(4):
            group = root / split / f"thing{number}"
            group.mkdir(parents=True)
            for variant in ("original", "dark"):
                Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(group / f"{variant}.png")
    shutil.copytree(root / "train" / "thing0", root / place / "copy")
    if place == "train":
        assert len(read_pairs(root, original="original")) == 9
    else:
        with pytest.raises(ProblemsError, match=r"the groups (test/copy|train/thing0) and .* have the same image"):
            read_pairs(root, original="original")


@pytest.mark.parametrize(("mark", "said"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_manifest_with_other_marks_between_its_columns_is_told_so(tmp_path, mark, said):
    for name in "ab":
        save(tmp_path / f"{name}0.png", 10)
        save(tmp_path / f"{name}1.png", 90)
    rows = [("clean", "perturbed"), ("a0.png", "a1.png"), ("b0.png", "b1.png")]
    (tmp_path / "pairs.csv").write_text("".join(f"{mark.join(row)}\n" for row in rows))
    with pytest.raises(InputError, match=f"has {said} between its columns: separate them by commas"):
        read_pairs(tmp_path / "pairs.csv")
    for look in (inspect, read_pairs):
        with pytest.raises(InputError, match=r"has a manifest in it: give data\.root=.*pairs\.csv"):
            look(tmp_path)


def test_inspect_says_why_there_is_nothing_to_look_at(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png", 10)
    with pytest.raises(InputError, match="has images outside any group"):
        inspect(tmp_path)
