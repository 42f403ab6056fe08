"""Images that stay on disk or in main memory, read for the next batch while the device works on this one."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple

import torch
from torch import Tensor

WORTH_IT = 1 << 28  # bytes: less is in the operating system's cache after an epoch


class _Read(NamedTuple):
    images: Tensor
    place: tuple[Tensor, ...]
    rows: Future[Tensor]

    def is_of(self, images: Tensor, index: tuple[Tensor, ...]) -> bool:
        return self.images is images and all(map(torch.equal, self.place, index))


class ReadAhead:
    """Rows of images, begun before they are asked for where somebody knows which come next.

    What is returned is the same with and without a beginning.
    """

    def __init__(self) -> None:
        self._reads: list[_Read] = []

    def __getstate__(self) -> dict[str, list[_Read]]:
        """A copy begins anew: what is being read cannot be copied."""
        return {"_reads": []}

    @staticmethod
    def helps(images: Tensor, pinned: bool) -> bool:
        """Whether anything is gained: not where images are on the device, or small with no device to copy them to."""
        return images.device.type == "cpu" and (pinned or images.numel() * images.element_size() >= WORTH_IT)

    def begin(self, images: Tensor, *indices: tuple[Tensor, ...], pinned: bool) -> None:
        """Read ``images[index]`` for each index in the background, one after the other.

        Args:
            images: in main memory, or mapped from a file.
            indices: a tuple of index tensors each, as `rows` will be given them.
            pinned: into memory from which a GPU copies while the processor goes on.
        """
        reads = [_Read(images, index, Future()) for index in indices]
        self._reads = [*self._reads[-len(indices) :], *reads]  # of the batch at hand, and of the next one
        # Waited for at the end of the process: one that is cut off inside PyTorch aborts it.
        Thread(target=_read, args=(reads, pinned), daemon=False).start()

    def rows(self, images: Tensor, index: tuple[Tensor, ...], device: torch.device) -> Tensor:
        """``images[index]`` on ``device``, read before or now.

        Raises:
            OSError, RuntimeError: what reading in the background has raised.
        """
        found = next((read for read in self._reads if read.is_of(images, index)), None)
        if found is None:
            return images[index].to(device)
        self._reads = [read for read in self._reads if read is not found]
        return found.rows.result().to(device, non_blocking=True)


def _read(reads: list[_Read], pinned: bool) -> None:
    for images, place, rows in reads:
        try:
            found = images[place]
            rows.set_result(found.pin_memory() if pinned else found)
        except Exception as error:  # raised where the rows are asked for
            rows.set_exception(error)
