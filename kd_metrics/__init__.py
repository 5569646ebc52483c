"""Validation metrics, registered by the file-name scan of kd_models.

A metric of single images is a function, as in BasicSR: `calculate_x(img, img2, crop_border, ..., **kwargs) -> float`.
A metric of a whole set is a class: built once per validation with the metric's options, given every image by
`update(img, img2=None)`, asked for its value by `compute() -> float`.
"""
import kd_utils  # noqa: F401  makes basicsr importable


class MetricUnavailable(RuntimeError):
    """A metric that cannot be computed here, with the remedy; validation leaves it out and goes on."""
