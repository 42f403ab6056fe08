"""Pure batched tensor functions: random draws by key, affine warps, noise. Used by the data and by the exact sets."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
