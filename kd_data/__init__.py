"""Datasets, the sampler and per-draw seeding."""
import kd_utils  # noqa: F401  makes basicsr importable
