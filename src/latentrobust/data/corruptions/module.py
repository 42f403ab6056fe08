"""Pairs of images and their common corruptions: CIFAR-10-C, also for other RGB images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor

from latentrobust.arguments import Count, PositiveShare, Seed, Severity, validated
from latentrobust.batch import Batch
from latentrobust.data.corruptions.files import Corrupted, checked, corruption_keys, zenodo_archive
from latentrobust.data.images.base import Images
from latentrobust.data.images.module import ImagePairs
from latentrobust.data.module import PAIRS
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Augmentation, apply_in_order
from latentrobust.transforms.corruptions import TRAINING, make, textures

PAIRINGS = ("centred", "original_perturbed", "perturbed_only")
ORIGINAL = "original"
TestImages = Literal["auto", "archive", "generated"]


@validated
@dataclass(frozen=True)
class OneCorruption:
    """A corruption as a perturbation of float images: held-out kinds, or data with one kind. An offset is the key."""

    corruption: str
    severity: Severity = 5

    def __post_init__(self) -> None:
        checked(self.corruption, self.severity)

    @property
    def name(self) -> str:
        """What the pairs' kind is called."""
        return self.corruption

    def draw(self, keys: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """The keys themselves ``[B]``: all parameters follow from them.

        Raises:
            InputError: for images that are not RGB.
        """
        if image_shape[0] != 3:
            raise InputError(f"corruptions are for RGB images, got {list(image_shape)}: choose another data")
        return keys

    def apply(self, images: Tensor, offset: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1], taken as 256 levels."""
        return make(self.corruption, self.severity)(to_levels(images), offset).to(images.dtype) / 255


def to_levels(images: Tensor) -> Tensor:
    """Images in [0, 1] to the nearest of 256 levels, uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


@validated
class CorruptionPairs(ImagePairs):
    """Pairs made of an image and its corruptions (Wong & Kolter, section 5.1 and appendix F).

    An epoch has each training image once, with one of its corruptions, drawn anew each epoch; validation and test have
    every image with every kind. Corruptions are made once and kept as uint8 on the training device, or read from
    files; images are split before they are corrupted, so that all versions of one lie on the same side.

    Args:
        source: called without arguments, gives `Images`, RGB.
        name: of the data.
        kinds: names of corruptions.
        severity: 1 to 5.
        pairing: ``centred``: the condition is the original; ``original_perturbed``: an ordered pair of different
            versions, the original among them; ``perturbed_only``: the same without the original.
        joint: augmentations of training pairs by name, the same change to both halves.
        draws_per_example: 1: each image has one corruption of each kind, as published; k: it has k; null: new ones
            each epoch.
        keep: keep all corrupted images in memory (with ``draws_per_example: 1``); else make them for each batch.
        corrupted: folder with the corrupted training images, as ``python -m latentrobust.data corrupt`` writes them;
            null makes them. It has the rows of the whole training file.
        test_images: ``archive``: the published ones, below ``root``; ``generated``: made; ``auto``: the archive where
            there is one.
        root: data root, where the archive is looked for.
        download: fetch the archive (2.9 GB) for ``test_images: archive``.

    The rest is as in `ImagePairs`.

    Raises:
        InputError: for kinds, severities, pairings or files that do not exist or do not fit.
    """

    def __init__(
        self,
        source: Callable[[], Images],
        name: str,
        kinds: Sequence[str] = TRAINING,
        severity: Severity = 5,
        pairing: str = "centred",
        joint: Mapping[str, Augmentation] | None = None,
        batch_size: Count = 128,
        validation: Count = 1000,
        test_size: Count | None = None,
        draws_per_example: Count | None = 1,
        keep: bool = True,
        train_size: Count | None = None,
        train_fraction: PositiveShare | None = None,
        corrupted: str | None = None,
        test_images: TestImages = "auto",
        root: str | None = None,
        download: bool = False,
        split_seed: Seed = 0,
        seed: Seed = 0,
    ) -> None:
        check_names("data.kinds", kinds, [severity])
        if pairing not in PAIRINGS:
            raise InputError(f"data.pairing must be one of {', '.join(PAIRINGS)}, got {pairing!r}")
        if pairing == "perturbed_only" and len(kinds) < 2:
            raise InputError("data.pairing=perturbed_only needs two kinds or more")
        check_test_images("data.test_images", test_images)
        if corrupted is not None and draws_per_example != 1:
            raise InputError("data.corrupted holds one corruption of each kind an image: data.draws_per_example=1")
        super().__init__(
            source, name, None, batch_size, validation, test_size, draws_per_example,
            train_size, train_fraction, split_seed, seed,
        )  # fmt: skip
        self.corruptions, self.severity, self.pairing = tuple(kinds), severity, pairing
        self.kinds = (ORIGINAL, *kinds) if pairing == "original_perturbed" else tuple(kinds)
        self.centred = pairing == "centred"
        self.joint = dict(joint or {})
        self.keep = keep and draws_per_example == 1
        self.corrupted, self.test_images, self.root, self.download = corrupted, test_images, root, download
        self._kept: dict[str, Tensor] = {}
        self._files: dict[str, Corrupted] = {}

    def prepare_data(self) -> None:
        """Download and unpack where needed (one process does this)."""
        super().prepare_data()
        find_archive("data.test_images", self.test_images, self.root, self.download)

    def _read(self) -> Images:
        """The images, with the files of their corruptions found and checked."""
        images = super()._read()
        shape = tuple(images.train.images.shape[1:])
        if shape[0] != 3:
            raise InputError(f"corruptions are for RGB images, data {self.name} has {list(shape)}")
        if self.corrupted is not None:
            files = Corrupted(Path(self.corrupted), len(images.train.images), shape)
            files.check(self.corruptions, [self.severity], images.train, "train")
            self._files["train"] = self._files["validation"] = files
        archive = find_archive("data.test_images", self.test_images, self.root, self.download)
        if archive is not None:
            files = Corrupted(archive, len(images.test.images), shape)
            files.check(self.corruptions, [self.severity], images.test, "test")
            self._files["test"] = files
        elif self.test_images == "auto" and self.root is not None and self._is_first_process:
            print(f"data {self.name}: {self.root} has no CIFAR-10-C: test images are corrupted here", file=sys.stderr)
        self.file_test = images.test
        self.note = self._describe()
        return images

    def _describe(self) -> str:
        """Where the corruptions come from, for reports."""
        test = self._files.get("test")
        if test is None:
            origin = "generated"
        else:
            origin = (
                f"read from files that were generated (seed {test.about['seed']})" if test.about else "as published"
            )
        note = f"Corrupted test images: {origin}."
        if "frost" in self.corruptions and (test is None or test.about):
            note += f" Frost: {test.about['frost'] if test is not None else textures.source()} textures."
        return note

    def first_kinds(self, split: str) -> Tensor:
        """The first kind: every image has a pair of each."""
        self.setup()
        return torch.zeros(self.examples(split), dtype=torch.int64)

    def count(self, split: str) -> int:
        """Pairs per epoch: an image once in training, with every kind otherwise."""
        images = self.examples(split)
        return images if split == "train" else images * len(self.kinds)

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs ``index [B]`` of a split, on the index's device; validation and test go kind by kind."""
        example, own = index, random.example_keys(self.seed, index, PAIRS["train"], epoch)
        if split == "train":
            target = random.integers(random.fold_in(own, Purpose.TARGET), 0, len(self.kinds))
        else:
            images = self.examples(split)
            example, target = index % images, index // images
            own = random.fold_in(random.example_keys(self.split_seed, example, PAIRS[split]), target)
        condition = torch.full_like(target, -1)
        if self.pairing != "centred":
            others = random.integers(random.fold_in(own, Purpose.CONDITION), 1, len(self.kinds))
            condition = self._version((target + others) % len(self.kinds))
        clean = self._versions(split, example, condition, epoch)
        perturbed = self._versions(split, example, self._version(target), epoch)
        if split == "train" and self.joint:
            keys = random.fold_in(own, Purpose.JOINT)
            clean, perturbed = (apply_in_order(self.joint, images, keys) for images in (clean, perturbed))
        label = self._resident(split, index.device).labels[example]
        return Batch(clean, example, target, label, perturbed, None, epoch)

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """The first images of a split, each with another kind, as far as there are some."""
        self.setup()
        number = torch.arange(min(count, self.examples(split)), device=device)
        if split == "train":
            return self.pairs(split, number)
        return self.pairs(split, number % len(self.kinds) * self.examples(split) + number)

    def _version(self, kind: Tensor) -> Tensor:
        """A kind's place among the corruptions; −1 for the original."""
        return kind - 1 if self.pairing == "original_perturbed" else kind

    def _versions(self, split: str, example: Tensor, version: Tensor, epoch: int) -> Tensor:
        """Images ``example [B]`` in the version asked for: float ``[B, 3, H, W]`` in [0, 1]."""
        originals = self._resident(split, example.device).images
        images = originals[example]
        if self.keep:
            if bool((version >= 0).any()):
                chosen = version >= 0
                kept = self._keep(split, example.device)
                images[chosen] = kept[version[chosen], example[chosen]]
            return images.float().div_(255)
        rows = self.rows[split].to(example.device)[example]
        for number, kind in enumerate(self.corruptions):
            chosen = (version == number).nonzero()[:, 0]
            if not len(chosen):
                continue
            if split in self._files:
                images[chosen] = self._files[split].rows(kind, self.severity, rows[chosen].cpu()).to(images.device)
            else:
                keys = self._corruption_keys(split, rows[chosen], kind, epoch)
                images[chosen] = make(kind, self.severity)(images[chosen], keys)
        return images.float().div_(255)

    def _corruption_keys(self, split: str, rows: Tensor, kind: str, epoch: int) -> Tensor:
        file = "test" if split == "test" else "train"
        if split != "train" or self.draws_per_example == 1:
            return corruption_keys(self.split_seed, file, rows, kind, self.severity)
        if self.draws_per_example is None:
            return corruption_keys(self.seed, file, rows, kind, self.severity, epoch + 1)
        own = random.example_keys(self.seed, rows, Purpose.CORRUPTIONS_CHOICE, epoch)
        choice = random.integers(own, 0, self.draws_per_example)
        return random.fold_in(corruption_keys(self.split_seed, file, rows, kind, self.severity), choice)

    def _keep(self, split: str, device: torch.device) -> Tensor:
        """All versions of a split's images: uint8 ``[kinds, N, 3, H, W]``, made when first asked for."""
        kept = self._kept.get(split)
        if kept is None:
            originals = self._resident(split, device).images
            rows = self.rows[split]
            kept = originals.new_empty(len(self.corruptions), *originals.shape)
            loud = self._is_first_process
            source = "reading" if split in self._files else "corrupting"
            numbered = track(
                enumerate(self.corruptions), f"{source} {split} images", len(self.corruptions),
                disable=not loud or len(rows) * len(self.corruptions) < 20_000,
            )  # fmt: skip
            for number, kind in numbered:
                if split in self._files:
                    kept[number] = self._files[split].rows(kind, self.severity, rows).to(device)
                else:
                    keys = self._corruption_keys(split, rows.to(device), kind, 0)
                    kept[number] = make(kind, self.severity)(originals, keys)
        if kept.device != device:
            kept = kept.to(device)
        self._kept[split] = kept
        return kept


def check_names(where: str, kinds: Sequence[str], severities: Sequence[int]) -> None:
    """Refuse lists of corruptions and severities that are empty, repeat themselves or name what does not exist.

    Raises:
        InputError: in one line.
    """
    if isinstance(kinds, str) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError(f"{where} must be a list of names of corruptions, got {kinds!r}")
    if not kinds or not severities:
        raise InputError(f"{where} needs at least one corruption and one severity")
    for kind in kinds:
        for severity in severities:
            checked(kind, severity)
    if len(set(kinds)) < len(kinds) or len(set(severities)) < len(severities):
        raise InputError(f"{where} names a corruption or severity twice: {', '.join(map(str, (*kinds, *severities)))}")


def check_test_images(where: str, wanted: str) -> None:
    """Refuse another word.

    Raises:
        InputError: naming the choices.
    """
    if wanted not in ("auto", "archive", "generated"):
        raise InputError(f"{where} must be auto, archive or generated, got {wanted!r}")


def find_archive(where: str, wanted: TestImages, root: str | None, download: bool = False) -> Path | None:
    """The folder of the published test images, or None where they are to be generated.

    Raises:
        InputError: if the archive is asked for and not there.
    """
    if wanted == "archive" and root is None:
        raise InputError(
            f"{where}=archive, but no data root is named where it lies: choose generated, or data=cifar10c"
        )
    if wanted == "generated" or root is None:
        return None
    found = zenodo_archive(Path(root), download and wanted == "archive")
    if wanted == "archive" and found is None:
        raise InputError(
            f"{where}=archive, but {root} has no cifar10c/CIFAR-10-C: place the archive of Zenodo record 2535967 there,"
            " or choose generated; data=cifar10c data.download=true fetches it (2.9 GB)"
        )
    return found
