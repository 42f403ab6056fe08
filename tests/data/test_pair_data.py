"""What `PairData` promises, for everything that makes pairs."""

import numpy as np
import pytest
import torch

from latentrobust.data.corruptions.module import CorruptionPairs
from latentrobust.data.images import digits, photos
from latentrobust.data.lights.module import LightPairs
from latentrobust.data.lights.scenes import Scenes, SceneSplits
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.data.pairs.from_arrays import pairs
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.data.pairs.table import Pairs
from latentrobust.errors import InputError
from latentrobust.transforms.affine import RotationTranslationScale
from latentrobust.transforms.noise import Unchanged

SPLITS = ("train", "validation", "test")


def pixels(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def scenes(materials):
    def some(count, start):
        maps = pixels(count, 6, 8) % 41 if materials else None
        return Scenes(pixels(count, 4, 3, 6, 8), maps, tuple(f"s{start + n}" for n in range(count)))

    return lambda: SceneSplits(some(9, 0), some(3, 20), some(5, 40), ("a", "b", "c", "d"))


def centred():
    x = pixels(12, 1, 5, 7).repeat(3, 1, 1, 1)
    kinds = np.repeat(["fog", "rain", "snow"], 12)
    labels = np.tile(np.arange(12) % 4, 3)
    kept = np.arange(36) % 7 != 3  # some kinds are missing
    groups = np.tile(np.arange(12), 3) // 2
    return pairs(x[kept], pixels(36, 1, 5, 7)[kept], labels[kept], kind=kinds[kept], group=groups[kept])


def grouped():
    """Groups of two to five images, any two of which are a pair."""
    group = torch.repeat_interleave(torch.arange(8), torch.tensor([2, 3, 4, 5, 2, 3, 4, 5]))
    kind = torch.cat([torch.arange(count) for count in (2, 3, 4, 5, 2, 3, 4, 5)])
    rows, images = torch.arange(len(group)), pixels(len(group), 3, 5, 4)
    names = tuple(f"g{number}" for number in range(8))
    return Pairs(images, -torch.ones_like(rows), rows, kind, group, None, None, tuple("abcde"), names)


DATA = {
    "formula": lambda: FormulaPairs(digits, RotationTranslationScale(), "digits", 42, 8, validation=30),
    "unchanged": lambda: FormulaPairs(digits, Unchanged(), "digits", batch_size=8, validation=30),
    "corruptions": lambda: CorruptionPairs(
        lambda: photos(32, 60, 20), "photos", ("contrast", "fog"), batch_size=8, validation=10, test_images="generated"
    ),
    "lights": lambda: LightPairs(scenes(True), "scenes", batch_size=4),
    "lights without maps": lambda: LightPairs(scenes(False), "scenes", targets=2, batch_size=4),
    "given": lambda: GivenPairs(centred(), validation=1, test=2),
    "given in groups": lambda: GivenPairs(grouped(), validation=2, test=3),
}  # fmt: skip


@pytest.fixture(params=list(DATA), scope="module")
def data(request):
    made = DATA[request.param]()
    made.setup()
    return made


@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_as_promised(data, split):
    count = data.count(split)
    batch = data.pairs(split, torch.arange(min(count, 40)))
    for images in (batch.x, batch.perturbed):
        assert images.shape == (len(batch), *data.image_shape)
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    for column in (batch.index, batch.kind):
        assert column.shape == (len(batch),)
        assert column.dtype == torch.int64
    assert 0 <= int(batch.kind.min()) <= int(batch.kind.max()) < len(data.kinds)
    assert 0 <= int(batch.index.min()) <= int(batch.index.max()) < (count if split == "train" else data.examples(split))
    assert (batch.y is not None) == data.has_labels
    if data.has_labels:
        assert batch.labels.shape == ((len(batch), *data.image_shape[1:]) if data.per_pixel else (len(batch),))
        assert int(batch.labels.max()) < data.classes
        assert not data.class_names or len(data.class_names) == data.classes
    else:
        with pytest.raises(InputError):
            _ = data.classes


@pytest.mark.parametrize("split", SPLITS)
def test_a_pair_is_the_same_in_any_batch_and_order(data, split):
    count = min(data.count(split), 30)
    whole = data.pairs(split, torch.arange(count), 2)
    order = torch.randperm(count)
    for part in order.split(7):
        some = data.pairs(split, part, 2)
        for name in ("x", "x_tilde", "index", "kind", "y"):
            one, other = getattr(whole, name), getattr(some, name)
            assert (one is None and other is None) or torch.equal(one[part], other), name


def test_pairs_outside_training_are_the_same_in_every_epoch(data):
    for split in SPLITS[1:]:
        number = torch.arange(min(data.count(split), 10))
        assert torch.equal(data.pairs(split, number, 0).perturbed, data.pairs(split, number, 5).perturbed)


def test_splits_share_no_example(data):
    seen = {}
    for split in SPLITS:
        if isinstance(data, GivenPairs):
            seen[split] = set(data.given.group[data.rows[split]].tolist())
        elif isinstance(data, LightPairs):
            seen[split] = set(data.stored[split].names)
        else:
            file = "test" if split == "test" else "train"
            seen[split] = {(file, row) for row in data.rows[split].tolist()}
        assert seen[split]
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


@pytest.mark.parametrize("split", SPLITS[1:])
def test_every_example_has_its_first_pair_and_its_pairs_by_kind(data, split):
    number = torch.arange(data.count(split))
    batches = [data.pairs(split, part) for part in number.split(64)]
    index, kind = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "kind"))
    assert index.unique().tolist() == list(range(data.examples(split)))
    first = data.first_kinds(split)
    assert len(first) == len(data.groups(split)) == data.examples(split)
    for example in range(min(data.examples(split), 20)):
        assert int(first[example]) == int(kind[index == example][0])
    pair = int(len(number) // 2)
    there = data.with_kinds(split, [int(kind[pair])], data.examples(split))
    assert int(index[pair]) in there.tolist()
    of_kind = data.pairs_of_kind(split, there[:5], int(kind[pair]))
    assert of_kind.index.tolist() == there[:5].tolist()
    assert (of_kind.kind == kind[pair]).all()


@pytest.mark.parametrize("split", SPLITS)
def test_first_pairs_are_of_different_examples(data, split):
    few = data.first_pairs(split, 3)
    assert few.index.tolist() == [0, 1, 2][: len(few)]
    assert len(data.first_pairs(split, 100_000)) <= max(data.count(split), data.examples(split))
