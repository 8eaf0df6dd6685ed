"""Temporary files that may hold prompts: one private folder per process, and the removal of what
killed processes left.

A folder or file is in use while its maker holds its lock (`flock`): the kernel releases the lock
when the process ends, however it ends, and other containers on the same disk see the lock, which is
not true of a process id.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

_PREFIX = "beam-llm-scratch-"
_UNLOCKED_SECONDS = 3600.0
"""A folder without a lock file was made a moment ago, or its maker was killed in that moment."""


class _Scratch(NamedTuple):
    path: str
    lock: int
    process: int


_making = threading.Lock()
_scratch: _Scratch | None = None


def scratch_folder() -> str:
    """This process's folder for temporary files: nobody else can read it, and it is removed when
    the process ends.

    Where the process is killed, the next one that asks for such a folder removes it.
    """
    global _scratch
    with _making:
        if _scratch is None or _scratch.process != os.getpid() or not os.path.isdir(_scratch.path):
            remove_leftovers()
            _scratch = _make_scratch()
        return _scratch.path


def remove_scratch() -> None:
    """Removes this process's scratch folder at once; for processes that end by `os._exit`."""
    global _scratch
    with _making:
        if _scratch is not None and _scratch.process == os.getpid():
            shutil.rmtree(_scratch.path, ignore_errors=True)
            os.close(_scratch.lock)
            _scratch = None


atexit.register(remove_scratch)


def _make_scratch() -> _Scratch:
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX)
        lock = lock_file(os.path.join(path, "lock"))
        if lock is not None:
            return _Scratch(path, lock, os.getpid())


def remove_leftovers() -> int:
    """Removes the scratch folders of this user's processes that have ended; returns how many."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    removed += entry.stat(
                        follow_symlinks=False
                    ).st_uid == os.geteuid() and _remove_if_dead(entry.path)
    return removed


def _remove_if_dead(folder: str) -> bool:
    path = os.path.join(folder, "lock")
    if not os.path.exists(path):
        dead = time.time() - os.stat(folder).st_mtime > _UNLOCKED_SECONDS
        if dead:
            shutil.rmtree(folder, ignore_errors=True)
        return dead
    with lock_if_free(path) as dead:
        if dead:
            shutil.rmtree(folder, ignore_errors=True)
    return dead


def lock_file(path: str, mode: int = 0o600, *, is_new: bool = False) -> int | None:
    """A descriptor of the locked file, which is created if necessary; None where somebody else
    holds the lock.

    Args:
      is_new: nothing may have that name yet, not even a link: else FileExistsError.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if is_new else 0), mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:  # it is locked, or was removed in between
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def lock_if_free(path: str) -> Iterator[bool]:
    """Yields whether the file's lock was free; if so, the block holds it."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
