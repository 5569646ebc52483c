"""A project of one's own: kd_models first, then one's own architectures, then the loop.

    python docs/results/mcadkd/test.py -opt docs/results/mcadkd/....yml
"""
# ruff: noqa: I001
import kd_models  # noqa: F401
import imdn_arch  # noqa: F401
from kd_cli.test import main

if __name__ == '__main__':
    main()
