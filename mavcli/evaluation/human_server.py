"""The voting page: served on 127.0.0.1, or written as one static folder.

The server answers a vote when it is synced to the disk, and its answer says which vote of which study that is. Raters get
pages and clips under opaque names, and nothing else. Whatever cannot be understood is answered: 400 for a request that is
wrong in itself, 409 for one that does not fit this study, 507 for a disk that takes nothing.
"""

from __future__ import annotations

import json
import mimetypes
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mavcli.errors import DiskError, UsageError, one_line
from mavcli.evaluation.human import Study
from mavcli.evaluation.votes import BadVoteError, UnknownRaterError, VoteStore, read_vote
from mavcli.files import copy_file, disk_error, write_bytes

PAGE = ("human.html", "human.css", "human.js")
_LARGEST_BODY = 16384
_CHUNK = 1 << 18
_LINGER_S, _LINGER_READS = 0.5, 64
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; media-src 'self'; connect-src 'self'"
_HERE = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


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

    def __init__(self, study: Study, store: VoteStore, *, port: int = 0) -> None:
        self.study, self.store = study, store
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

    def shutdown_request(self, request: Any) -> None:
        """Close when the other side has read: with bytes of it unread the system would take the answer back."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(_LINGER_S)
            for _ in range(_LINGER_READS):
                if not request.recv(_CHUNK):
                    break
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a clip is no error."""


class _Refused(Exception):
    """A request that is not carried out; `why` is a word for the page."""

    def __init__(self, status: HTTPStatus, text: str, *, why: str = "") -> None:
        super().__init__(text)
        self.status, self.text, self.why = status, text, why


class _Handler(BaseHTTPRequestHandler):
    server: HumanServer
    protocol_version = "HTTP/1.1"
    # Of a request line that cannot be parsed: with the default, HTTP/0.9, the answer would have no status.
    default_request_version = "HTTP/1.1"
    server_version, sys_version = "mav", ""
    timeout = 60
    _begun = False

    def parse_request(self) -> bool:
        if not self.raw_requestline.strip():  # type: ignore[attr-defined]
            self.command, self.requestline, self.close_connection = "", "", True
            self.request_version = self.default_request_version
            self._refuse(_Refused(HTTPStatus.BAD_REQUEST, "wanted a request"))
            return False
        return super().parse_request()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` finds wrong with a request."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._refuse(_Refused(status, one_line(message or status.phrase, limit=200)))

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Callable[[], None]) -> None:
        self._begun = False
        try:
            self._check_host()
            work()
        except _Refused as refused:
            self._refuse(refused)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self.close_connection = True
            if not self._begun:
                text = one_line(f"a bug in mav: {type(error).__name__}: {error}", limit=500)
                self._refuse(_Refused(HTTPStatus.INTERNAL_SERVER_ERROR, text))

    # -- what is asked for ------------------------------------------------------------------------------------------------

    def _get(self) -> None:
        url = self._url()
        name = url.path.removeprefix("/") or "index.html"
        if name == "api/votes":
            self._votes(url.query)
        elif name == "study.js":
            self._send(study_script(self.server.study, server=True), "text/javascript")
        elif name == "index.html":
            self._send(asset("human.html"), "text/html; charset=utf-8")
        elif name in PAGE:
            self._send(asset(name), f"{mimetypes.guess_type(name)[0]}; charset=utf-8")
        elif name in self.server.clips:
            self._clip(self.server.clips[name])
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        path = self._url().path
        if path not in ("/api/votes", "/api/raters"):
            raise self._left_unread(HTTPStatus.NOT_FOUND, "there is no such page")
        record = self._body()
        self._check_study(record.get("study"))
        try:
            answer = self._enrol(record) if path == "/api/raters" else self._keep(record)
        except BadVoteError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except UnknownRaterError as error:
            raise _unknown_rater() from error
        except DiskError as error:
            raise _Refused(HTTPStatus.INSUFFICIENT_STORAGE, error.message) from error
        self._json({"study": self.server.study.id, **answer})

    def _enrol(self, record: dict[str, Any]) -> dict[str, Any]:
        name = record.get("name")
        if not isinstance(name, str):
            raise BadVoteError("`name` is text")
        token = self.server.store.enrol(name)
        return {"rater": token, "name": self.server.store.name_of(token)}

    def _keep(self, record: dict[str, Any]) -> dict[str, Any]:
        vote = read_vote(record, self.server.study)
        fresh = self.server.store.add(vote)
        told = {key: getattr(vote, key) for key in ("rater", "id", "item", "question", "revision", "answer")}
        return {"saved": True, "fresh": fresh, **told}

    def _votes(self, query: str) -> None:
        try:
            asked = parse_qs(query, max_num_fields=10)
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "wanted ?study=...&rater=...") from error
        self._check_study(asked.get("study", [None])[0])
        token = asked.get("rater", [""])[0]
        try:
            name, votes = self.server.store.name_of(token), self.server.store.of(token)
        except UnknownRaterError as error:
            raise _unknown_rater() from error
        except (DiskError, ValueError) as error:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, one_line(str(error))) from error
        told = [vote._asdict() for vote in votes]
        self._json({"study": self.server.study.id, "rater": token, "name": name, "votes": told})

    def _clip(self, path: Path) -> None:
        """A clip or the range of it that a player asks for."""
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        try:
            file = open(path, "rb")  # noqa: SIM115
        except OSError as error:
            text = f"the clip cannot be read: {(error.strerror or str(error)).lower()}"
            raise _Refused(HTTPStatus.NOT_FOUND, text) from error
        with file:
            size = os.fstat(file.fileno()).st_size
            first, last, status = 0, size - 1, HTTPStatus.OK
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            if asked and any(asked.groups()):
                status = HTTPStatus.PARTIAL_CONTENT
                start, end = asked.groups()
                if start:
                    first, last = int(start), min(int(end or size), size - 1)
                else:
                    first = max(0, size - int(end))
                if first > last:
                    self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, kind, 0)
                    self.send_header("Content-Range", f"bytes */{size}")
                    return self.end_headers()
            self._head(status, kind, last - first + 1)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "max-age=3600")
            if status == HTTPStatus.PARTIAL_CONTENT:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            file.seek(first)
            left = 0 if self.command == "HEAD" else last - first + 1
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)
            if left:  # it became shorter: the browser must not wait for the rest
                self.close_connection = True

    # -- what is wrong ----------------------------------------------------------------------------------------------------

    def _check_host(self) -> None:
        """Another site's page can reach this server through a name of its own, but not as 127.0.0.1."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not hosts[0].strip():
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "wanted one Host")
        if not _HERE.fullmatch(hosts[0].strip()):
            raise self._left_unread(HTTPStatus.FORBIDDEN, "wanted http://127.0.0.1")

    def _check_study(self, study: Any) -> None:
        if not isinstance(study, str):
            raise _Refused(HTTPStatus.BAD_REQUEST, "wanted the study's id")
        if study != self.server.study.id:
            text = f"this is study `{self.server.study.id}`, not `{one_line(study, limit=40)}`"
            raise _Refused(HTTPStatus.CONFLICT, text, why="study")

    def _url(self) -> Any:
        try:
            return urlsplit(self.path)
        except ValueError as error:
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "that is no address") from error

    def _body(self) -> dict[str, Any]:
        """The JSON object of a request."""
        # A form of another site can post no JSON without asking first.
        if self.headers.get_content_type() != "application/json":
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "wanted JSON (Content-Type: application/json)")
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0].strip(), re.ASCII):
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "wanted one Content-Length")
        if "Transfer-Encoding" in self.headers:
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "wanted a body of known length")
        if int(lengths[0]) > _LARGEST_BODY:
            raise self._left_unread(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is no vote")
        data = self.rfile.read(int(lengths[0]))
        if len(data) != int(lengths[0]):
            raise self._left_unread(HTTPStatus.BAD_REQUEST, "the body is cut short")
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "that is no JSON") from error
        if not isinstance(record, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "wanted a JSON object")
        return record

    def _left_unread(self, status: HTTPStatus, text: str) -> _Refused:
        """A refusal before the body was read: what follows on the connection is no request."""
        self.close_connection = True
        return _Refused(status, text)

    def _refuse(self, refused: _Refused) -> None:
        told = {"error": refused.text, "why": refused.why}
        self._send(json.dumps(told).encode(), "application/json", status=refused.status)

    # -- the answer -------------------------------------------------------------------------------------------------------

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, kind, len(body))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self._begun = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news."""


def _unknown_rater() -> _Refused:
    return _Refused(HTTPStatus.CONFLICT, "this folder of votes does not know that rater", why="rater")
