"""What can be wrong with files of pictures."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

# What Pillow raises for files that it cannot read, and for those that are pictures of gigabytes.
DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError, MemoryError,
)  # fmt: skip
