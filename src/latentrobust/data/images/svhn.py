"""SVHN in its cropped 32×32 form: MATLAB v5 files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.io

from latentrobust.data.download import Remote, fetch, file_md5
from latentrobust.data.images.base import Images, Split, to_labels, to_uint8
from latentrobust.errors import InputError
from latentrobust.files import regular

_SVHN = Remote(
    "http://ufldl.stanford.edu/housenumbers/",
    {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
)


def svhn(root: str, download: bool = True) -> Images:
    """SVHN: 73,257 and 26,032 house numbers, 3×32×32, from ``<root>/svhn/``, downloaded there when missing.

    Raises:
        InputError: if files are missing and cannot be downloaded, fail their checksum, or are damaged.
    """
    folder = Path(root) / "svhn"
    paths = [folder / name if (folder / name).is_file() else fetch(_SVHN, name, folder, download) for name in _SVHN.md5]
    return Images(*(read_mat(path) for path in paths))


def _try_apart(path: Path) -> None:
    """Read a file in a process of its own first: SciPy's reader may end the process over a damaged one.

    Raises:
        ValueError: if it does.
    """
    code = "import sys, scipy.io; scipy.io.loadmat(sys.argv[1], variable_names=['X', 'y'], appendmat=False)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(lines[-1] if lines and done.returncode > 0 else "its reader crashes over it")


def read_mat(path: str | Path) -> Split:
    """One file: ``X [32, 32, 3, N]`` uint8 and ``y [N, 1]``, where 10 stands for the digit 0.

    Raises:
        InputError: if it is missing, damaged, of another version or content.
    """
    path = Path(path)
    try:
        if file_md5(regular(path)) not in _SVHN.md5.values():
            _try_apart(path)
        # Objects and functions of MATLAB come as opaque arrays at most: nothing in such a file is run.
        content = scipy.io.loadmat(str(path), variable_names=["X", "y"], appendmat=False)
    except FileNotFoundError:
        raise InputError(f"no data file at {path}") from None
    except Exception as error:  # a damaged file raises almost anything, from zlib to IndexError
        line = str(error).splitlines()[0] if str(error) else ""
        raise InputError(
            f"{path} is not a readable MATLAB v5 file ({type(error).__name__}: {line}): delete it to download it again"
        ) from None
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise InputError(f"{path}: expected X [H, W, 3, N] of uint8 and y, as SVHN has them")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: expected whole numbers as y, got {labels.dtype}")
    where = str(path)
    numbers = labels.astype(np.int64).ravel()
    return Split(
        to_uint8(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), where),
        to_labels(np.where(numbers == 10, 0, numbers), images.shape[3], where),
    )
