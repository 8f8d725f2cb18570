"""A process of `test_profile_together` that waits for the end of the run that started it."""

import os
import sys
from pathlib import Path

from tasks.profile_together import _end_with_the_run

if __name__ == "__main__":
    (Path(sys.argv[1]) / f"{os.getpid()}.pid").touch()
    _end_with_the_run()
