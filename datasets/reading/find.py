"""Finding raw files: from a path, a folder, a glob or a URI to the files.

A path is a local file, a folder, a glob (``*``, ``?``, ``[ab]``, and ``**`` for any depth), or a URI of anything that
pyarrow or fsspec can open (``s3://``, ``gs://``, ``hf://``, ``file://``, ...), with the same globs.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import posixpath
import re
import urllib.parse
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from datasets.pipeline.storage import Unavailable

OPTIONS = re.compile(r"\?\w+=.*$")  # of a URI: s3://bucket/key?region=...; any other ? belongs to a glob


@dataclass(frozen=True, order=True)
class SourceFile:
    """One raw file.

    Attributes:
        uri: absolute local path, or URI.
        size: bytes.
        mtime: modification time in nanoseconds; 0 where the storage does not record it.
    """

    uri: str
    size: int
    mtime: int


def resolve(path: str, *, suffixes: Collection[str] = (), empty: bool = False) -> list[SourceFile]:
    """The files at a path, sorted by name.

    Args:
        path: local path, folder (searched at any depth), glob or URI. Files whose names start with "." or "_" are
            ignored in folders and globs.
        suffixes: endings (".csv") of the files to take from a folder; () takes all. A file named in full or matched by
            a glob may have any ending.
        empty: whether files of 0 bytes are allowed.

    Raises:
        ValueError: nothing exists at the path, no file of the folder has one of the endings, or a file is empty.
    """
    if not path:
        raise ValueError("the path of the data is empty; give a file, a folder, a glob or a URI")
    try:
        location = open_location(path)
    except Unavailable as error:
        raise ValueError(str(error)) from error  # an address that was never reached
    info = location.system.get_file_info(location.root)
    if info.type == fs.FileType.File:
        infos = [info]
    elif info.type == fs.FileType.Directory:
        infos = _in_folder(location, suffixes)
    elif re.search(r"[*?[]", location.root):
        infos = _in_glob(location)
    else:
        raise ValueError(f"there is no file or folder {location.uri(location.root)}{_nearest(location)}")
    for item in infos:
        if item.size == 0 and not empty:
            raise ValueError(f"{location.uri(item.path)} is empty (0 bytes); remove it or write it again")
    return sorted(SourceFile(location.uri(item.path), int(item.size or 0), int(item.mtime_ns or 0)) for item in infos)


def total_bytes(sources: Iterable[SourceFile]) -> int:
    """Total size of the files, in bytes."""
    return sum(source.size for source in sources)


@dataclass(frozen=True)
class Location:
    """A path in a file system; `before` and `after` are what a URI has around such a path."""

    system: fs.FileSystem
    root: str
    before: str = ""
    after: str = ""

    def uri(self, path: str) -> str:
        return f"{self.before}{path}{self.after}"


def open_location(path: str) -> Location:
    """The location of a local path or URI, which may contain a glob.

    Raises:
        ValueError: no file system is known for the URI's scheme, or it cannot be reached.
    """
    scheme, mark, local = path.partition("://")
    if not mark:
        return Location(fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))
    if scheme == "file":
        return Location(fs.LocalFileSystem(), urllib.parse.unquote(local))
    query = OPTIONS.search(path)
    after = query.group() if query else ""
    path = path.removesuffix(after)
    base = re.split(r"/[^/]*[*?[]", path)[0]  # from_uri refuses globs
    for spelling in (base, f"fsspec+{base}"):  # fsspec where pyarrow has no file system of its own
        try:
            system, root = fs.FileSystem.from_uri(spelling + after)
        except (pa.ArrowInvalid, ImportError, ValueError) as error:
            reason = str(error)
        except OSError as error:
            raise Unavailable(
                f"{path} cannot be reached: {error}; check the address, the credentials and the network"
            ) from error
        else:
            before = base.removesuffix(root) if base.endswith(root) else f"{scheme}://"
            return Location(system, root + path[len(base) :], before, after)
    raise ValueError(
        f"{path}: no file system is known for {scheme}:// ({reason}); "
        f"install the fsspec package that serves it, or use a local path"
    )


def _in_folder(location: Location, suffixes: Collection[str]) -> list[fs.FileInfo]:
    files = _walk(location.system, location.root, recursive=True)
    if not files:
        raise ValueError(f"the folder {location.uri(location.root)} holds no files")
    kept = [item for item in files if not suffixes or item.path.lower().endswith(tuple(suffixes))]
    if not kept:
        names = ", ".join(sorted(item.base_name for item in files)[:5])
        raise ValueError(
            f"the folder {location.uri(location.root)} holds no {' or '.join(suffixes)} file, only {names}; "
            f"name a file or a glob to say what to read"
        )
    return kept


def _in_glob(location: Location) -> list[fs.FileInfo]:
    fixed = posixpath.dirname(re.split(r"[*?[]", location.root)[0]) or "/"
    deep = "**" in location.root or "/" in location.root[len(fixed) :].strip("/")
    pattern = _glob_regex(location.root.strip("/"))
    kept = [item for item in _walk(location.system, fixed, recursive=deep) if pattern.fullmatch(item.path.strip("/"))]
    if not kept:
        raise ValueError(f"nothing matches {location.uri(location.root)}{_nearest(location)}")
    return kept


def _walk(system: fs.FileSystem, root: str, *, recursive: bool) -> list[fs.FileInfo]:
    """Files below `root`, except those with a name or folder that starts with "." or "_"."""
    selector = fs.FileSelector(root, recursive=recursive, allow_not_found=True)
    return [
        item
        for item in system.get_file_info(selector)
        if item.type == fs.FileType.File
        and not re.search(r"/[._]", "/" + item.path.strip("/")[len(root.strip("/")) :].lstrip("/"))
    ]


def _glob_regex(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression: `**/` any folders, `*` and `?` no slash, `[...]` and `[!...]` sets."""
    rules = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
    return re.compile(
        "".join(
            rules.get(part) or (part.replace("[!", "[^", 1) if i % 2 else re.escape(part))
            for i, part in enumerate(parts)
        ),
        re.DOTALL,
    )


def _nearest(location: Location) -> str:
    """The end of an error message: the most similar name that exists, or the names in the deepest existing folder."""
    folder, name, names = location.root.rstrip("/"), "", list[str]()
    while not names and folder not in ("", "/"):
        folder, name = posixpath.split(folder)
        with contextlib.suppress(OSError):
            selector = fs.FileSelector(folder, allow_not_found=True)
            names = sorted(item.base_name for item in location.system.get_file_info(selector))
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {location.uri(posixpath.join(folder, near[0]))}?"
    return f"; {location.uri(folder)} holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
