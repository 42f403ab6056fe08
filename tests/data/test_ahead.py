"""Reading ahead: the same batches, and each of them read before it is asked for."""

import copy
import subprocess
import sys
from concurrent.futures import Future

import pytest
import torch

from latentrobust import pairs, read_pairs
from latentrobust.data import ahead
from latentrobust.data.ahead import ReadAhead
from latentrobust.data.loader import IndexLoader
from latentrobust.data.pairs.given import GivenPairs
from tests.data.test_own_pairs import faces
from tests.data.test_scenes import module as lights


@pytest.fixture
def taken(monkeypatch):
    """Reads of the background that somebody has asked for; images of any size are read ahead."""
    monkeypatch.setattr(ahead, "WORTH_IT", 0)
    found = []
    result = Future.result
    monkeypatch.setattr(Future, "result", lambda self, *rest: found.append(self) or result(self, *rest))
    return found


def centred_pairs(tmp_path):
    images = torch.randint(256, (2, 40, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return GivenPairs(pairs(*images), batch_size=4, pairs_per_epoch=22)


def pairs_of_groups(tmp_path):
    root = tmp_path / "faces"
    read = read_pairs(root if root.exists() else faces(root, size=(8, 6)), cache=tmp_path / "cache")
    return GivenPairs(read, validation=2, test=2)


def scenes(tmp_path):
    torch.manual_seed(1)
    return lights(batch_size=2, resident=False)


@pytest.mark.parametrize("make", [centred_pairs, pairs_of_groups, scenes])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_batches_are_the_same_and_all_but_the_first_are_read_ahead(make, split, taken, tmp_path):
    plain, data = make(tmp_path), make(tmp_path)
    loader = data._loader(split)
    for epoch in range(2):
        taken.clear()
        batches = list(_through(loader, data))
        for indices, batch in batches:
            expected = plain.pairs(split, indices.examples, indices.epoch)
            assert batch.epoch == expected.epoch
            for part in ("x", "perturbed", "kind", "index", "y"):
                own, other = getattr(batch, part), getattr(expected, part)
                assert (own is None) == (other is None), part
                assert own is None or torch.equal(own, other), (part, epoch)
        assert len(taken) == 2 * (len(batches) - 1)
    next(iter(loader))
    copied = copy.deepcopy(data)  # though something is being read
    index = torch.arange(2)
    assert torch.equal(copied.pairs(split, index).x, plain.pairs(split, index).x)


def _through(loader, data):
    for indices in loader:
        yield indices, data.on_after_batch_transfer(indices, 0)


def test_the_next_batch_is_named_before_each_one_but_the_last():
    said = []
    loader = IndexLoader("train", 23, 5, shuffle=True, seed=3, rank=1, world=2, ahead=said.append)
    for _ in range(2):
        said.clear()
        batches = list(loader)
        assert len(batches) > 1
        assert len(said) == len(batches) - 1
        for told, batch in zip(said, batches[1:], strict=True):
            assert torch.equal(told.examples, batch.examples)
            assert told[1:] == batch[1:]


def test_what_goes_wrong_in_the_background_is_raised_where_rows_are_asked_for(taken):
    images, place = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), (torch.tensor([0, 7]),)
    reads = ReadAhead()
    reads.begin(images, place, pinned=False)
    with pytest.raises(IndexError):
        reads.rows(images, place, torch.device("cpu"))


def test_small_images_are_not_read_ahead():
    images, place = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), (torch.tensor([0, 2]),)
    reads = ReadAhead()
    assert not reads.helps(images, pinned=False)
    assert reads.helps(images, pinned=True)
    assert reads.helps(torch.zeros(1, dtype=torch.uint8).expand(ahead.WORTH_IT), pinned=False)
    assert not reads.helps(torch.zeros(1, device="meta"), pinned=True)
    assert torch.equal(reads.rows(images, place, torch.device("cpu")), images[place])


def test_a_process_that_ends_while_it_reads_ends_well():
    code = (
        "import torch; from latentrobust.data.ahead import ReadAhead\n"
        "images = torch.zeros(2000, 3, 128, 128, dtype=torch.uint8)\n"
        "ReadAhead().begin(images, *((torch.arange(2000),) for _ in range(8)), pinned=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_goes_to_a_gpu_is_read_into_pinned_memory():
    images = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8)
    place, device = (torch.tensor([0, 7, 3]),), torch.device("cuda")
    reads = ReadAhead()
    reads.begin(images, place, pinned=True)
    assert reads._reads[0].rows.result().is_pinned()
    assert torch.equal(reads.rows(images, place, device).cpu(), images[place])
