"""Files of this machine and at URLs, alike: by fsspec, whose packages know S3, Google's and other storage.

Knows names and bytes; knows nothing about pictures. fsspec comes with the extra "cloud".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from florence.bulk.items import checked_size, is_pattern, is_url, load_fsspec, too_large
from florence.errors import RequestError


def open_file(name: str) -> IO[bytes]:
    """The file at a path or URL, to be read from its beginning. Raises RequestError, OSError."""
    if not is_url(name):
        return Path(name).open("rb")
    opened: IO[bytes] = _guarded(name, lambda: load_fsspec().open(name, "rb").open())
    return opened


def reader_of(url: str, most: int) -> Callable[[], bytes]:
    """What reads the whole file at a URL, and raises ImageTooLarge where it has more bytes: before it is
    read, if the storage tells."""
    return partial(_read_most, *_files_at(url), most)


def is_folder(url: str) -> bool:
    """Whether a URL is of a folder, or of a prefix with files below it."""
    files, path = _files_at(url)
    return bool(_guarded(url, lambda: files.isdir(path)))


def is_there(url: str) -> bool:
    """Whether there is a file or a folder at a URL."""
    files, path = _files_at(url)
    return bool(_guarded(url, lambda: files.exists(path)))


def list_files(url: str, *, recursive: bool = True) -> list[str]:
    """URLs of the files below a folder's URL, or of those that a pattern names, sorted."""
    files, path = _files_at(url)
    if is_pattern(path):
        found = _guarded(url, lambda: [each for each in files.glob(path) if files.isfile(each)])
    else:
        found = _guarded(url, lambda: files.find(path, maxdepth=None if recursive else 1))
    return sorted(files.unstrip_protocol(each) for each in found)


def _read_most(files: Any, path: str, most: int) -> bytes:
    if (files.info(path).get("size") or 0) > most:  # no request, where the file was listed
        raise too_large(most)
    return checked_size(files.cat_file(path), most)


def _files_at(url: str) -> tuple[Any, str]:
    files, path = _guarded(url, lambda: load_fsspec().core.url_to_fs(url))
    return files, path


def _guarded(url: str, ask: Callable[[], Any]) -> Any:
    """Storage libraries raise their own errors; a scheme may need a package that is not there."""
    try:
        return ask()
    except OSError:
        raise
    except ImportError as error:
        raise RequestError(f"{url} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise RequestError(f"{url} can't be read: {error}") from error
