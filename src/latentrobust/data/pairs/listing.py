"""Which image files are pairs: what the layouts of own pairs are read into, before any pixel is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentrobust.errors import InputError

SHOWN = 1000
PERTURBED = "perturbed"
"""The kind of pairs whose kind nobody names."""

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class ProblemsError(InputError):
    """Several things that are wrong with data; the message has all of them in one line, up to a length.

    Attributes:
        problems: each of them.
    """

    def __init__(self, what: str, problems: Sequence[str], remedy: str = "") -> None:
        shown = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        count = f"{len(problems):,} problems" if len(problems) > 1 else "a problem"
        super().__init__(f"{what}: {count}: {shown}{more}{remedy}")
        self.problems = tuple(problems)


@dataclass
class Listing:
    """Image files, and which of them are pairs.

    Attributes:
        files: paths, each once.
        clean: the place in ``files`` of each pair's first half; −1 where it is drawn among the others of its group.
        perturbed: of its second half.
        kind: of each pair.
        group: of each pair: what is photographed, or otherwise belongs together and into one split.
        label: of each pair, or None.
        split: ``train``, ``validation`` or ``test`` of each pair, or None where it is drawn.
        problems: what is wrong with files and rows that are left out.
        ignored: how many files were no images.
    """

    files: list[Path] = field(default_factory=list)
    clean: list[int] = field(default_factory=list)
    perturbed: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    label: list[str | None] = field(default_factory=list)
    split: list[str | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: int = 0
    _places: dict[Path, int] = field(default_factory=dict)

    def place(self, path: Path) -> int:
        """The place of a file, which is added where it is new."""
        if path not in self._places:
            self._places[path] = len(self.files)
            self.files.append(path)
        return self._places[path]

    def add(
        self, clean: Path | None, perturbed: Path, kind: str, group: str, label: str | None, split: str | None
    ) -> None:
        """Add a pair."""
        self.clean.append(-1 if clean is None else self.place(clean))
        self.perturbed.append(self.place(perturbed))
        self.kind.append(kind)
        self.group.append(group)
        self.label.append(label)
        self.split.append(split)

    def extend(self, other: Listing, split: str) -> None:
        """Add the pairs of a listing, all in one split; groups of two splits are not the same."""
        for row in range(len(other.perturbed)):
            clean = None if other.clean[row] < 0 else other.files[other.clean[row]]
            group = f"{split}/{other.group[row]}"
            self.add(clean, other.files[other.perturbed[row]], other.kind[row], group, other.label[row], split)
        self.problems += other.problems
        self.ignored += other.ignored

    def leave_out(self, places: Collection[int]) -> None:
        """Leave out the pairs of some files, those without a label where others have one, and groups of one image."""
        self.keep(
            row
            for row, pair in enumerate(zip(self.clean, self.perturbed, strict=True))
            if not set(pair) & set(places) and (self.label[row] is not None or not any(self.label))
        )
        if self.clean and min(self.clean) < 0:  # a group of which one image is left has no pair
            left = Counter(self.group)
            self.keep(row for row, group in enumerate(self.group) if left[group] > 1)

    def keep(self, rows: Iterable[int]) -> None:
        """Leave out all pairs but some."""
        rows = list(rows)
        for name in ("clean", "perturbed", "kind", "group", "label", "split"):
            column = getattr(self, name)
            setattr(self, name, [column[row] for row in rows])
