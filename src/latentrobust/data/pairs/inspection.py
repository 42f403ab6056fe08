"""What there is in somebody's pairs, before anything is learned from them: counts, sizes, problems, a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentrobust.data.pairs.copies import copies
from latentrobust.data.pairs.from_arrays import holds_arrays, read_arrays
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.data.pairs.layouts import LabelFrom, Layout, listed
from latentrobust.data.pairs.listing import ProblemsError
from latentrobust.data.pairs.packing import Colour, Fit, cache_folder, common_look, headers, packed
from latentrobust.data.pairs.reading import of_listing, refuse_for_arrays, twin_kinds
from latentrobust.data.pairs.table import Pairs
from latentrobust.errors import InputError
from latentrobust.files import replacing

SHOWN = 12  # names of kinds and classes
LOOKED_AT, DARK = 256, 64  # images whose brightest value is looked for, and below which it is pointed out
COLUMNS, MOST = 8, 24  # pairs that a picture shows beside one another, and in all
GAP, TEXT, LEAST_WIDTH = 2, 13, 96  # pixels between images, of a line, and of a small image enlarged
MARK = "latentrobust"  # in a picture's file, which may then be replaced by the next one


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        lines: to print.
        problems: with files and rows, all of them.
        pairs: those that can be used; None where there are none.
        refused: why a run with these options would not start although the files are in order.
    """

    lines: tuple[str, ...]
    problems: tuple[str, ...]
    pairs: Pairs | None
    refused: tuple[str, ...] = ()


def inspect(
    root: Path,
    layout: Layout = "auto",
    size: Sequence[int] | None = None,
    fit: Fit = "resize",
    colour: Colour = "auto",
    background: int = 255,
    original: str | None = None,
    label: LabelFrom | None = None,
    cache: str | None = None,
    validation: int | float = 0.1,
    test: int | float = 0.2,
) -> Inspection:
    """Look at everything that `read_pairs` would read; arguments as for it and, of the splits, for `GivenPairs`.

    Raises:
        InputError: if there is nothing to look at.
    """
    if layout == "arrays" or (layout == "auto" and holds_arrays(root)):
        refuse_for_arrays(
            root, size=size, original=original, label=label, colour=colour, fit=fit, background=background
        )
        table = read_arrays(root, root.resolve().stem, cache)
        about, refused = _of_table(table, validation, test)
        return Inspection((f"{root}: arrays", *about), (), table, refused)
    found = listed(root, layout, original, label)
    if not found.files and found.problems:
        raise ProblemsError(str(root), found.problems)
    base = root if root.is_dir() else root.parent
    looked = headers(found.files)
    sizes = Counter(own for own, _ in looked.found.values())
    grey = sum(is_grey for _, is_grey in looked.found.values())
    lines = [
        f"{root}: {len(found.files):,} images in {len(found.perturbed):,} pairs"
        + (f"; {found.ignored:,} other files" if found.ignored else ""),
        "sizes (height×width): " + _counted({f"{h}×{w}": count for (h, w), count in sizes.items()}),
        f"colour: {grey:,} grey, {len(looked.found) - grey:,} in colour",
    ]
    wanted = size if size is not None or not sizes else sizes.most_common(1)[0][0]
    either: Colour = ("grey" if grey == len(looked.found) else "colour") if colour == "auto" else colour
    look = common_look(looked, wanted, either, fit, background, str(root))
    images, unreadable = packed(found.files, look, cache_folder(cache, root), base)
    wrong = unreadable | looked.problems | copies(found, images, look)
    problems = (*found.problems, *twin_kinds(found.kind), *wrong.values())
    found.leave_out(wrong)
    table_or_none = of_listing(found, images, root.resolve().stem, problems) if found.perturbed else None
    about, refused = ([], ()) if table_or_none is None else _of_table(table_or_none, validation, test)
    lines += about
    if size is None and len(sizes) > 1:
        height, width = sizes.most_common(1)[0][0]
        refused += (f"images have several sizes: give one, such as data.size=[{height},{width}]",)
        lines.append(refused[-1])
    if colour == "auto" and 0 < grey < len(looked.found):
        refused += ("images are grey and in colour: give data.colour=grey or data.colour=colour",)
        lines.append(refused[-1])
    return Inspection(tuple(lines), problems, table_or_none, refused)


def _of_table(table: Pairs, validation: int | float, test: int | float) -> tuple[list[str], tuple[str, ...]]:
    """What a table holds, and why it cannot be split."""
    lines = [f"{table.describe()}"]
    images = table.images[:LOOKED_AT]
    if len(images) and (brightest := int(images.max())) < DARK:
        lines.append(
            f"dark: no value of the first {len(images):,} images is above {brightest} of 255 (files of 16 bits that use"
            " fewer of them? whole numbers 0 and 1, which have to be floats?)"
        )
    if len(table.kinds) > 1:
        counts = table.kind.bincount(minlength=len(table.kinds)).tolist()
        lines.append("kinds: " + _counted(dict(zip(table.kinds, counts, strict=True)), by_count=False))
    if table.label is None:
        lines.append("labels: none, so a set can be learned, and no model trained (data.label=parent, or a manifest)")
    else:
        counts = table.label.bincount().tolist()
        names = table.class_names or tuple(map(str, range(len(counts))))
        lines.append("labels: " + _counted(dict(zip(names, counts, strict=True)), by_count=False))
    try:
        data = GivenPairs(table, validation=validation, test=test)
    except InputError as error:
        return [*lines, f"splits: {error}"], (str(error),)
    lines.append(
        "splits: "
        + ", ".join(
            f"{split} {len(data.given.group[data.rows[split]].unique()):,} groups with {len(data.rows[split]):,} pairs"
            for split in data.rows
        )
    )
    return lines, ()


def _counted(counts: dict[str, int], by_count: bool = True) -> str:
    items: Iterable[tuple[str, int]] = counts.items()
    if by_count:
        items = sorted(items, key=lambda item: -item[1])
    shown = [f"{name} ({count:,})" for name, count in items]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def picture(pairs: Pairs, path: Path) -> None:
    """A picture of some pairs: first halves above second halves, each pair below its kind and class.

    Raises:
        OSError: if it cannot be written.
    """
    data = GivenPairs(pairs, validation=1, test=1) if len(pairs.groups) > 2 else None
    if data is not None:
        drawn = torch.randperm(data.count("train"), generator=torch.Generator().manual_seed(0))[:MOST]
        batch = data.pairs("train", drawn)
        halves, kinds, labels = (batch.x, batch.perturbed), batch.kind, batch.y
    else:
        rows = torch.linspace(0, len(pairs) - 1, MOST).long().unique()
        clean = torch.where(pairs.clean[rows] < 0, pairs.perturbed[rows.flip(0)], pairs.clean[rows])
        halves = tuple(pairs.images[place].float() / 255 for place in (clean, pairs.perturbed[rows]))  # type: ignore[assignment]
        kinds, labels = pairs.kind[rows], None if pairs.label is None else pairs.label[rows]
    names = [pairs.kinds[kind] for kind in kinds.tolist()]
    if labels is not None:
        classes = [pairs.class_names[label] if pairs.class_names else str(label) for label in labels.tolist()]
        names = [f"{name}, {own}" for name, own in zip(names, classes, strict=True)]
    image = _grid(halves, names, ("original", "perturbed") if pairs.centred else ("one", "another"))
    with replacing(path) as file:
        image.save(file, format="PNG", pnginfo=_mark())


def may_be_replaced(path: Path) -> bool:
    """Whether there is nothing, or a picture that this module has drawn."""
    if not path.exists():
        return True
    with suppress(OSError), Image.open(path) as found:
        return bool(found.info.get(MARK))
    return False


def _mark() -> PngInfo:
    about = PngInfo()
    about.add_text(MARK, "python -m latentrobust.data inspect")
    return about


def _grid(halves: Sequence[Tensor], names: Sequence[str], sides: Sequence[str]) -> Image.Image:
    """Pairs beside one another, ``COLUMNS`` in a band, each half ``[N, C, H, W]`` with its name at the left."""
    count, _, height, width = halves[0].shape
    scale = max(-(-LEAST_WIDTH // width), 1)
    tile = (width * scale, height * scale)
    font = ImageFont.load_default(TEXT)
    left, line = round(max(map(font.getlength, sides))) + 3 * GAP, TEXT + 3 * GAP
    band = line + 2 * (tile[1] + GAP) + 4 * GAP
    columns = min(COLUMNS, count)
    canvas = Image.new("RGB", (left + columns * (tile[0] + GAP), -(-count // columns) * band), "white")
    pen = ImageDraw.Draw(canvas)
    for number in range(count):
        across, top = left + number % columns * (tile[0] + GAP), number // columns * band
        pen.text((across, top), _cut(names[number], font, tile[0]), "black", font)
        for place, (half, side) in enumerate(zip(halves, sides, strict=True)):
            below = top + line + place * (tile[1] + GAP)
            pixels = (half[number].expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            drawn = Image.fromarray(np.ascontiguousarray(pixels)).resize(tile, Image.Resampling.NEAREST)
            canvas.paste(drawn, (across, below))
            if number % columns == 0:
                pen.text((0, below + (tile[1] - TEXT) // 2), side, "black", font)
    return canvas


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
