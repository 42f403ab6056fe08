"""Windows of one picture."""

from __future__ import annotations

import torch
from torch import Tensor


def windows(picture: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Windows of a picture ``[C, H, W]`` with upper left corners ``top, left [N]``: ``[N, C, height, width]``."""
    rows = top[:, None] + torch.arange(height, device=picture.device)
    columns = left[:, None] + torch.arange(width, device=picture.device)
    return picture[:, rows[:, :, None], columns[:, None, :]].movedim(0, 1)
