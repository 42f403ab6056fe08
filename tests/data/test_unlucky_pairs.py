"""Own pairs as they come: files and folders that are almost what was expected."""

import itertools
import os
import subprocess
import sys
import time
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import latentrobust as lr
from latentrobust import InputError
from latentrobust.data.pairs import packing
from latentrobust.data.pairs.inspection import inspect
from latentrobust.data.pairs.layouts import listed
from latentrobust.data.pairs.packing import headers
from latentrobust.data.pairs.reading import read_pairs
from latentrobust.data.pictures import decoded, header


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LATENTROBUST_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, level=100, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def groups(root, count=3, first=0):
    for number in range(count):
        for place, name in enumerate(("a", "b")):
            save(root / f"thing{number}" / f"{name}.png", first + 20 * number + 5 * place)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "png", "webp"])
def test_pictures_are_turned_as_their_orientation_says(tmp_path, orientation, ending):
    pixels = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{ending}"
    Image.fromarray(np.stack([pixels] * 3, -1)).save(path, exif=exif, lossless=True)
    wanted = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T, 6: pixels[::-1].T,
        7: pixels[::-1, ::-1].T, 8: pixels.T[::-1],
    }[orientation]  # fmt: skip
    assert header(path).size == wanted.shape
    assert np.array_equal(decoded(path, "RGB")[0].numpy(), wanted)


def test_levels_of_twelve_bits_and_white_as_zero(tmp_path):
    levels = np.linspace(0, 4095, 12 * 16).astype(np.uint16).reshape(12, 16)
    tiff(tmp_path / "twelve.tif", levels, bits=12, white_is_zero=False)
    tiff(tmp_path / "white.tif", levels * 16, bits=16, white_is_zero=True)
    found = decoded(tmp_path / "twelve.tif", "L")[0].numpy().astype(int)
    assert np.abs(found - levels / 4095 * 255).max() <= 1
    found = decoded(tmp_path / "white.tif", "L")[0].numpy().astype(int)
    assert np.abs(found - (65535 - levels * 16.0) / 257).max() <= 1


def tiff(path, levels, bits, white_is_zero):
    """Baseline TIFF, one strip; Pillow writes neither."""
    height, width = levels.shape
    if bits == 12:
        pairs = levels.reshape(-1, 2).astype(np.uint32)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = levels.astype("<u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(data))]
    directory = len(tags).to_bytes(2, "little")
    for tag, value in tags:
        directory += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        directory += value.to_bytes(4, "little")
    start = (8 + len(data)).to_bytes(4, "little")
    path.write_bytes(b"II*\0" + start + data + directory + bytes(4))


def test_splits_in_folders_in_whatever_case_beside_notes(tmp_path):
    for number, name in enumerate(("Train", "Val", "TEST")):
        groups(tmp_path / name, first=70 * number)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("hello")
    assert set(read_pairs(tmp_path).split) == {"train", "validation", "test"}
    for name in ("Val", "TEST"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    assert read_pairs(tmp_path).split is None  # a group of things called so


@pytest.mark.parametrize("third", ["valid", "dev", "testing"])
def test_splits_beside_other_images_are_refused(tmp_path, third):
    for number, name in enumerate(("train", "test", third)):
        groups(tmp_path / name, first=70 * number)
    with pytest.raises(InputError, match=f"beside them, {third}/ with images: splits are train/"):
        read_pairs(tmp_path)


@pytest.mark.parametrize(("place", "names"), [("cat/", ("clean", "perturbed")), ("", ("Original", "noisy"))])
def test_halves_in_folders_of_their_own_are_no_groups(tmp_path, place, names):
    for kind in ("cat/", "dog/") if place else ("",):
        for name in names:
            for number in range(3):
                save(tmp_path / f"{kind}{name}" / f"{number}.png", 10 * number + len(name))
    with pytest.raises(InputError, match=r"have images of the same names: put them\s+into clean/"):
        read_pairs(tmp_path)
    assert len(listed(tmp_path, "groups").perturbed) > 0  # as they say


ORDER = """
import latentrobust as lr, torch
x = torch.rand(9, 1, 4, 4)
print(lr.pairs(x, 1 - x, kind=["class1", "class01", "class001"] * 3).kinds)
"""


def test_names_that_are_the_same_number_have_an_order(tmp_path):
    found = {
        subprocess.run(
            [sys.executable, "-c", ORDER], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert found == {"('class001', 'class01', 'class1')\n"}


def test_a_file_that_can_be_read_again_is_no_longer_left_out(tmp_path, monkeypatch):
    groups(tmp_path / "root", first=40)
    whole = packing.decoded

    def denied(path, *given):
        if path.name == "b.png" and path.parent.name == "thing1":
            raise InputError(f"{path} cannot be read: Permission denied")
        return whole(path, *given)

    monkeypatch.setattr(packing, "decoded", denied)
    for _ in range(2):
        assert len(read_pairs(tmp_path / "root", incomplete="skip").groups) == 2
    monkeypatch.setattr(packing, "decoded", whole)
    found = read_pairs(tmp_path / "root")
    assert len(found.groups) == 3
    assert sorted(found.images[:, 0, 0, 0].tolist()) == [40, 45, 60, 65, 80, 85]  # none of them black


def test_broken_links_can_be_left_out(tmp_path):
    groups(tmp_path)
    (tmp_path / "thing1" / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"c\.png"):
        read_pairs(tmp_path)
    assert len(read_pairs(tmp_path, incomplete="skip").left_out) == 1


def test_filters_of_warnings_stay_as_they_are(tmp_path, monkeypatch):
    opened, pauses = Image.open, itertools.cycle((0.03, 0.01, 0.02))

    def slowly(file, *given):
        time.sleep(next(pauses))  # threads end in another order than they began
        return opened(file, *given)

    monkeypatch.setattr("latentrobust.data.pictures.Image.open", slowly)
    groups(tmp_path, 12)
    before = list(warnings.filters)
    headers(sorted(tmp_path.rglob("*.png")))
    assert warnings.filters == before


def test_kinds_that_differ_in_the_encoding_of_letters_are_named(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        kind = unicodedata.normalize(form, "naïve")
        save(tmp_path / "clean" / f"{number}.png", number)
        save(tmp_path / "perturbed" / kind / f"{number}.png", 100 + number)
    with pytest.raises(InputError, match="differ in the encoding of letters alone"):
        read_pairs(tmp_path)


def test_kinds_that_are_one_are_not_left_out_by_skip(tmp_path):
    for number, kind in enumerate(("Fog", "fog")):
        save(tmp_path / "clean" / f"{number}.png", number)
        save(tmp_path / "perturbed" / kind / f"{number}.png", 100 + number)
    with pytest.raises(InputError, match="differ in case alone: give them one name"):
        read_pairs(tmp_path, incomplete="skip")


def test_inspect_refuses_for_arrays_what_a_run_refuses(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=x, x_tilde=255 - x)
    assert inspect(tmp_path / "own.npz").pairs is not None
    for options in ({"size": (4, 4)}, {"label": "parent"}, {"original": "q"}, {"colour": "grey"}, {"fit": "pad"}):
        for read in (inspect, read_pairs):
            with pytest.raises(InputError, match="arrays are taken as they are"):
                read(tmp_path / "own.npz", **options)


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (0.0, 255.0, "divide by 255"),
        (0.0, 4095.0, "largest level"),
        (-1e-9, 1.0, "clip them"),
        (0.0, 1.0001, "clip them"),
        (-1.0, 1.0, r"\(x \+ 1\) / 2"),
        (-2.1, 2.6, "undo what normalised"),
    ],
)
def test_values_that_are_no_images_have_a_remedy_each(low, high, remedy):
    x = np.full((4, 1, 3, 3), 0.5)
    x[1, 0, 0, 0], x[1, 0, 0, 1] = low, high
    with pytest.raises(InputError, match=remedy):
        lr.pairs(x, x)


def test_absolute_names_in_a_manifest_may_lie_in_its_folder(tmp_path):
    rows = ["clean,perturbed"]
    for number in range(3):
        for name, level in (("a", 100), ("b", 50)):
            save(tmp_path / f"{number}{name}.png", level + number)
        rows.append(f"{tmp_path}/{number}a.png,{number}b.png")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    assert len(read_pairs(tmp_path / "pairs.csv")) == 3


def test_an_image_has_one_label_in_arrays_too():
    x = torch.rand(6, 1, 4, 4)
    with pytest.raises(InputError, match="pairs 0 and 6 have the same image x and other labels"):
        lr.pairs(torch.cat([x, x]), 1 - torch.cat([x, x]) / 2, y=[0] * 6 + [1] * 6)
    assert len(lr.pairs(torch.cat([x, x]), 1 - torch.cat([x, x / 2]), y=[0, 1, 2] * 4)) == 12


def test_originals_of_one_colour_may_be_in_several_groups():
    x = torch.zeros(6, 1, 4, 4)
    pairs = lr.pairs(x, torch.rand(6, 1, 4, 4), group=list("aabbcc"))
    assert pairs.groups == ("a", "b", "c")
    assert len(lr.pairs(x, torch.rand(6, 1, 4, 4)).groups) == 1  # which nobody can tell apart


def test_arrays_in_a_folder_may_have_names_and_no_others(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    for name, values in (("x", x), ("x_tilde", 255 - x), ("y", np.array(["cat", "dog", "owl"] * 2))):
        np.save(tmp_path / f"{name}.npy", values)
    assert read_pairs(tmp_path).class_names == ("cat", "dog", "owl")
    np.savez(tmp_path / "own.npz", x=x, x_tilde=255 - x, y=np.array([b"cat", b"dog", b"owl"] * 2))
    assert read_pairs(tmp_path / "own.npz").class_names == ("cat", "dog", "owl")
    np.save(tmp_path / "labels.npy", np.arange(6))
    with pytest.raises(InputError, match=r"holds labels\.npy: arrays are named"):
        read_pairs(tmp_path)


def test_pairs_are_split_as_learn_splits_them():
    x = torch.rand(40, 1, 4, 4)
    pairs = lr.pairs(x, 1 - x)
    first, second = (pairs.as_data(seed=seed) for seed in (0, 1))
    for data in (first, second):
        data.prepare_data()
        data.setup()
    assert set(first.hashes("test").hashes.tolist()) == set(second.hashes("test").hashes.tolist())
