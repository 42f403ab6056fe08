"""Files that are damaged on purpose."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from latentrobust.data.arrays import read_array
from latentrobust.data.corruptions.files import MANIFEST, Corrupted
from latentrobust.data.images.base import Split
from latentrobust.data.images.cifar import unpack
from latentrobust.data.images.idx import read_idx
from latentrobust.data.images.pickles import NUMBERS, read_pickle
from latentrobust.data.lights import scene_folder
from latentrobust.data.lights.fetching import _DamagedError, _unpack
from latentrobust.data.pictures import decoded, header
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.stored import read_checkpoint
from latentrobust.published_weights import import_checkpoint


def test_idx_sizes_that_overflow_are_not_believed(tmp_path):
    """2^32 · 2^32 is 0 in 64 bits."""
    path = tmp_path / "idx"
    path.write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4))
    with pytest.raises(InputError, match="its header promises"):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\xff" + b"\0" * 2000)
    with pytest.raises(InputError, match="is not an IDX file"):
        read_idx(path)


def test_a_gzip_bomb_is_read_as_far_as_its_header_promises(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"\0\0\x08\x01" + struct.pack(">I", 10))
        for _ in range(64):
            file.write(bytes(1 << 22))
    with pytest.raises(InputError, match=r"promises \[10\], 12 bytes follow"):
        read_idx(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    path = tmp_path / "file"
    images = np.arange(12, dtype=np.uint8).reshape(2, 6)
    path.write_bytes(pickle.dumps({"data": images, "f": np.asfortranarray(images), "x": np.float32(0.5)}, protocol))
    found = read_pickle(path)
    np.testing.assert_array_equal(found["data"], images)
    np.testing.assert_array_equal(found["f"], images)
    assert found["x"] == 0.5


def test_a_pickle_that_would_act_does_not(tmp_path):
    class Acts:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'acted'}",)

    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"data": Acts()}, protocol=5))
    with pytest.raises(InputError, match=r"was refused: it asks for posix\.system"):
        read_pickle(path)
    torch.save({"state_dict": Acts()}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="unsafe pickle") as error:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "acted").exists()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_s_in_checkpoints_are_numbers(tmp_path, kind):
    torch.save({"lr": kind(2), "w": torch.ones(2)}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt", NUMBERS)["lr"] == 2
    with pytest.raises(InputError, match="is neither a state dict nor a checkpoint with one"):
        import_checkpoint(tmp_path / "x.pt", "mnist_fc", 1.0)


def test_arrays_with_broken_headers(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    whole = path.read_bytes()
    for broken in (whole[:8], whole.replace(b"'shape'", b"'shap\xff"), whole.replace(b"(3,)", b"(-3)"), b"", b"PK\3\4"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"not a NumPy file|one array of numbers"):
            read_array(path, "r")
    np.save(path, np.array([None]), allow_pickle=True)
    with pytest.raises(InputError):
        read_array(path)


def test_a_picture_of_gigabytes_is_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    for read in (header, lambda path: decoded(path, "RGB")):
        with pytest.raises(InputError, match=r"bomb.png .*pixels"):
            read(tmp_path / "bomb.png")


def test_pipes_are_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (read_idx, read_pickle, header, read_array, read_checkpoint):
        with pytest.raises(InputError, match="no regular file"):
            read(pipe)


def test_a_link_to_itself_in_an_archive(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("data")
        link.type, link.linkname = tarfile.SYMTYPE, "data"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"x.tar (lacks data|is truncated or damaged)"):
        unpack(tmp_path / "x.tar", tmp_path, ["data"])


def test_an_encrypted_archive(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for light in range(25):
            packed.writestr(f"dir_{light}_mip5.jpg", b"x")
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 4):
        if content[place : place + 4] == b"PK\3\4":
            content[place + 6] |= 1
        if content[place : place + 4] == b"PK\1\2":
            content[place + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(_DamagedError, match="password"):
        _unpack(path, 5, tmp_path)


def scenes(root, count=4):
    for scene in range(count):
        (root / f"s{scene}").mkdir(parents=True, exist_ok=True)
        for light in "ab":
            Image.new("L", (6, 4), 10 * scene).save(root / f"s{scene}" / f"{light}.png")
    return root


def test_a_damaged_pack_is_packed_again_or_named(tmp_path):
    root = scenes(tmp_path / "scenes")
    expected = scene_folder(str(root)).train.images
    index = sorted((root / ".packed").glob("train-*.json"))[0]
    for broken in ("", "{", "[]", '{"scenes": [1], "left_out": [], "materials": false}', '{"scenes": []}'):
        index.write_text(broken)
        assert torch.equal(scene_folder(str(root)).train.images, expected)
    about = json.loads(index.read_text())
    index.write_text(json.dumps({**about, "scenes": about["scenes"] * 2}))
    with pytest.raises(InputError, match="unlike its index: delete"):
        scene_folder(str(root))


def test_a_fault_that_all_scenes_share_is_reported_as_itself(tmp_path):
    root = scenes(tmp_path / "scenes")
    for path in root.rglob("b.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"none of the .* scenes can be used; of .*b\.png"):
        scene_folder(str(root), incomplete="skip")


def test_corrupted_images_are_what_their_manifest_says(tmp_path):
    images = Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    np.save(tmp_path / "fog_5.npy", np.zeros((2, 4, 4, 3), np.uint8))
    about = {"files": {"fog_5.npy": "0" * 64}, "split": "test", "images": ""}
    (tmp_path / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"fog_5.npy is not what its corruptions.json says: it was changed or damaged"):
        Corrupted(tmp_path, 2, (3, 4, 4)).check(["fog"], [5], images, "test")


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(OSError, match="File name too long") as error:
        (tmp_path / ("x" * 300)).write_bytes(io.BytesIO().getvalue())
    from latentrobust.refusals import describe_error, is_bad_input  # noqa: PLC0415

    assert is_bad_input(error.value)
    assert "\n" not in describe_error(error.value)
