"""Sets and models for others: cards, the Hugging Face hub, claims that can be repeated, and exported programs."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
