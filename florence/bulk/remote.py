"""Opens local files and URLs alike, by fsspec, whose packages support S3, Google Cloud and other storage.

Knows names and bytes; knows nothing about pictures. fsspec comes with the extra "cloud".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from florence.bulk.items import is_pattern, is_url, load_fsspec
from florence.errors import RequestError
from florence.images.files import checked_size, too_large


def open_file(name: str) -> IO[bytes]:
    """Open the file at a path or URL for reading. Raises `RequestError`, `OSError`."""
    if not is_url(name):
        return Path(name).open("rb")
    opened: IO[bytes] = _guarded(name, lambda: load_fsspec().open(name, "rb").open())
    return opened


def reader_of(url: str, max_bytes: int) -> Callable[[], bytes]:
    """A function that reads the whole file at a URL. It raises `ImageTooLarge` where the file has more than
    `max_bytes` bytes, before reading if the storage reports the size."""
    return partial(_read_bounded, *_files_at(url), max_bytes)


def is_folder(url: str) -> bool:
    """Whether a URL is a folder, or a prefix with files below it."""
    files, path = _files_at(url)
    return bool(_guarded(url, lambda: files.isdir(path)))


def is_there(url: str) -> bool:
    """Whether there is a file or a folder at a URL."""
    files, path = _files_at(url)
    return bool(_guarded(url, lambda: files.exists(path)))


def list_files(url: str, *, recursive: bool = True) -> list[str]:
    """URLs of the files below a folder's URL, or that match a pattern, sorted."""
    files, path = _files_at(url)
    if is_pattern(path):
        found = _guarded(url, lambda: [each for each in files.glob(path) if files.isfile(each)])
    else:
        found = _guarded(url, lambda: files.find(path, maxdepth=None if recursive else 1))
    return sorted(files.unstrip_protocol(each) for each in found)


def _read_bounded(files: Any, path: str, max_bytes: int) -> bytes:
    if (files.info(path).get("size") or 0) > max_bytes:  # no further request if the file was listed
        raise too_large(max_bytes)
    return checked_size(files.cat_file(path), max_bytes)


def _files_at(url: str) -> tuple[Any, str]:
    files, path = _guarded(url, lambda: load_fsspec().core.url_to_fs(url))
    return files, path


def _guarded(url: str, ask: Callable[[], Any]) -> Any:
    """Call `ask`, turning storage libraries' own errors, and errors about a missing package for a scheme,
    into ours."""
    try:
        return ask()
    except OSError:
        raise
    except ImportError as error:
        raise RequestError(f"{url} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise RequestError(f"{url} can't be read: {error}") from error
