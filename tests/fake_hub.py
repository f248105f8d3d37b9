"""A small HTTP server that stands in for the Hugging Face hub and for plain addresses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

COMMIT = "5ee45298e0956749e621bcb30c799a0b599afa83"


class Hub:
    """`files` are served at `/REPO/resolve/REVISION/PATH` and at `/PATH`. `cut` drops the connection after so
    many bytes, `status` answers everything with an error, without `ranges` nothing can be continued."""

    def __init__(self, files: dict[str, bytes], *, repo: str = "someone/weights") -> None:
        self.files, self.repo = files, repo
        self.cut: int | None = None
        self.status: int | None = None
        self.ranges = True
        self.held: threading.Event | None = None  # what is waited for after 300 kB
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = ""

    def find(self, path: str) -> str | None:
        pieces = PurePosixPath(unquote(urlsplit(path).path)).parts[1:]
        name = "/".join(pieces[4:] if pieces[2:3] == ("resolve",) else pieces)
        return name if name in self.files else None

    def described(self) -> bytes:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                **(
                    {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 130}}
                    if large(name)
                    else {}
                ),
            }
            for name, content in self.files.items()
        ]
        return json.dumps(
            {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings}
        ).encode()


def large(name: str) -> bool:
    return not name.endswith(".json")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            return None

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            name = hub.find(self.path)
            if hub.status is not None or (name is None and not self.path.startswith("/api/")):
                self.send(hub.status or 404, b"", {})
                return
            content = hub.described() if name is None else hub.files[name]
            sent = {"Content-Type": "application/json"} if name is None else {"X-Repo-Commit": COMMIT}
            sent["ETag"] = (
                f'"{sha256(content) if name and large(name) else hashlib.sha1(content).hexdigest()}"'
            )
            wanted = self.headers.get("Range")
            if wanted and hub.ranges:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                sent["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send(206, content[start:] if body else b"", sent, length=len(content) - start)
            else:
                self.send(200, content if body else b"", sent, length=len(content))

        def send(
            self, status: int, content: bytes, headers: dict[str, str], length: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            if hub.cut is not None and self.command == "GET" and len(content) > hub.cut:
                self.wfile.write(content[: hub.cut])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[:300_000])
            if hub.held is not None and len(content) > 300_000:
                hub.held.wait(60)
            # The one who asked may be dead by now.
            with suppress(OSError):
                self.wfile.write(content[300_000:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
