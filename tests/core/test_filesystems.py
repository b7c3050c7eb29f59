"""Which file system a path is on, by Linux's list of mounts."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from rlaif.core.filesystems import find_file_system, find_mount

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:27 / /home rw shared:2 - nfs4 server:/export/home rw,vers=4.2
31 30 0:28 / /home/ann/fast rw - xfs /dev/sdb1 rw
32 22 0:29 / /media/my\040disk rw master:3 shared:4 - cifs //nas/disk rw
33 22 0:30 / /cloud rw - fuse.sshfs ann@there: rw
34 22 0:31 / /own rw - fuse.encfs encfs rw
35 22 0:32 / /twice rw - tmpfs tmpfs rw
36 35 0:33 / /twice rw - lustre mds:/scratch rw
not a line of mounts
"""


@pytest.mark.parametrize(
    ("path", "kind", "networked"),
    [
        ("/tmp/runs", "ext4", False),
        ("/home/ann/runs", "nfs4", True),
        ("/home", "nfs4", True),
        # Not below /home, although it begins with the same letters.
        ("/homes/x", "ext4", False),
        ("/home/ann/fast/runs", "xfs", False),
        ("/media/my disk/runs", "cifs", True),
        ("/cloud/runs", "fuse.sshfs", True),
        ("/own/runs", "fuse.encfs", False),
        # What was mounted last hides what was there.
        ("/twice/runs", "lustre", True),
    ],
)
def test_a_path_is_on_the_file_system_of_its_longest_mount(path, kind, networked):
    found = find_mount(PurePosixPath(path), MOUNTS)
    assert found is not None
    assert (found.type, found.networked) == (kind, networked)


def test_a_system_without_a_list_of_mounts_is_not_guessed_at(tmp_path, monkeypatch):
    assert find_mount(PurePosixPath("/tmp"), "") is None
    monkeypatch.setattr("rlaif.core.filesystems.MOUNTS", tmp_path / "none")
    assert find_file_system(tmp_path) is None


def test_a_real_path_has_a_file_system():
    shared = Path("/dev/shm")
    if not shared.is_dir() or not Path("/proc/self/mountinfo").exists():
        pytest.skip("no shared memory is mounted here")
    found = find_file_system(shared / "not" / "there")
    assert found is not None and (found.type, found.mounted) == ("tmpfs", "/dev/shm")
