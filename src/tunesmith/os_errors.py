"""What a failed file operation means for the user: a full disk, no right to write, a limit."""

from __future__ import annotations

import errno
from pathlib import Path

from tunesmith.errors import DiskError, EnvironmentFault, Kind, OutOfMemory, TunesmithError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
                 errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETXTBSY, errno.ELOOP, errno.ENAMETOOLONG,
                 errno.EBUSY, errno.ENOLCK, errno.ENOTCONN, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EINVAL}


def explained_os_error(error: OSError, what: Path | str) -> TunesmithError | None:
    """What a failed operation on `what` means for the user; None if not of disk, memory or limits."""
    again = "Free some space, then run the same command again."
    if error.errno in _FULL:
        return DiskError(f"{what}: the disk is full", again, kind=Kind.DISK_FULL)
    if error.errno in _TOO_MANY:
        return EnvironmentFault(f"{what}: too many files are open on this machine: {error.strerror}",
                                "Raise the limit (ulimit -n), then run the same command again.")
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"{what}: the system has no memory left for it",
                           "Close other programs, then run the same command again.")
    if error.errno in _NOT_WRITABLE:
        return DiskError(f"{what}: cannot be read or written: {error.strerror}",
                         "Choose another place, or change its permissions; the same command then goes on.")
    return None
