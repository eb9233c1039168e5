"""A lock that a process holds in the folder of its run, so that no second one trains there."""

import errno
import os
import stat
from typing import Any

from files import InputError


def lock(path: str) -> Any:
    """A file that no other process may hold until this one ends, or removes it. Raises InputError if another does."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode) or os.fstat(number).st_nlink > 1:
        raise InputError(f"{path}: a link or no file, which nothing is written into; remove it")
    file = os.fdopen(number, "r+")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if getattr(error, "errno", None) not in (errno.EACCES, errno.EAGAIN):  # Windows, a file system without locks
            return file
        holder = file.read(20).strip()
        raise InputError(f"{os.path.dirname(path)}: process {holder} is training in this folder") from error
    if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(number)):  # it has been removed since
        file.close()
        return lock(path)
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return file
