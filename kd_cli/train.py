"""The command `kd-train` and the script `train.py`."""
from __future__ import annotations

import os
from collections.abc import Sequence

from kd_cli.errors import reported
from kd_cli.loop import train_pipeline


@reported
def main(argv: Sequence[str] | None = None, root_path: str | None = None) -> None:
    """Trains as the command line says; `root_path`, by default the working directory, gets the files."""
    train_pipeline(root_path or os.getcwd(), argv)


if __name__ == '__main__':
    main()
