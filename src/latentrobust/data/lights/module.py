"""Pairs of one scene under two lights (Wong & Kolter, section 5.2 and appendix G), with maps of its materials."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from latentrobust.arguments import Count, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.ahead import ReadAhead
from latentrobust.data.lights.materials import CLASSES, OTHER, to_classes
from latentrobust.data.lights.scenes import Scenes, SceneSplits, skipped_note
from latentrobust.data.loader import Indices
from latentrobust.data.module import PAIRS, PairModule
from latentrobust.data.pairs.copies import LARGEST
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.seen import Hashes, hashes_of
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Augmentation, apply_in_order, check_moves_alone


@validated
class LightPairs(PairModule):
    """Ordered pairs of different lights within a scene: no light is the unperturbed one.

    An epoch has each training scene once, under two lights that are drawn anew each epoch. Validation and test have
    each scene under each of ``targets`` lights as the perturbed half; the other half's light is drawn once.

    Args:
        source: called without arguments, gives `SceneSplits`.
        name: of the data.
        train_light: name or place (from 0) of the light that the first half of every training pair has; a name that
            fits comes first; null draws it.
        test_light: the same for validation and test pairs; it is then no target.
        targets: validation and test have so many lights a scene, spread over all of them; null for all.
        joint: augmentations of training pairs by name; both images and the map of materials change alike.
        ignore_other: leave pixels of the class "Other" out of losses and accuracies.
        batch_size: pairs a batch and process.
        train_size: train on so many scenes; null for all.
        validation_size: validate on the first so many; null for all.
        test_size: measure on the first so many; null for all.
        resident: keep all images on the training device; else only those of a batch go there, read from where the
            source keeps them.
        split_seed: of the part to train on, and of validation and test pairs.
        seed: of order, lights and augmentation of the training pairs.

    Raises:
        InputError: for sizes and lights that do not exist.
    """

    def __init__(
        self,
        source: Callable[[], SceneSplits],
        name: str,
        train_light: int | str | None = None,
        test_light: int | str | None = None,
        targets: Count | None = None,
        joint: Mapping[str, Augmentation] | None = None,
        ignore_other: bool = False,
        batch_size: Count = 64,
        train_size: Count | None = None,
        validation_size: Count | None = None,
        test_size: Count | None = None,
        resident: bool = True,
        split_seed: Seed = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, batch_size, split_seed, seed)
        self.source, self.train_size, self.test_size = source, train_size, test_size
        self.stored: dict[str, Scenes] = {}
        self.rows: dict[str, Tensor] = {}
        self._wanted_lights = {"train": train_light, "validation": test_light, "test": test_light}
        self.lights: dict[str, int | None] = {}
        self.targets, self.validation_size = targets, validation_size
        self.joint, self.ignore_other, self.resident = dict(joint or {}), ignore_other, resident
        self._shown = torch.zeros(0, dtype=torch.int64)
        self._ahead = ReadAhead()

    def setup(self, stage: str | None = None) -> None:
        """Read the scenes; done once."""
        if self.stored:
            return
        found: SceneSplits = self.source()
        if found.train.materials is not None:
            check_moves_alone(self.joint)
        self.kinds, self.note = found.lights, " ".join(filter(None, (found.note, skipped_note(found.left_out))))
        if found.left_out and self._is_first_process:
            print(f"data {self.name}: {skipped_note(found.left_out)}", file=sys.stderr)
        self.lights = {split: self._light(split, light) for split, light in self._wanted_lights.items()}
        self._shown = self._targets(len(found.lights))
        order = random.permutation(self.split_seed, len(found.train.names))
        if self.train_size is not None:
            if self.train_size > len(order):
                raise InputError(f"data.train_size={self.train_size} of {len(order)} training scenes")
            order = order[: self.train_size]
        self.rows["train"] = order
        if self.batch_size > len(order):
            raise InputError(f"data.batch_size={self.batch_size} exceeds the {len(order)} training scenes: lower it")
        self._keep("train", found.train)
        self._keep("validation", found.validation, self.validation_size)
        self._keep("test", found.test, self.test_size)

    def _light(self, split: str, light: int | str | None) -> int | None:
        """A light's number, by number or name."""
        if light is None:
            return None
        if isinstance(light, bool):
            raise InputError(f"data.train_light and data.test_light are names or places of lights, got {light}")
        if str(light) in self.kinds:  # names may be numbers: 2 is the light called 2 before it is the third one
            return self.kinds.index(str(light))
        if isinstance(light, int) and 0 <= light < len(self.kinds):
            return light
        setting = "train_light" if split == "train" else "test_light"
        names = ", ".join(self.kinds[:6]) + (" …" if len(self.kinds) > 6 else "")
        raise InputError(
            f"data.{setting}={light}: the scenes have lights 0 to {len(self.kinds) - 1}, or by name {names}"
        )

    def _targets(self, count: int) -> Tensor:
        """The lights of the second half of validation and test pairs: spread over all but the first half's."""
        lights = torch.tensor([light for light in range(count) if light != self.lights["test"]])
        wanted = self.targets or len(lights)
        if wanted > len(lights):
            raise InputError(f"data.targets={wanted}: there are {len(lights)} lights to be targets")
        return lights[torch.arange(wanted) * len(lights) // wanted]

    def _keep(self, split: str, scenes: Scenes, limit: int | None = None) -> None:
        part = slice(0, limit)
        if split != "train":
            self.rows[split] = torch.arange(len(scenes.names))[part]
        # Sliced, not gathered: images may lie on disk.
        materials = None if scenes.materials is None else scenes.materials[part]
        self.stored[split] = Scenes(scenes.images[part], materials, scenes.names[part])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image."""
        self.setup()
        return tuple(self.stored["train"].images.shape[2:])

    def first_kinds(self, split: str) -> Tensor:
        """The first target light: every scene has a pair with each."""
        self.setup()
        return self._shown[:1].repeat(len(self.rows[split]))

    @property
    def per_pixel(self) -> bool:
        """Whether there are maps of materials."""
        self.setup()
        return self.stored["train"].materials is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the materials."""
        return CLASSES

    @property
    def other_class(self) -> int | None:
        """The class of everything that is no known material; None where it does not count."""
        return None if self.ignore_other else OTHER

    @property
    def classes(self) -> int:
        """Number of classes of materials.

        Raises:
            InputError: for scenes without maps.
        """
        if not self.per_pixel:
            raise InputError(f"data {self.name} has no maps of materials: a set can be learned, no model trained")
        return len(CLASSES)

    @property
    def has_labels(self) -> bool:
        """Whether there are maps of materials."""
        return self.per_pixel

    def examples(self, split: str) -> int:
        """Scenes."""
        self.setup()
        return len(self.rows[split])

    def count(self, split: str) -> int:
        """Pairs per epoch: a scene once in training, under every target light otherwise."""
        scenes = len(self.rows[split])
        return scenes if split == "train" else scenes * len(self._shown)

    def _make_hashes(self, split: str) -> Hashes:
        """Of each scene under every light; of more than 8 GB, which would take too long, under the first one."""
        images, rows = self.stored[split].images, self.rows[split]
        lights = images.shape[1] if images[0].numel() * len(rows) <= LARGEST else 1
        found = [hashes_of(images[part.to(images.device), :lights].flatten(0, 1)) for part in rows.split(16)]
        return Hashes(np.concatenate(found), np.arange(len(rows)).repeat(lights))

    def pairs(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """The pairs ``index [B]`` of a split, on the index's device; validation and test go light by light.

        ``kind`` is the second image's light; ``y`` classes ``[B, H, W]`` (−1 does not count), or None without maps.
        """
        scene, condition, target = self._drawn(split, index, epoch)
        pairs = self._made(split, scene, condition, target, epoch if split == "train" else 0)
        if split != "train" or not self.joint:
            return pairs
        own = random.example_keys(self.seed, index, PAIRS["train"], epoch)
        return self._augmented(pairs, random.fold_in(own, Purpose.JOINT))

    def read_ahead(self, batch: Indices) -> None:
        """Begin to read both halves of the next batch, where images do not rest on the device."""
        images = self.stored[batch.split].images
        if (self.resident and self._copies_to_gpu) or not self._ahead.helps(images, self._copies_to_gpu):
            return
        scene, condition, target = self._drawn(batch.split, batch.examples, batch.epoch)
        rows = self.rows[batch.split][scene]
        self._ahead.begin(images, (rows, condition), (rows, target), pinned=self._copies_to_gpu)

    def _drawn(self, split: str, index: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scenes of pairs, and the lights of their first and second halves."""
        if split != "train":
            scenes = len(self.rows[split])
            scene, target = index % scenes, self._shown.to(index.device)[index // scenes]
            return scene, self._condition(split, scene, target), target
        own = random.example_keys(self.seed, index, PAIRS["train"], epoch)
        light = self.lights["train"]
        if light is None:
            condition = random.integers(random.fold_in(own, Purpose.CONDITION), 0, len(self.kinds))
        else:
            condition = torch.full_like(index, light)
        return index, condition, self._another(condition, random.fold_in(own, Purpose.TARGET))

    def pairs_of_kind(self, split: str, examples: Tensor, kind: int) -> Batch:
        """Scenes ``examples [B]`` with one light (a place in `kinds`) as the perturbed half, outside training."""
        return self._pairs(split, examples, torch.full_like(examples, kind))

    def first_pairs(self, split: str, count: int, device: torch.device | str = "cpu") -> Batch:
        """The first scenes of a split, each with another light."""
        self.setup()
        number = torch.arange(min(count, len(self.rows[split])), device=device)
        return (
            self.pairs(split, number)
            if split == "train"
            else self._pairs(split, number, self._shown.to(device)[number % len(self._shown)])
        )

    def _pairs(self, split: str, scene: Tensor, target: Tensor) -> Batch:
        """Pairs outside training."""
        return self._made(split, scene, self._condition(split, scene, target), target, 0)

    def _condition(self, split: str, scene: Tensor, target: Tensor) -> Tensor:
        """The first half's light, which belongs to scene and target outside training."""
        light = self.lights[split]
        if light is not None:
            return torch.full_like(target, light)
        own = random.fold_in(random.example_keys(self.split_seed, scene, PAIRS[split]), target)
        return self._another(target, random.fold_in(own, Purpose.CONDITION))

    def _another(self, light: Tensor, keys: Tensor) -> Tensor:
        """A light other than the given ones, by keys, each with the same probability."""
        return (light + random.integers(keys, 1, len(self.kinds))) % len(self.kinds)

    def _made(self, split: str, scene: Tensor, condition: Tensor, target: Tensor, epoch: int) -> Batch:
        stored = self._resident(split, scene.device)
        place = stored.images.device
        rows = self.rows[split].to(place)[scene.to(place)]
        images = [
            self._ahead.rows(stored.images, (rows, light.to(place)), scene.device).float().div_(255)
            for light in (condition, target)
        ]
        label = None
        if stored.materials is not None:
            label = to_classes(stored.materials[rows].to(scene.device), self.ignore_other)
        return Batch(images[0], scene, target, label, images[1], None, epoch)

    def _resident(self, split: str, device: torch.device) -> Scenes:
        stored = self.stored[split]
        if self.resident and stored.images.device != device:
            materials = None if stored.materials is None else stored.materials.to(device)
            stored = self.stored[split] = stored._replace(images=stored.images.to(device), materials=materials)
        return stored

    def _augmented(self, pairs: Batch, keys: Tensor) -> Batch:
        x, x_tilde = (apply_in_order(self.joint, images, keys) for images in (pairs.x, pairs.perturbed))
        label = pairs.y
        if label is not None:
            # As an image of numbers from 1 up, whose padding is 0: not a class, and does not count.
            label = apply_in_order(self.joint, (label[:, None] + 1).float(), keys)[:, 0].round().long() - 1
        return dataclasses.replace(pairs, x=x, x_tilde=x_tilde, y=label)
