"""Files over HTTP: resumed where a download broke off, checked by their hash, put in place whole."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from ...support.console import Shown
from ...support.errors import UserError, one_line, printable, require
from ..cache import locked
from .catalog import File

CONNECT, READ = 10, 30  # seconds
BLOCK = 2**16
ATTEMPTS = 3


class Failed(Exception):
    """Why a download did not work."""


def fetch(file: File, folder: Path, shown: Shown) -> Path:
    """The file in `folder`, downloaded if it is not there. Raises UserError that says where to put it by hand."""
    path = folder / file.name
    if path.exists():
        return path
    with locked(path, shown):
        if path.exists():  # another process has fetched it meanwhile
            return path
        reasons: dict[str, list[str]] = {}
        for address in file.addresses:
            try:
                _fetch_from(address, file, path, shown)
                return path
            except Failed as failure:
                reasons.setdefault(str(failure), []).append(address)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing has come
    said = "; ".join(f"{reason} ({', '.join(of)})" for reason, of in reasons.items())
    raise UserError(
        f"{file.name} is missing and could not be downloaded: {said}; get it elsewhere and put it at {path}"
    )


def _fetch_from(address: str, file: File, path: Path, shown: Shown) -> None:
    """Raises Failed; a part that came stays for the next time, unless it is not of this file."""
    part = path.with_name(f"{path.name}.part")
    shown.say(f"downloading {file.name}, {file.size / 1e6:,.1f} MB, from {address}")
    for attempt in range(1, ATTEMPTS + 1):
        had = size_of(part)
        try:
            if had < file.size:
                _receive(address, file, part, shown)
        except Failed:
            if size_of(part) <= had or attempt == ATTEMPTS:
                raise
            continue
        if file_digest(part, file.digest) == file.digest:
            part.replace(path)
            return
        part.unlink()
        if not had:
            break  # else what was there before was of something else: start again
    raise Failed("what it sends is not the original file (its hash differs)")


def size_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(address: str, file: File, part: Path, shown: Shown) -> None:
    """Append to `part` what it lacks of the file. Raises Failed where the transfer breaks off."""
    import requests
    import urllib3

    done = size_of(part)
    # Identity: the hash is of the bytes as they are, not as a helpful server or library unpacks them.
    headers = {"Accept-Encoding": "identity", "User-Agent": "vaekit"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        with requests.get(address, headers=headers, stream=True, timeout=(CONNECT, READ)) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise Failed("it has no such part of the file")
            if answer.status_code not in (200, 206):
                raise Failed(f"it answers {answer.status_code} {answer.reason}")
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise Failed("it sends a web page in place of the file")
            resumed = answer.status_code == 206 and answer.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {done}-")
            if not resumed:
                done = 0
            part.parent.mkdir(parents=True, exist_ok=True)
            with (
                part.open("ab" if resumed else "wb") as out,
                shown.bytes(file.name, file.size, done) as bar,
            ):
                for block in answer.raw.stream(BLOCK, decode_content=False):
                    out.write(block)
                    done += len(block)
                    bar.advance(bar.task_ids[0], len(block))
                    if done > file.size:
                        break
    except urllib3.exceptions.HTTPError:
        pass  # the connection broke: how much has come is looked at below
    except requests.RequestException as error:
        raise Failed(explain(error)) from None
    except OSError as error:  # a full disk, which what has come only fills
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(part)) from None
    if not done:
        part.unlink(missing_ok=True)
    if done < file.size:
        raise Failed(
            f"it broke off after {done:,} of {file.size:,} bytes; run again to go on from there"
        )


def explain(error: Exception) -> str:
    import requests

    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "it does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be checked"
    if isinstance(error, requests.ConnectionError):
        return "no connection; are you offline?"
    return one_line(error)


def file_digest(path: Path, like: str) -> str:
    """A file's hash, of the kind and in the form of `like`."""
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def check_file(path: Path, digest: str) -> Path:
    """UserError unless the file is there and has the hash."""
    require(path.is_file(), f"{printable(path)} is missing; put the data set's file there")
    require(
        file_digest(path, digest) == digest,
        f"{printable(path)} is not the original file (its hash differs); remove it, and get it again",
    )
    return path
