"""Pairs from resident images, beside one image at a time."""

from __future__ import annotations

import numpy as np
import torch

from latentrobust.benchmark.measuring import Conditions, Row, compared, done
from latentrobust.data.images import digits
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.transforms.affine import RotationTranslationScale

BATCH, SIDE, MARGIN = 128, 42, 7


def data(on: Conditions) -> list[Row]:
    """RTS pairs from resident uint8 digits, beside one image at a time through Pillow (as torchvision would do it)."""
    from PIL import Image  # noqa: PLC0415  (only the comparison needs it)

    module = FormulaPairs(digits, RotationTranslationScale(), "digits", canvas=SIDE, validation=200)
    module.setup()
    resident = module.splits["train"].images
    index = torch.arange(BATCH, device=on.device)
    step = 0

    def batched() -> int:
        nonlocal step
        step += 1
        module.pairs("train", index, step)
        return done(on.device, BATCH)

    stored = resident[:BATCH, 0].numpy()
    generator = np.random.default_rng(0)

    def one_by_one() -> int:
        pairs = []
        for array in stored:
            canvas = Image.fromarray(np.pad(array, MARGIN))
            angle, size = generator.uniform(-45, 45), generator.uniform(0.7, 1.3)
            left, top = generator.integers(0, 2 * MARGIN + 1, 2)
            cosine, sine = np.cos(np.radians(angle)) / size, np.sin(np.radians(angle)) / size
            centre = SIDE / 2
            matrix = (
                cosine, sine, centre - centre * cosine - centre * sine,
                -sine, cosine, centre + centre * sine - centre * cosine,
            )  # fmt: skip
            warped = canvas.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
            moved = np.pad(np.asarray(warped), MARGIN)[top : top + SIDE, left : left + SIDE]
            pairs.append(torch.from_numpy(np.stack([np.asarray(canvas), moved]).astype(np.float32) / 255))
        torch.stack(pairs).to(on.device)
        return BATCH

    return [compared(on, "data", [BATCH, 1, SIDE, SIDE], batched, one_by_one, counted=False)]
