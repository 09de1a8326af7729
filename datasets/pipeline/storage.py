"""A folder on a disk or in an object store, by URI (pyarrow.fs)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs


class Unavailable(OSError):
    """A file could not be read now: the disk, the network or the store failed. It may be whole, so try again."""


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """An OSError inside becomes `Unavailable`, which names the file, unless it says that there is no such file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, Unavailable) or absent(error):
            raise
        raise Unavailable(f"{uri} cannot be read now: {' '.join(str(error).split())}") from error


def absent(error: OSError) -> bool:
    """Whether an error says that there is no such file: none of that name, or a folder, or that no file can have it."""
    return (
        isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
        or str(error).endswith("is a directory")
    )  # pyarrow's, without a number


def watched(uri: str, file: pa.NativeFile) -> pa.NativeFile:
    """The same file, whose errors of reading are raised as `Unavailable`, also through a parser of pyarrow's."""
    return pa.PythonFile(_Watched(uri, file), "r")


class _Watched:
    def __init__(self, uri: str, file: pa.NativeFile) -> None:
        self.uri, self.file = uri, file
        self.seek, self.tell, self.size, self.close = file.seek, file.tell, file.size, file.close

    @property
    def closed(self) -> bool:
        return bool(self.file.closed)

    def read(self, size: int | None = None) -> bytes:
        with reading(self.uri):
            return bytes(self.file.read(size))

    def read_buffer(self, size: int | None = None) -> pa.Buffer:
        with reading(self.uri):
            return self.file.read_buffer(size)


class Storage:
    """Files below one folder. Names are relative, with ``/`` between parts; bytes in, bytes out.

    A local write appears whole or not at all (a temporary name, fsync, rename). Object stores have no rename, but
    show an object only when it is complete; so a set of several files is complete when its manifest exists.

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
            reason = ENDS_EARLY if ends_early(self.uri) else error
            raise ValueError(mask(f"{self.uri}: not a folder or URI that can be opened ({reason})")) from None

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
        base, options = split_options(self.uri)
        scheme, mark, path = base.rpartition("://")
        return Storage(f"{scheme}{mark}{path.rstrip('/')}/{name}{options}")

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole; missing folders are created."""
        self._write(f"{self.path}/{name}", data)

    def _write(self, path: str, data: bytes | pa.Buffer) -> None:
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
        """All bytes of a file.

        Raises:
            OSError: there is none (see `absent`), mostly as FileNotFoundError.
            Unavailable: it cannot be read now.
        """
        with reading(f"{self.uri}/{name}"), self.fs.open_input_stream(f"{self.path}/{name}") as source:
            return bytes(source.read())

    def read_spans(self, name: str, spans: Sequence[tuple[int, int]]) -> tuple[int, list[bytes]]:
        """The size of a file, and its bytes from each start to each end, less where it ends before; raises as `read`.

        From an object store several spans are read at once: each takes about as long as one request does.
        """
        with reading(f"{self.uri}/{name}"), self.fs.open_input_file(f"{self.path}/{name}") as source:
            size = source.size()

            def read(span: tuple[int, int]) -> bytes:
                start, end = (min(place, size) for place in span)
                return bytes(source.read_at(end - start, start))

            if self.local is not None or len(spans) == 1:
                return size, [read(span) for span in spans]
            with ThreadPoolExecutor(min(8, len(spans))) as pool:
                return size, list(pool.map(read, spans))

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


def write_file(uri: str, data: bytes | pa.Buffer) -> str:
    """Write one file, by its path or URI, as `Storage.write` does; its absolute path or URI.

    Raises:
        ValueError: a URI of a bucket, which has no file's name after it, or of an unknown scheme.
    """
    scheme, mark, path = split_options(uri)[0].rpartition("://")
    if mark and scheme != "file" and not path.partition("/")[2].strip("/"):
        raise ValueError(f"{mask(uri)} names no file in a bucket; write {scheme}://BUCKET/{path.strip('/')}")
    file = Storage(uri)
    file._write(file.path, data)
    return file.uri


def split_options(uri: str) -> tuple[str, str]:
    """A URI and its options ("?region=..."); of a local path, which may have a question mark, all is the path."""
    at = uri.find("?") if "://" in uri else -1
    return (uri, "") if at < 0 else (uri[:at], uri[at:])


def sha256(data: bytes | pa.Buffer) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


USER = r"(?<!abfs)(?<!abfss)(?<!\bgs)://"  # what a user or a token follows in a URI; there it is no secret
QUERY = r"\?[\w.-]+="  # a host may be followed by options at once: https://host?to=me@home
TOKEN = re.compile(rf"""{USER}(?:(?!{QUERY})[^\s/:@"'<>])+@""")
# URIs of buckets have no port. After others' ports a path or options may follow, in which an @ is only a letter.
PORT = "".join(rf"(?<!\b{scheme}://)" for scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")) + (
    r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/:@]*:(?:[1-5]?\d{2,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])(?=[/?#]))"
)
PASSWORD = re.compile(rf"""://(?!{PORT})((?:(?!{QUERY})[^\s/:@"'<>])*):""")
NEXT = re.compile(r"""(?=(?:[,;|'"()<>\[\]]|::)[A-Za-z][\w+.-]*://)""")  # another URI begins, without a space before


def mask(text: str) -> str:
    """The text with passwords in URIs (`user:***@host`) and in their queries hidden.

    A password may have any characters but white space, also those that a URI should not have, such as a slash: it ends
    at the last @. Where a URI has both a password and an @ in its path, part of the path is hidden, too.
    """
    text = re.sub(r"\S+", lambda word: "".join(map(_mask_password, NEXT.split(word[0]))), text)
    text = TOKEN.sub("://***@", text)
    return re.sub(r"(?i)([?&][^\s=&?]*(?:password|token|secret|key|sig|signature)=)[^\s&'\"]+", r"\1***", text)


def _mask_password(text: str) -> str:
    """A text with at most one URI, without white space; a user without a password is a token."""
    before, _, after = text.rpartition("@")
    found = PASSWORD.search(before)
    if found is None:
        return text
    user = f"{found[1]}:***" if before[found.end() :] else "***"
    return f"{before[: found.start()]}://{user}@{after}"


def without_secrets(text: str) -> str:
    """The text with no user, password or token in its URIs, for files that are passed on."""
    return re.sub(USER + r"(?:[^\s/:@]*:)?\*\*\*@", "://", mask(text))


def ends_early(uri: str) -> bool:
    """Whether a URI's password has a character at which readers of URIs take it to end, unless it is written as %2F."""
    before = uri.rpartition("@")[0]
    found = PASSWORD.search(before)
    return found is not None and not {"/", "?", "#"}.isdisjoint(before[found.end() :])


ENDS_EARLY = "the password seems to have a / ? or # in it; write them as %2F %3F %23"
