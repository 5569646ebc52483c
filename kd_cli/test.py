"""The command `kd-test` and the script `test.py`."""
from __future__ import annotations

import os
from collections.abc import Sequence

from kd_cli.errors import reported
from kd_cli.loop import test_pipeline


@reported
def main(argv: Sequence[str] | None = None, root_path: str | None = None) -> None:
    """Tests as the command line says; `root_path`, by default the working directory, gets the files."""
    test_pipeline(root_path or os.getcwd(), argv)


if __name__ == '__main__':
    main()
