"""What reading ahead saves: ``python docs/reading.py FOLDER`` (1 GB there; root empties the page cache for it)."""

import argparse
import dataclasses
import gc
import os
import time
from pathlib import Path

import numpy as np
import torch

from latentrobust import pairs
from latentrobust.data import ahead
from latentrobust.data.pairs.given import GivenPairs

COUNT, SHAPE, BATCH, BATCHES = 20_000, (3, 128, 128), 64, 40
STEP = 0.06  # seconds in which a device works and the processor has nothing to do
CACHE = Path("/proc/sys/vm/drop_caches")


def seconds_per_batch(images: torch.Tensor, reads_ahead: bool) -> float:
    """Of a training epoch's beginning, without the step itself."""
    ahead.WORTH_IT = 0 if reads_ahead else images.numel() + 1
    small = torch.randint(256, (2, COUNT // 2, 1, 4, 4), dtype=torch.uint8)  # which the pairs' groups are told by
    table = dataclasses.replace(pairs(*small), images=images)
    data = GivenPairs(table, batch_size=BATCH)
    started = time.perf_counter()
    for number, indices in enumerate(data.train_dataloader()):
        if number == BATCHES:
            break
        data.on_after_batch_transfer(indices, 0)
        time.sleep(STEP)
    return (time.perf_counter() - started) / BATCHES - STEP


def main() -> None:
    """Plain and read ahead in turns, with a cold and a warm page cache."""
    parser = argparse.ArgumentParser(prog="docs/reading.py", description=__doc__)
    parser.add_argument("folder", type=Path)
    path = parser.parse_args().folder / "images.npy"
    torch.set_num_threads(1)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(COUNT, *SHAPE))
    for start in range(0, COUNT, 1000):
        written[start : start + 1000] = np.random.default_rng(start).integers(0, 256, (1000, *SHAPE), dtype=np.uint8)
    written.flush()
    del written
    for is_cold in (True, False):
        for reads_ahead in (False, True) * 3:
            gc.collect()
            if is_cold and os.access(CACHE, os.W_OK):
                os.sync()
                CACHE.write_text("1")
            images = torch.from_numpy(np.load(path, mmap_mode="c"))
            found = 1000 * seconds_per_batch(images, reads_ahead)
            print(f"{'cold' if is_cold else 'warm'}, {'ahead' if reads_ahead else 'plain'}: {found:.1f} ms", flush=True)
            del images
    path.unlink()


if __name__ == "__main__":
    main()
