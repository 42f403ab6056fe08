"""Corruptions in batch, beside the same one image at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from latentrobust.benchmark.measuring import Conditions, Row, compared, done, row
from latentrobust.data.images import photos
from latentrobust.transforms.corruptions import CORRUPTIONS, TRAINING, corrupt
from latentrobust.transforms.random import example_keys

IMAGES, ALONE, SIDE = 8192, 16, 32
PAIRS = 50_000  # training images of CIFAR-10, each with twelve kinds


def corruptions(on: Conditions) -> list[Row]:
    """Each kind at severity 5 on patches of photos, beside one image at a time, as a data set's ``__getitem__`` would.

    The last row is the mean rate over the twelve training kinds, and how long the 600,000 training pairs of CIFAR-10-C
    take at it is printed.
    """
    images = photos(SIDE, IMAGES, 1).train.images.to(on.device)
    keys = example_keys(0, torch.arange(IMAGES, device=on.device))
    rows, each = [], replace(on, seconds=on.seconds / len(CORRUPTIONS))
    for name in CORRUPTIONS:

        def batched(name: str = name) -> int:
            corrupt(images, name, 5, keys)
            return done(on.device, IMAGES)

        def one_by_one(name: str = name) -> int:
            for number in range(ALONE):
                corrupt(images[number : number + 1], name, 5, keys[number : number + 1])
            return done(on.device, ALONE)

        rows.append(compared(each, name, [IMAGES, 3, SIDE, SIDE], batched, one_by_one, counted=False))
    memory = max(found["peak_memory_mb"] for found in rows)
    chosen = [found for found in rows if found["loop"] in TRAINING]
    ours, plain = (
        len(chosen) / sum(1 / found[rate] for found in chosen)
        for rate in ("samples_per_second", "plain_samples_per_second")
    )
    print(f"the {12 * PAIRS:,} training pairs of CIFAR-10-C would take {12 * PAIRS / ours:.1f} s")
    return [*rows, row("training corruptions", [IMAGES, 3, SIDE, SIDE], on, ours, plain, memory)]
