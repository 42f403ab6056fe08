"""Corruptions of test images by kind and severity, for accuracies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latentrobust.arguments import Count, Seed, Severity, validated
from latentrobust.data.corruptions.files import Corrupted, corruption_keys
from latentrobust.data.corruptions.module import (
    CorruptionPairs,
    TestImages,
    check_names,
    check_test_images,
    find_archive,
)
from latentrobust.data.images.module import ImagePairs
from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.transforms.corruptions import CORRUPTIONS, SEVERITIES, make


@validated
class CorruptionGrid:
    """Corruptions and severities of the test images: for accuracies by kind and severity.

    Args:
        kinds: names of corruptions.
        severities: 1 to 5.
        test_images: as in `CorruptionPairs`; None for what the data does, if it is such data, else ``generated``.
        root: data root, where the archive is looked for; None for the data's.
        seed: of generated ones.
        examples: the first so many test images; None for all.

    Raises:
        InputError: for kinds and severities that do not exist, and other values that cannot be.
    """

    def __init__(
        self,
        kinds: Sequence[str] = tuple(CORRUPTIONS),
        severities: Sequence[Severity] = SEVERITIES,
        test_images: TestImages | None = None,
        root: str | None = None,
        seed: Seed = 0,
        examples: Count | None = None,
    ) -> None:
        check_names("a grid of corruptions", kinds, severities)
        if test_images is not None:
            check_test_images("test_images of a grid of corruptions", test_images)
        self.kinds, self.severities, self.seed, self.examples = tuple(kinds), tuple(severities), seed, examples
        self.test_images, self.root = test_images, root
        self._files: Corrupted | None = None

    def setup(self, data: PairData) -> None:
        """See which files there are for the test images of some data.

        Raises:
            InputError: if they are of other images, damaged or incomplete; if the data is not RGB images one by one.
        """
        if not isinstance(data, ImagePairs) or data.image_shape[0] != 3:
            raise InputError(
                f"corruptions are for RGB images one by one, data {data.name} has something else: leave the grid out"
            )
        like_data = data if isinstance(data, CorruptionPairs) else None
        wanted: TestImages = self.test_images or (like_data.test_images if like_data is not None else "generated")
        root = self.root or (like_data.root if like_data is not None else None)
        archive = find_archive("test_images of a grid of corruptions", wanted, root)
        if archive is not None:
            test = like_data.file_test if like_data is not None else data.source().test
            self._files = Corrupted(archive, len(test.images), tuple(data.image_shape))
            self._files.check(self.kinds, self.severities, test, "test")

    def images(self, kind: str, severity: int, originals: Tensor, rows: Tensor) -> Tensor:
        """Test images ``rows [B]`` with originals uint8 ``[B, 3, H, W]``, corrupted: float in [0, 1]."""
        if self._files is not None:
            found = self._files.rows(kind, severity, rows.cpu()).to(originals.device)
        else:
            found = make(kind, severity)(originals, corruption_keys(self.seed, "test", rows, kind, severity))
        return found.float().div_(255)
