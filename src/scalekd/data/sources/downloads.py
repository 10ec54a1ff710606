"""Download files from URLs once and keep them in the user's cache folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from scalekd.atomic import replacing
from scalekd.data.user_cache import cache_folder
from scalekd.errors import UserError
from scalekd.locks import alone

_WAITS = (1.0, 2.0, 4.0)  # seconds before each retry
_TIMEOUT, _SHORT_TIMEOUT = 60.0, 5.0  # seconds
_ABSENT = (403, 404, 410)  # object stores answer 403 for missing objects


def folder_of(url: str) -> Path:
    """Return the local folder for files from a URL's folder; queries, as in signed URLs, are ignored."""
    parts = urlsplit(url)
    folder = f"{parts.scheme}://{parts.netloc}{os.path.dirname(parts.path)}"
    return cache_folder("shards", hashlib.sha256(folder.encode()).hexdigest()[:16])


def fetch(url: str) -> Path:
    """Return a local copy of the file at a URL; a second call downloads nothing.

    Raises:
        UserError: If it cannot be downloaded; the message says why.
    """
    file = _file(url)
    if not file.is_file():
        with alone(file.parent):
            if not file.is_file():  # another process may have downloaded it while we waited for the lock
                _download(url, file, _WAITS, _TIMEOUT)
    return file


def fetch_if_there(url: str) -> Path | None:
    """Like `fetch`, but return None if the server has no such file, or is unreachable and had none before."""
    file = _file(url)
    absent = file.with_name(file.name + ".absent")
    if file.is_file():
        return file
    with alone(file.parent):
        known = absent.is_file()  # known to be absent: one short attempt is enough
        try:
            _download(url, file, () if known else _WAITS, _SHORT_TIMEOUT if known else _TIMEOUT)
        except _AbsentError:
            absent.touch()
            return None
        except UserError:
            if known:
                return None
            raise
    return file


class _AbsentError(UserError):
    """The server has no file at this URL."""


def _file(url: str) -> Path:
    name = quote(unquote(os.path.basename(urlsplit(url).path)), safe="")
    if name in ("", ".", ".."):
        raise UserError(f"data: {url} names no file")
    return folder_of(url) / name


def _download(url: str, file: Path, waits: tuple[float, ...], timeout: float) -> None:
    """Download a file atomically, with a few retries."""
    for wait in (*waits, None):
        try:
            with replacing(file) as partial:
                _copy(url, partial, timeout)
            return
        except urllib.error.HTTPError as error:
            if error.code in _ABSENT:
                raise _AbsentError(f"data: {url}: the server says {error.code} {error.reason}") from None
            reason, final = f"the server says {error.code} {error.reason}", error.code < 500
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason, final = _reason(error), False
        except ValueError as error:
            reason, final = str(error), True
        if final or wait is None:
            raise UserError(
                f"data: {url} cannot be downloaded: {reason}; complete files stay in {file.parent}, "
                "run the same command again to continue"
            ) from None
        time.sleep(wait)


def _reason(error: Exception) -> str:
    """Return why a connection failed, without the name of the local file that `replacing` adds."""
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__


def _copy(url: str, file: Path, timeout: float) -> None:
    with urllib.request.urlopen(url, timeout=timeout) as answer, open(file, "wb") as out:
        shutil.copyfileobj(answer, out, 1 << 20)
        expected, got = answer.headers.get("Content-Length"), out.tell()
    if expected is not None and got != int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - got)
