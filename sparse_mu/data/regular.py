"""Files that may be opened without harm."""

import errno
import os
import stat
from pathlib import Path


def stat_file(path: str | Path) -> os.stat_result:
    """The facts of a regular file, links followed.

    Raises:
        OSError: there is none, or it is something else: a pipe would be waited for without end, a
            device may have no end.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a file", os.fspath(path))
    return found
