"""Download of files over HTTP: resumed after an interruption, verified by hash, renamed into place when complete."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ...support.console import ProgressBar
from ...support.errors import UserError, one_line
from ..cache import cache_lock
from ..formats.hashes import file_digest
from .catalog import RemoteFile

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds
BLOCK_BYTES = 2**16
ATTEMPTS = 3  # per URL


class DownloadFailed(Exception):
    """A download from one URL failed; the message is the reason."""


def fetch(file: RemoteFile, folder: Path, bar: ProgressBar) -> Path:
    """Download a file into `folder` unless it exists. Raises UserError, which says where to put the file by hand."""
    path = folder / file.name
    if path.exists():
        return path
    with cache_lock(path, bar):
        if path.exists():  # another process has downloaded it meanwhile
            return path
        failures: dict[str, list[str]] = {}
        for url in file.urls:
            try:
                _fetch_from(url, file, path, bar)
                return path
            except DownloadFailed as failure:
                failures.setdefault(str(failure), []).append(url)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if it is empty
    reasons = "; ".join(f"{reason} ({', '.join(urls)})" for reason, urls in failures.items())
    raise UserError(
        f"{file.name} is missing and could not be downloaded: {reasons}; get it elsewhere and put it at {path}"
    )


def _fetch_from(url: str, file: RemoteFile, path: Path, bar: ProgressBar) -> None:
    """Download from one URL. Raises DownloadFailed; a partial file stays for the next time, unless its hash differs."""
    part = path.with_name(f"{path.name}.part")
    size = "" if file.size is None else f", {file.size / 1e6:,.1f} MB"
    bar.log(f"downloading {file.name}{size}, from {url}")
    for attempt in range(1, ATTEMPTS + 1):
        size_before = file_size(part)
        try:
            if file.size is None or size_before < file.size:
                _receive(url, file, part, bar)
        except DownloadFailed:
            if file_size(part) <= size_before or attempt == ATTEMPTS:
                raise
            continue
        if file_digest(part, file.digest) == file.digest:
            part.replace(path)
            return
        part.unlink()
        if not size_before:
            break  # otherwise the earlier part was of another file: start again
    raise DownloadFailed("the server sends a file other than the original (its hash differs)")


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, file: RemoteFile, part: Path, bar: ProgressBar) -> None:
    """Append the rest of the file to `part`. Raises DownloadFailed, and OSError for a full disk."""
    import requests
    import urllib3

    done, total = file_size(part), file.size or 1
    # Identity: the hash is of the bytes as published, not as a server or library decompresses them.
    headers = {"Accept-Encoding": "identity", "User-Agent": "vaekit"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status == 416:
                part.unlink(missing_ok=True)
                raise DownloadFailed("the server does not have that byte range of the file")
            if status not in (200, 206):
                raise DownloadFailed(f"the server answers {status} {response.reason}")
            if "text/html" in response.headers.get("Content-Type", ""):
                raise DownloadFailed("the server sends a web page instead of the file")
            content_range = response.headers.get("Content-Range", "")
            resumed = status == 206 and content_range.startswith(f"bytes {done}-")
            if not resumed:
                done = 0
            # A server that does not tell the length closes the connection at the end; the hash is checked anyway.
            total = file.size or done + int(response.headers.get("Content-Length", 0))
            part.parent.mkdir(parents=True, exist_ok=True)
            with (
                part.open("ab" if resumed else "wb") as out,
                bar.download(file.name, total, done) as progress,
            ):
                for block in response.raw.stream(BLOCK_BYTES, decode_content=False):
                    out.write(block)
                    done += len(block)
                    progress.advance(progress.task_ids[0], len(block))
                    if 0 < total < done:
                        break
    except urllib3.exceptions.HTTPError:
        pass  # the connection was lost: the size received is checked below
    except requests.RequestException as error:
        raise DownloadFailed(describe_error(error)) from None
    except OSError as error:  # a full disk: a partial file would only keep it full
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(part)) from None
    if not done:
        part.unlink(missing_ok=True)
    if done < total:
        raise DownloadFailed(
            f"the transfer was interrupted after {done:,} of {total:,} bytes; run again to resume"
        )


def describe_error(error: Exception) -> str:
    """The reason of a failed request, in plain words."""
    import requests

    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate cannot be verified"
    if isinstance(error, requests.ConnectionError):
        return "no connection; are you offline?"
    return one_line(error)
