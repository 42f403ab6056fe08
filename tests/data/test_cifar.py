"""CIFAR's pickles and SVHN's MATLAB files: read, and refused where they hold anything else."""

import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io
import torch

from latentrobust.data.images import cifar10, cifar100, svhn
from latentrobust.data.images.pickles import read_pickle
from latentrobust.errors import InputError

FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(count=4, first=0, labels=b"labels"):
    images = np.arange(first, first + count * 3072, dtype=np.int64).reshape(count, 3072) % 251
    return {b"data": images.astype(np.uint8), labels: list(range(count)), b"filenames": [b"a.png"] * count}


def write_cifar10(folder, protocol=2):
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(pickle.dumps(batch(first=number), protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_as_unpacked(tmp_path, protocol):
    write_cifar10(tmp_path / "cifar10" / "cifar-10-batches-py", protocol)
    images = cifar10(str(tmp_path), download=False)
    assert images.train.images.shape == (20, 3, 32, 32)
    assert images.train.images.dtype == torch.uint8
    assert images.test.labels.tolist() == [0, 1, 2, 3]
    # Row by row, a colour after the other.
    assert images.train.images[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert images.train.images[0, 0, 1, 0] == 32
    assert images.train.images[0, 1, 0, 0] == 1024 % 251
    assert images.train.images[4, 0, 0, 0] == 1


def test_archives_are_unpacked_once_and_only_what_is_asked_for(tmp_path):
    write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    (tmp_path / "made" / "other").write_text("not taken along")
    (tmp_path / "cifar10").mkdir()
    with tarfile.open(tmp_path / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
        tar.add(tmp_path / "made" / "other", "../escaped")
    assert len(cifar10(str(tmp_path), download=False).train.images) == 20
    assert not (tmp_path / "escaped").exists()
    assert sorted(os.listdir(tmp_path / "cifar10" / "cifar-10-batches-py")) == sorted(FILES)
    (tmp_path / "cifar10" / "cifar-10-python.tar.gz").unlink()
    assert len(cifar10(str(tmp_path), download=False).test.images) == 4


def test_cifar100_takes_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        content = batch(labels=b"fine_labels") | {b"coarse_labels": [9, 9, 9, 9]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    assert cifar100(str(tmp_path), download=False).train.labels.tolist() == [0, 1, 2, 3]


class Attack:
    def __reduce__(self):
        return os.system, ("touch was_here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Attack(), r"refused: it asks for \w+\.system"),
        ({"data": Attack()}, r"refused: it asks for \w+\.system"),
        ({"data": np.array([Attack()], dtype=object)}, "refused"),
        ({"data": torch.zeros(2)}, "refused: it asks for torch"),
        ([1, 2], "it holds a list"),
    ],
)
def test_pickles_with_anything_but_arrays_are_refused_and_nothing_runs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=message):
        read_pickle("file")
    assert not (tmp_path / "was_here").exists()


def test_codecs_are_no_way_around(tmp_path):
    # _codecs.encode(b"…", "zip") would be harmless, others need not be.
    (tmp_path / "file").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.")
    with pytest.raises(InputError, match="codec zip"):
        read_pickle(tmp_path / "file")


def test_damaged_cifar_files_are_named(tmp_path):
    place = tmp_path / "cifar10" / "cifar-10-batches-py"
    write_cifar10(place)
    whole = (place / "data_batch_3").read_bytes()
    (place / "data_batch_3").write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"data_batch_3 (is truncated|was refused)"):
        cifar10(str(tmp_path), download=False)
    for wrong in (
        {b"labels": [1]},
        {b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2]},
        {b"data": batch()[b"data"]},
    ):
        (place / "data_batch_3").write_bytes(pickle.dumps(wrong, protocol=2))
        with pytest.raises(InputError, match="data_batch_3"):
            cifar10(str(tmp_path), download=False)
    (place / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"no data file at .*data_batch_3"):
        cifar10(str(tmp_path), download=False)


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "cifar10").mkdir()
    archive = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(b"no tar at all" * 100))
    with pytest.raises(InputError, match="truncated or damaged"):
        cifar10(str(tmp_path), download=False)
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(InputError, match="lacks cifar-10-batches-py/data_batch_1"):
        cifar10(str(tmp_path), download=False)
    archive.unlink()
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz is missing"):
        cifar10(str(tmp_path), download=False)


def test_svhn(tmp_path):
    folder = tmp_path / "svhn"
    folder.mkdir()
    images = np.random.RandomState(0).randint(0, 256, (32, 32, 3, 5)).astype(np.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        scipy.io.savemat(folder / name, {"X": images, "y": np.array([[1], [10], [3], [9], [10]], np.uint8)})
    train = svhn(str(tmp_path), download=False).train
    assert train.labels.tolist() == [1, 0, 3, 9, 0]
    assert train.images.shape == (5, 3, 32, 32)
    np.testing.assert_array_equal(train.images[2, 1].numpy(), images[:, :, 1, 2])
    whole = (folder / "test_32x32.mat").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"MATLAB" * 40, b""):
        (folder / "test_32x32.mat").write_bytes(damaged)
        with pytest.raises(InputError, match=r"test_32x32\.mat"):
            svhn(str(tmp_path), download=False)
    scipy.io.savemat(folder / "test_32x32.mat", {"X": images.astype(float), "y": np.ones((5, 1))})
    with pytest.raises(InputError, match="expected X"):
        svhn(str(tmp_path), download=False)


def forged(code, *state):
    """An array of 16 bytes whose dtype was given a state of the pickle's own."""

    class DType:
        def __reduce__(self):
            return np.dtype, (code, False, True), state

    class Array:
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), DType(), False, b"\x41" * 16)

    return Array()


OBJECTS = forged("O8", 3, "|", None, None, None, 8, 8, 0)
FIELDS = forged("V8", 3, "|", None, ("a",), {}, 8, 1, 0)


@pytest.mark.parametrize("array", [OBJECTS, FIELDS])
def test_bytes_never_become_objects(tmp_path, array):
    """A pickle could tell numpy that a dtype of objects has none, and hand it addresses as bytes."""
    for content in ({"data": array, "labels": [0]}, {"data": np.zeros((1, 3072), np.uint8), "labels": [array]}):
        (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputError, match=r"it asks for an array of '[OV]8'"):
            read_pickle(tmp_path / "file")


def test_arrays_that_lie_about_their_size_are_refused(tmp_path):
    good = pickle.dumps({"data": np.arange(6, dtype=np.uint8)}, protocol=2)
    assert read_pickle_of(tmp_path, good)["data"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="do not fit its shape"):
        read_pickle_of(tmp_path, good.replace(b"K\x06\x85", b"K\x63\x85"))


def read_pickle_of(folder, content):
    (folder / "file").write_bytes(content)
    return read_pickle(folder / "file")


def test_byte_order_and_columns_are_kept(tmp_path):
    for array in (np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))):
        read = read_pickle_of(tmp_path, pickle.dumps({"data": array, "other": {"nested": 1}}, protocol=2))
        np.testing.assert_array_equal(read["data"], array)
        assert "other" not in read


def test_an_interrupted_unpacking_goes_on(tmp_path):
    write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    (tmp_path / "cifar10").mkdir()
    with tarfile.open(tmp_path / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    cifar10(str(tmp_path), download=False)
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "data_batch_4").unlink()
    assert len(cifar10(str(tmp_path), download=False).train.images) == 20


def test_the_form_of_the_original_archives_is_read(tmp_path):
    """Python 2 wrote bytes as strings, and so the original files are."""
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x01K\x04tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x7f\x80\xfftbU\x06labels](K\x03K\x04eu."
    )
    read = read_pickle_of(tmp_path, content)
    assert read["data"].tolist() == [[0, 127, 128, 255]]
    assert read["data"].dtype == np.uint8
    assert read["labels"] == [3, 4]
