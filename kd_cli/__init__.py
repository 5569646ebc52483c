"""What a user runs: training, testing, comparing and preparing data."""
import sys

try:
    import kd_models  # noqa: F401  makes basicsr importable and registers everything
except ImportError as error:
    if error.name:  # of a module; those of kd_utils.compat are of none, and say what to do
        raise
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
