"""Learn perturbation sets from pairs of examples, and use them.

What there is to import stands in ``__init__.pyi``, for type checkers and for this: each name is imported when it is
first asked for, so that a command can compose its configuration and refuse a typing error before it waits for PyTorch.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
