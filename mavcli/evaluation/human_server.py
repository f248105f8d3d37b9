"""The voting page: served on 127.0.0.1, or written as one static folder.

The server answers a vote when it is synced to the disk. Raters get pages and clips under opaque names, and nothing else.
"""

from __future__ import annotations

import json
import mimetypes
import os
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mavcli.errors import DiskError, UsageError
from mavcli.evaluation.human import BadVoteError, Study, VoteBook, read_vote
from mavcli.files import copy_file, disk_error, write_bytes

PAGE = ("human.html", "human.css", "human.js")
_LARGEST_VOTE = 16384
_CHUNK = 1 << 18
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; media-src 'self'; connect-src 'self'"


def asset(name: str) -> bytes:
    """A file of the page."""
    return resources.files("mavcli.evaluation").joinpath("assets", name).read_bytes()


def study_script(study: Study, *, server: bool) -> bytes:
    """`study.js`: what the page knows of the study. A script, because a page opened from a file may read no other."""
    told = json.dumps({**study.public(), "server": server})
    return f"window.MAV_STUDY = {told};\n".encode()


def write_static(folder: Path, study: Study, *, force: bool = False) -> Path:
    """The whole page with its clips in one folder, to be opened from the disk or put on any web server.

    Returns the page. Raises DiskError where the folder holds something else and `force` is not given.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise DiskError(f"`{folder}` is a file, wanted a folder")
        script = study_script(study, server=False)
        ours = (folder / "study.js").exists() and (folder / "study.js").read_bytes() == script
        if folder.is_dir() and any(folder.iterdir()) and not (force or ours):
            raise DiskError(f"`{folder}` is not empty", hint="--force writes into it, or give another folder")
        (folder / "media").mkdir(parents=True, exist_ok=True)
        for item in study.items:
            for clip in item.clips:
                copy_file(item.path(clip), folder / item.source(clip), overwrite=True)
        for name in PAGE:
            place = folder / ("index.html" if name == "human.html" else name)
            write_bytes(place, asset(name), overwrite=True)
        write_bytes(folder / "study.js", script, overwrite=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder / "index.html"


class HumanServer(ThreadingHTTPServer):
    """Serves one study on 127.0.0.1; `port` 0 takes a free one. Raises UsageError where the port is taken."""

    daemon_threads = True

    def __init__(self, study: Study, book: VoteBook, *, port: int = 0) -> None:
        self.study, self.book = study, book
        self.clips = {item.source(clip): item.path(clip) for item in study.items for clip in item.clips}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} of 127.0.0.1 cannot be used: {(error.strerror or str(error)).lower()}",
                hint="--port 0 takes a free one",
            ) from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a clip is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: HumanServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mav", ""
    timeout = 60

    def do_GET(self) -> None:
        if not self._here():
            return
        url = urlsplit(self.path)
        name = url.path.removeprefix("/") or "index.html"
        if name == "api/votes":
            rater = parse_qs(url.query).get("rater", [""])[0]
            self._json({"votes": [vote._asdict() for vote in self.server.book.of(rater)]})
        elif name == "study.js":
            self._send(study_script(self.server.study, server=True), "text/javascript")
        elif name == "index.html":
            self._send(asset("human.html"), "text/html; charset=utf-8")
        elif name in PAGE:
            self._send(asset(name), f"{mimetypes.guess_type(name)[0]}; charset=utf-8")
        elif name in self.server.clips:
            self._clip(self.server.clips[name])
        else:
            self._say(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        if not self._here():
            return
        # A form of another site can post no JSON without asking first.
        kind = self.headers.get_content_type()
        length = self.headers.get("Content-Length", "")
        if self.path != "/api/votes" or kind != "application/json" or not length.isdigit():
            self.close_connection = True
            return self._say(HTTPStatus.BAD_REQUEST, "wanted a vote as JSON")
        if int(length) > _LARGEST_VOTE:
            self.close_connection = True
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is no vote")
        book = self.server.book
        try:
            vote = read_vote(json.loads(self.rfile.read(int(length))), self.server.study)
        except ValueError as error:
            return self._say(HTTPStatus.BAD_REQUEST, str(error))
        try:
            fresh = book.add(vote)
        except BadVoteError as error:
            return self._say(HTTPStatus.CONFLICT, str(error))
        except DiskError as error:
            return self._say(HTTPStatus.INSUFFICIENT_STORAGE, error.message)
        self._json({"saved": True, "fresh": fresh})

    def _here(self) -> bool:
        """Another site's page can reach this server through a name of its own, but not as 127.0.0.1."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self.close_connection = True
        self._say(HTTPStatus.FORBIDDEN, "wanted http://127.0.0.1")
        return False

    def _clip(self, path: Path) -> None:
        """A clip or the range of it that a player asks for."""
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last, status = 0, size - 1, HTTPStatus.OK
            if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
                status = HTTPStatus.PARTIAL_CONTENT
                start, end = asked.groups()
                if start:
                    first, last = int(start), min(int(end or size), size - 1)
                else:
                    first = max(0, size - int(end or 0))
                if first > last:
                    self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Cache-Control", "max-age=3600")
            if status == HTTPStatus.PARTIAL_CONTENT:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            file.seek(first)
            left = last - first + 1
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._send(text.encode(), "text/plain; charset=utf-8", status=status)

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news."""
