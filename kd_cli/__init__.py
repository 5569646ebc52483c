"""What a user runs: training, testing, comparing and preparing data."""
import kd_models  # noqa: F401  makes basicsr importable and registers everything
