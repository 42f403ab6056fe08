"""Images that a set or a model was made with, told by hashes, so that figures on the same images are not taken for new.

Hashes are of the images that networks get, as 256 levels: the same image of another size is another one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from latentrobust.errors import warn

NAME = "_latentrobust_seen"  # of the attribute: a module from elsewhere may have any other
MOST = 1 << 16  # hashes that are kept: half a megabyte
SHARE = 0.01  # of images that are known, up to which nothing is said: data sets have a few images twice
FEW = 3  # and so many examples
KEY = "seen"


class Hashes(NamedTuple):
    """Of images: ``hashes [M]``, uint64, 0 for an image of one colour; and the example that each is of, ``[M]``."""

    hashes: np.ndarray
    example: np.ndarray


class HasHashes(Protocol):
    """Data whose splits have hashes."""

    def hashes(self, split: str) -> Hashes | None:
        """Of the originals of a split; None where they are not known."""


class Seen(NamedTuple):
    """The smallest hashes of images.

    Attributes:
        hashes: uint64, rising.
        below: all hashes smaller than this are here.
    """

    hashes: np.ndarray
    below: int = 1 << 64

    @classmethod
    def of(cls, data: HasHashes) -> Seen | None:
        """What was learned from and selected on; None where the data does not know its images."""
        parts = [data.hashes(split) for split in ("train", "validation")]
        known = [part.hashes for part in parts if part is not None]
        return cls.smallest(np.concatenate(known)) if len(known) == len(parts) else None

    @classmethod
    def smallest(cls, hashes: np.ndarray, below: int = 1 << 64) -> Seen:
        """At most `MOST` of them, which are enough to tell a share."""
        hashes = np.unique(hashes[hashes > 0])
        if len(hashes) > MOST:
            below = min(below, int(hashes[MOST]))
        return cls(_smaller(hashes, below), below)

    def joined(self, other: Seen | None) -> Seen:
        """With the images of another one."""
        if other is None:
            return self
        return self.smallest(np.concatenate([self.hashes, other.hashes]), min(self.below, other.below))

    def known(self, asked: Hashes) -> tuple[int, int]:
        """How many of the examples have an image that is here, of how many: those whose hashes would have been kept."""
        could = asked.hashes > 0
        if self.below < 1 << 64:
            could &= asked.hashes < np.uint64(self.below)
        examples = np.unique(asked.example[could])
        found = np.unique(asked.example[could & np.isin(asked.hashes, self.hashes)])
        return len(found), len(examples)

    def to_text(self) -> dict[str, str]:
        """For a file's metadata."""
        # One entry: safetensors writes several in any order, and files that hold the same are to be the same.
        hashes = base64.b64encode(self.hashes.tobytes()).decode()
        return {KEY: json.dumps({"below": self.below, "hashes": hashes})}

    @classmethod
    def from_text(cls, stored: Mapping[str, str]) -> Seen | None:
        """What `to_text` made; None where there is nothing of it, or nothing that can be read."""
        try:
            found = json.loads(stored[KEY])
            hashes, below = np.frombuffer(base64.b64decode(found["hashes"]), np.uint64), int(found["below"])
        except (KeyError, TypeError, ValueError):
            return None
        return cls(hashes, below) if 0 <= below <= 1 << 64 else None


def hashes_of(images: Tensor) -> np.ndarray:
    """Of images, uint8 ``[M, ...]``: uint64 ``[M]``, 0 for those of one colour, which are no sign of the same thing."""
    found = np.zeros(len(images), np.uint64)
    for place, image in enumerate(images.cpu().numpy()):
        channels = image.reshape(image.shape[0], -1)
        if (channels != channels[:, :1]).any():
            digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
            found[place] = np.frombuffer(digest, np.uint64)[0]
    return found


def note_seen(module: nn.Module, seen: Seen | None) -> None:
    """Remember what a set or a model was made with, besides what it was made with before."""
    if seen is not None:
        setattr(module, NAME, seen.joined(seen_by(module)))


def seen_by(module: nn.Module) -> Seen | None:
    """What `note_seen` has remembered of a module and of its parts; None where nobody knows."""
    found: Seen | None = None
    for part in module.modules():
        own = getattr(part, NAME, None)
        if isinstance(own, Seen):
            found = own.joined(found)
    return found


def share_seen(module: nn.Module, asked: Callable[[], Hashes | None], what: str) -> float | None:
    """Which share of the examples a set or model was made with, of which there is a warning.

    Args:
        module: the set or model.
        asked: gives hashes of what it is measured on, None where they are not known; called where something is known of
            the module.
        what: the set or model in words.

    Returns:
        0 also where so few are known as data sets have twice; None where nobody knows.
    """
    seen = seen_by(module)
    hashes = asked() if seen is not None else None
    if seen is None or hashes is None:
        return None
    known, count = seen.known(hashes)
    if not count:
        return None
    share = known / count
    if known < FEW or share <= SHARE:
        return 0.0
    warn(
        f"{what} was learned from, or selected on, {share:.0%} of the images that it is measured on: its figures are"
        " better than on new ones; split the data as it was split then (data.test, data.validation, data.split_seed"
        " and what chooses files and groups)"
    )
    return share


def _smaller(hashes: np.ndarray, below: int) -> np.ndarray:
    return hashes if below >= 1 << 64 else hashes[hashes < np.uint64(below)]
