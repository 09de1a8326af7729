"""A folder on a disk or in an object store, by URI (pyarrow.fs)."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs


class Storage:
    """Files below one folder. Names are relative, with ``/`` between parts; bytes in, bytes out.

    A local write appears whole or not at all (a temporary name, fsync, rename). Object stores have no rename, but
    show an object only when it is complete; what is made of several files is therefore completed by its manifest.

    Raises:
        ValueError: a URI of a scheme that pyarrow does not know.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" not in self.uri:
            self.uri = str(Path(self.uri).expanduser().resolve())
        try:
            self.fs, self.path = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, ValueError) as error:
            raise ValueError(f"{self.uri}: not a folder or URI that can be opened ({error})") from None

    @property
    def local(self) -> Path | None:
        """The folder itself where it lies on this machine's disk, else None."""
        return Path(self.path) if isinstance(self.fs, pafs.LocalFileSystem) else None

    @property
    def name(self) -> str:
        """The last part of its path."""
        path: str = self.path
        return path.rstrip("/").rpartition("/")[2]

    def __truediv__(self, name: str) -> Storage:
        base, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return Storage(f"{base.rstrip('/')}/{name}{mark}{query}")

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole; missing folders are made."""
        path = f"{self.path}/{name}"
        if self.local is None:
            with self.fs.open_output_stream(path) as out:
                out.write(data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """All bytes of a file; FileNotFoundError where there is none."""
        with self.fs.open_input_stream(f"{self.path}/{name}") as source:
            return bytes(source.read())

    def exists(self, name: str) -> bool:
        kind: Any = self.fs.get_file_info(f"{self.path}/{name}").type
        return bool(kind != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders directly below, sorted; none where the folder does not exist."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def delete(self, name: str) -> None:
        """Remove a folder and all below it; nothing happens where there is none."""
        if self.exists(name):
            self.fs.delete_dir(f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if self.exists(name):
            self.fs.delete_file(f"{self.path}/{name}")

    def put(self, folder: Path, name: str) -> None:
        """Copy a local folder's files (one level deep or more) below `name`."""
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.write(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def sha256(data: bytes | pa.Buffer) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


USER = r"(?<!abfs)(?<!abfss)(?<!\bgs)://"       # what a user or a token follows in a URI; there it is no secret


def mask(text: str) -> str:
    """The text with passwords in URIs (`user:***@host`) and in their queries hidden."""
    text = re.sub(r"(://[^\s/:@]*):[^\s/]*@", r"\1:***@", text)
    text = re.sub(USER + r"[^\s/:@]+@", "://***@", text)  # a token alone
    return re.sub(r"(?i)([?&][^\s=&]*(?:password|token|secret|key|sig|signature)=)[^\s&'\"]+", r"\1***", text)


def without_secrets(text: str) -> str:
    """The text with no user, password or token in its URIs, for files that are passed on."""
    return re.sub(USER + r"[^\s/@]+@", "://", mask(text))
