"""Which file system a path lies on. Locks and SQLite's journal count on one of this machine: on a
network file system two processes may both get a lock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"),
        *("virtiofs", "vboxsf"),
    }
)
"""Types of file systems whose files lie on another machine, or on the host of a virtual one."""
NETWORK_FUSE = ("ceph", "gcsfuse", "glusterfs", "goofys", "juicefs", "rclone", "s3fs", "sshfs")
"""Those that are programs: their type is `fuse.NAME`."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system by its type, and where it is mounted."""

    type: str
    mounted: str

    @property
    def networked(self) -> bool:
        """Whether its files lie on another machine."""
        name = self.type.removeprefix("fuse.")
        return self.type in NETWORK or (name != self.type and name in NETWORK_FUSE)


def find_file_system(path: Path) -> FileSystem | None:
    """The file system of a path, or of its nearest parent that exists; None where the system does
    not list its mounts, as on macOS."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return find_mount(path.resolve(), mounts)


def find_mount(path: PurePath, mounts: str) -> FileSystem | None:
    """The file system of an absolute path by the lines of Linux's mountinfo (proc(5)): that of the
    longest mount point above it, and of several at one place the last. None without any."""
    found: FileSystem | None = None
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 6:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        longer = found is None or len(place) >= len(found.mounted)
        if path.is_relative_to(place) and longer:
            found = FileSystem(after.split(" ")[0], place)
    return found
