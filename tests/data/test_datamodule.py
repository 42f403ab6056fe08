import pytest
import torch

from latentrobust.data.images import digits
from latentrobust.data.loader import IndexLoader
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.errors import InputError
from latentrobust.transforms.affine import RotationTranslationScale
from latentrobust.transforms.noise import Unchanged, UniformNoise


def module(**changed):
    arguments = {"canvas": 42, "validation": 200, **changed}
    data = FormulaPairs(digits, RotationTranslationScale(), "digits", **arguments)
    data.setup()
    return data


def test_pairs_have_the_promised_form():
    data = module()
    pairs = data.first_pairs("train", 5)
    assert pairs.x.shape == pairs.perturbed.shape == (5, 1, 42, 42)
    assert pairs.x.dtype == torch.float32
    assert pairs.offset.shape == (5, 4)
    torch.testing.assert_close(data.perturbation.apply(pairs.x, pairs.offset), pairs.perturbed)
    assert data.image_shape == (1, 42, 42)
    assert data.kinds == ("rts",)


def test_noise_pairs_keep_the_image_size():
    data = FormulaPairs(digits, UniformNoise(0.3), "digits", validation=200)
    pairs = data.first_pairs("test", 3)
    assert pairs.x.shape == (3, 1, 28, 28)
    assert (pairs.perturbed - pairs.x).abs().max() <= 0.3 + 1e-6


def test_splits_do_not_overlap_and_cover_everything():
    data = module()
    train, held_out = data.splits["train"].images, data.splits["validation"].images
    assert (len(train), len(held_out), len(data.splits["test"].images)) == (1300, 200, 297)
    everything = digits().train.images.flatten(1).unique(dim=0)
    assert torch.equal(torch.cat([train, held_out]).flatten(1).unique(dim=0), everything)
    other = module(split_seed=1)
    assert not torch.equal(held_out, other.splits["validation"].images)


def test_training_pairs_change_with_the_epoch_and_the_seed_test_pairs_do_not():
    data, other = module(), module(seed=1)
    index = torch.arange(6)
    first = data.pairs("train", index, 0).offset
    assert torch.equal(first, data.pairs("train", index, 0).offset)
    assert not torch.equal(first, data.pairs("train", index, 1).offset)
    assert not torch.equal(first, other.pairs("train", index, 0).offset)
    assert torch.equal(data.pairs("test", index, 0).offset, other.pairs("test", index, 7).offset)
    assert not torch.equal(data.pairs("test", index).offset, data.pairs("validation", index).offset)


def test_pairs_do_not_depend_on_the_batch():
    data = module()
    whole = data.pairs("train", torch.arange(10), 3)
    part = data.pairs("train", torch.tensor([7, 2]), 3)
    assert torch.equal(part.perturbed, whole.perturbed[[7, 2]])


@pytest.mark.parametrize("k", [1, 5])
def test_rts_k_draws_from_k_fixed_perturbations(k):
    data = module(draws_per_example=k)
    seen = torch.stack([data.pairs("train", torch.arange(3), epoch).offset for epoch in range(60)])
    for example in range(3):
        assert len(seen[:, example].unique(dim=0)) == k


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation": 1500}, "leaves nothing"),
        ({"batch_size": 1400}, "exceeds the 1300"),
        ({"canvas": 20}, "smaller than the images"),
        ({"batch_size": 0}, "must be a whole number at least 1"),
        ({"test_size": -1}, "must be a whole number at least 1"),
        ({"draws_per_example": -1}, "must be a whole number at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        module(**changed)


def epochs(loader, count):
    return [[batch.examples for batch in loader] for _ in range(count)]


def test_loader_shuffles_each_epoch_and_sees_every_example_once():
    first, second = epochs(IndexLoader("train", 100, 10, shuffle=True), 2)
    assert sorted(torch.cat(first).tolist()) == list(range(100))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    again, _ = epochs(IndexLoader("train", 100, 10, shuffle=True), 2)
    assert torch.equal(torch.cat(first), torch.cat(again))


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 10, 13])
def test_loader_goes_on_where_it_was_saved(stop):
    whole = IndexLoader("train", 100, 10, shuffle=True)
    expected = [batch for epoch in epochs(whole, 2) for batch in epoch]
    broken = IndexLoader("train", 100, 10, shuffle=True)
    seen = []
    while len(seen) < stop:
        for batch in broken:
            seen.append(batch.examples)
            if len(seen) == stop:
                break
    state = broken.state_dict() if stop else IndexLoader("train", 100, 10, shuffle=True).state_dict()
    resumed = IndexLoader("train", 100, 10, shuffle=True)
    resumed.load_state_dict(state)
    while len(seen) < 20:
        seen += [batch.examples for batch in resumed]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_an_epoch_left_early_is_not_continued():
    loader = IndexLoader("train", 100, 10, shuffle=True)
    assert next(iter(loader)).epoch == 0
    batches = list(loader)
    assert len(batches) == 10
    assert batches[0].epoch == 1


def test_batches_in_order_are_the_same_in_every_epoch():
    loader = IndexLoader("validation", 10, 4, shuffle=False)
    first, second = ([(b.examples.tolist(), b.epoch) for b in loader] for _ in range(2))
    assert first == second


def test_processes_share_the_examples():
    parts = [[b.examples for b in IndexLoader("test", 25, 4, shuffle=False, rank=r, world=2)] for r in range(2)]
    assert sorted(torch.cat([torch.cat(part) for part in parts]).tolist()) == list(range(25))
    shuffled = [[b.examples for b in IndexLoader("train", 25, 4, shuffle=True, rank=r, world=2)] for r in range(2)]
    assert len(shuffled[0]) == len(shuffled[1]) == 3
    assert len(set(torch.cat([torch.cat(part) for part in shuffled]).tolist())) == 24


def test_parts_to_train_on_are_balanced_seeded_and_nested():
    def part(size, **changed):
        return module(train_size=size, batch_size=8, **changed).splits

    found = {}
    for size in (57, 200, 1300):
        train = part(size)["train"]
        assert len(train.images) == len(train.labels) == size
        counts = train.labels.bincount(minlength=10)
        assert size == 1300 or counts.max() - counts.min() <= 1
        found[size] = {image.numpy().tobytes() for image in train.images}
    assert found[57] < found[200] < found[1300]
    assert len(module(train_fraction=0.1).splits["train"].images) == 150
    chosen = part(57)["train"].images
    assert torch.equal(part(57, seed=3)["train"].images, chosen)
    assert not torch.equal(part(57, split_seed=3)["train"].images, chosen)


def test_a_part_is_a_function_of_the_data_and_its_size_alone():
    """Two experiments on "the same 5 %" see the same images, however many each sets aside."""
    rows = {
        validation: module(train_fraction=0.05, validation=validation, batch_size=8).rows for validation in (1, 200)
    }
    assert torch.equal(rows[1]["train"], rows[200]["train"])
    assert len(rows[1]["train"]) == 75
    for own in rows.values():
        assert not set(own["train"].tolist()) & set(own["validation"].tolist())
    whole = [module(train_fraction=1.0, validation=validation).rows for validation in (1, 200)]
    assert sorted(whole[0]["train"].tolist()) == list(range(1500))
    assert torch.equal(whole[0]["train"], whole[1]["train"])
    assert set(whole[1]["validation"].tolist()) <= set(whole[1]["train"].tolist())  # stated: from within
    assert len(whole[1]["validation"]) == 200


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_size": 1301}, "train_size=1301 is 1301 of the 1300"),
        ({"train_fraction": 0.9}, "train_fraction=0.9 is 1350 of the 1300"),
        ({"train_fraction": 1e-5}, "train_fraction=1e-05 is 0 of the 1300"),
        ({"train_size": 0}, "must be a whole number at least 1"),
        ({"train_fraction": 1.5}, "train_fraction must be a number above 0 and at most 1 or null, got 1.5"),
        ({"train_size": 10, "train_fraction": 0.5}, "not both"),
        ({"train_size": 100}, "batch_size=128 exceeds the 100"),
    ],
)
def test_parts_that_do_not_fit(changed, message):
    with pytest.raises(InputError, match=message):
        module(**changed)


def test_data_without_pairs():
    data = FormulaPairs(digits, Unchanged(), "digits", validation=200)
    pairs = data.first_pairs("test", 3)
    assert not data.has_pairs
    assert torch.equal(pairs.x, pairs.perturbed)
    assert pairs.offset.shape == (3, 0)
