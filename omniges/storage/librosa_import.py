"""Import of librosa and of functions that numba compiles, in one process at a time.

The first import on a machine compiles functions into numba's cache, which has no lock. If two processes write the cache
at the same time, they corrupt it. Every later import then ends in a segmentation fault.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from omniges.errors import EnvironmentFault
from omniges.storage.redact import one_line


@functools.cache
def load_librosa() -> Any:
    """Import librosa, one process at a time. The import takes seconds.

    Returns:
        The module ``librosa``.

    Raises:
        EnvironmentFault: librosa is not installed or cannot be imported, for example because numba finds no folder
            for its cache.
    """
    with compiling("librosa"):
        importlib.import_module("librosa.onset")
    return importlib.import_module("librosa")


@contextlib.contextmanager
def compiling(package: str) -> Iterator[None]:
    """Run a `with` block that makes numba compile functions of a package, in only one process at a time.

    Args:
        package: Name of the package that contains the functions. A file of this package is locked during the block.

    Yields:
        Nothing; the caller imports or calls the functions in the block.

    Raises:
        EnvironmentFault: The package is not installed. Or the block raised RuntimeError, OSError or KeyError, for
            example because numba finds no folder for its cache.
    """
    with _lock_of(package):
        try:
            yield
        except (RuntimeError, OSError, KeyError) as error:
            # While functions are defined, numba looks for its cache folder, and other packages for the home folder.
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            variable = "HOME" if "home directory" in reason else "NUMBA_CACHE_DIR"
            raise EnvironmentFault(
                f"{package}: expected an import without errors, found an error ({reason}); set {variable} to a "
                "writable folder for its compiled functions"
            ) from error


@contextlib.contextmanager
def _lock_of(package: str) -> Iterator[None]:
    """Lock the package's main file during the `with` block; wait while another process holds the lock.

    This file is part of the installed package, so no separate lock file is needed. If the file system refuses the
    lock, the block runs without it.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EnvironmentFault(
            f"{package}: expected this package, found that it is not installed; install omniges again"
        )
    writable = os.access(found.origin, os.W_OK)
    descriptor = os.open(found.origin, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # NFS refuses a lock on a read-only file; continue without a lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
