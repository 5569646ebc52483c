"""Images as the host's metrics get them, for networks."""
from __future__ import annotations

import numpy as np
import torch
from basicsr.metrics.metric_util import reorder_image
from torch import Tensor


def device() -> torch.device:
    """Where metrics run their networks: a GPU where there is one."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def rgb(img: np.ndarray, crop_border: int = 0, input_order: str = 'HWC') -> Tensor:
    """An image (H, W, 3) or (H, W), BGR in [0, 255], as (1, 3, H, W), RGB in [0, 255], float32, without its border."""
    img = reorder_image(img, input_order)[..., ::-1]  # (H, W, C)
    height, width = img.shape[:2]
    img = img[crop_border:height - crop_border, crop_border:width - crop_border]
    tensor = torch.from_numpy(np.ascontiguousarray(img, dtype=np.float32)).permute(2, 0, 1)[None]
    return tensor.expand(-1, 3, -1, -1).to(device())
