"""Losses, one class per published formula, registered by the file-name scan of kd_models."""
import kd_utils  # noqa: F401  makes basicsr importable
