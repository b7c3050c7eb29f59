"""The store behind a URL: what the mirror asks of a file system of fsspec."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from rlaif.core.errors import ConfigError, StoreError, explain_library, without_passwords

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""The extra of rlaif that brings the package for a protocol."""


@dataclass(frozen=True)
class Remote:
    """A folder of a file system; names are relative to it, without a folder of their own but the
    first, as in `objects/NAME`."""

    url: str
    fs: Any
    root: str

    def list_sizes(self, folder: str) -> dict[str, int]:
        """The files of a folder with their sizes in bytes; none where there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self._locate(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {path.rsplit("/", 1)[-1]: int(row["size"]) for path, row in found.items()}

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        data: bytes = self.fs.cat_file(self._locate(name))
        return data

    def read_if_there(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file; others see it as a whole."""
        path = self._locate(name)
        if self.fs.async_impl:
            # An object store shows what was uploaded completely.
            self.fs.pipe_file(path, data)
            return
        self._make_folder(path)
        self.fs.pipe_file(f"{path}.part", data)
        self.fs.mv(f"{path}.part", path)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of this name; whether it is there with `data`. Of
        several machines that try, one succeeds. `data` must differ between attempts."""
        path = self._locate(name)
        try:
            if self.fs.async_impl:
                self.fs.pipe_file(path, data, mode="create")
            else:
                self._make_folder(path)
                if not (isinstance(self.fs, LocalFileSystem) and _create_whole(path, data)):
                    with self.fs.open(path, "xb") as file:
                        file.write(data)
        except Exception:
            # Stores name a refused condition in different ways; and an answer may have been lost,
            # so that a second attempt finds what the first one wrote.
            written = self.read_if_there(name)
            if written is None:
                raise
            return written == data
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._locate(name))

    def _locate(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _make_folder(self, path: str) -> None:
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)


def _create_whole(path: str, data: bytes) -> bool:
    """Create a file of this machine that others see as a whole, or not at all: one that opens it
    while it is empty would take its writer for dead. False where the disk has no hard links.
    Raises FileExistsError."""
    part = f"{path}.{uuid4().hex}.part"
    with open(part, "xb") as file:
        file.write(data)
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    finally:
        os.unlink(part)
    return True


def open_remote(url: str) -> Remote:
    """The store behind a URL of fsspec, such as s3://bucket/folder; nothing is asked of it yet.
    Raises ConfigError for a protocol that is not known here."""
    protocol = get_protocol(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        advice = (
            f"pip install 'rlaif[{extra}]'"
            if extra is not None
            else "expected a URL of fsspec, such as s3://, gs://, az:// or file://"
        )
        raise ConfigError(
            f"--mirror {url}: {protocol}:// cannot be used ({error}); {advice}"
        ) from None
    with explain_library(f"--mirror {url}", StoreError):
        fs, root = url_to_fs(url)
    # Shown in messages.
    return Remote(without_passwords(url), fs, str(root).rstrip("/"))
