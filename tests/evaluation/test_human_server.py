"""The server of the voting page: what it answers, whatever it is asked."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from human_study import make_folders, study_of, vote_record

from mavcli.errors import DiskError
from mavcli.evaluation.human import Study, open_folder
from mavcli.evaluation.human_server import HumanServer, write_static
from mavcli.evaluation.votes import STORE, VoteStore

JSON = {"Content_Type": "application/json"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(make_folders(tmp_path_factory.mktemp("videos"), pairs=3))


@pytest.fixture
def served(study: Study, tmp_path: Path) -> Iterator[HumanServer]:
    open_folder(tmp_path / "out", study)
    server = HumanServer(study, VoteStore(tmp_path / "out" / STORE, study))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(
    server: HumanServer, method: str, path: str, *, body: str | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def post(server: HumanServer, path: str, record: Any) -> tuple[int, dict[str, Any]]:
    status, body = ask(server, "POST", path, body=json.dumps(record), **JSON)
    return status, json.loads(body)


def enrol(server: HumanServer, name: str = "Anna") -> str:
    status, told = post(server, "/api/raters", {"study": server.study.id, "name": name})
    assert status == 200 and told["study"] == server.study.id and told["name"] == name
    return str(told["rater"])


def test_a_vote_is_on_the_disk_when_the_server_has_answered_and_the_answer_says_which(
    served: HumanServer, study: Study
) -> None:
    rater = enrol(served)
    vote = vote_record(study, "anna", 2) | {"rater": rater}
    for fresh in (True, False):
        status, told = post(served, "/api/votes", vote)
        assert status == 200 and told == {
            "saved": True,
            "fresh": fresh,
            **{key: vote[key] for key in ("study", "rater", "id", "item", "question", "revision", "answer")},
        }
        other = sqlite3.connect(f"file:{served.store.path}?mode=ro", uri=True)
        assert other.execute("SELECT id FROM votes").fetchall() == [(vote["id"],)]
        other.close()
    status, reply = ask(served, "GET", f"/api/votes?study={study.id}&rater={rater}")
    told = json.loads(reply)
    assert (told["name"], [one["item"] for one in told["votes"]]) == ("Anna", [study.items[2].id])


def test_another_study_or_an_unknown_rater_is_a_conflict_and_nothing_is_kept(
    served: HumanServer, study: Study
) -> None:
    vote = vote_record(study, "anna", 0)
    assert post(served, "/api/votes", vote | {"study": "another"})[1]["why"] == "study"
    for path, record in (("/api/votes", vote), ("/api/raters", {"name": "x"})):
        assert post(served, path, record | {"study": "another"})[0] == 409
    assert post(served, "/api/votes", vote) == (
        409,
        {"error": "this folder of votes does not know that rater", "why": "rater"},
    )
    for query, why in ((f"study={study.id}&rater=x", "rater"), ("study=another&rater=x", "study")):
        status, body = ask(served, "GET", f"/api/votes?{query}")
        assert status == 409 and json.loads(body)["why"] == why
    assert served.store.votes() == []


def test_a_vote_that_the_disk_refuses_is_not_called_saved(
    served: HumanServer, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    vote = vote_record(study, "anna", 0) | {"rater": enrol(served)}

    def full(_: object) -> bool:
        raise DiskError("cannot write `votes.sqlite`: database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(served.store, "add", full)
        status, told = post(served, "/api/votes", vote)
    assert status == 507 and "saved" not in told and "disk is full" in told["error"]
    assert post(served, "/api/votes", vote)[1]["saved"] is True


def test_the_server_gives_out_its_own_pages_and_clips_alone(served: HumanServer, study: Study) -> None:
    for path in ("/", "/human.css", "/human.js", "/study.js"):
        assert ask(served, "GET", path)[0] == 200
    for path in ("/study.json", "/../study.json", "/media/../study.json", "/media/x.mp4", "/votes.sqlite"):
        assert ask(served, "GET", path)[0] == 404
    clip = study.items[0].clips[0]
    path, whole = f"/{study.items[0].source(clip)}", study.items[0].path(clip).read_bytes()
    assert ask(served, "GET", path) == (200, whole)
    assert ask(served, "HEAD", path) == (200, b"")
    assert ask(served, "GET", path, Range="bytes=10-19") == (206, whole[10:20])
    assert ask(served, "GET", path, Range="bytes=10-") == (206, whole[10:])
    assert ask(served, "GET", path, Range="bytes=-7") == (206, whole[-7:])
    assert ask(served, "GET", path, Range=f"bytes={len(whole)}-")[0] == 416
    assert ask(served, "GET", path, Range=f"bytes={'9' * 5000}-")[0] == 200


def test_a_clip_that_is_gone_is_an_answer(study: Study, tmp_path: Path) -> None:
    mine = study_of(make_folders(tmp_path, pairs=1))
    server = HumanServer(mine, VoteStore(tmp_path / STORE, mine))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    (name, path), *_ = server.clips.items()
    path.unlink()
    status, body = ask(server, "GET", f"/{name}")
    assert status == 404 and b"cannot be read: no such file" in body
    server.shutdown()
    server.server_close()


def test_other_sites_cannot_vote(served: HumanServer, study: Study) -> None:
    body = json.dumps(vote_record(study, "anna", 0) | {"rater": enrol(served)})
    assert ask(served, "POST", "/api/votes", body=body, Content_Type="text/plain")[0] == 400
    assert ask(served, "POST", "/api/votes", body=body, Host="evil.example:80", **JSON)[0] == 403
    assert ask(served, "GET", "/study.js", Host="evil.example")[0] == 403
    assert ask(served, "GET", "/study.js", Host="127.0.0.1.evil.example")[0] == 403
    assert ask(served, "GET", "/study.js", Host="localhost")[0] == 200
    assert served.store.votes() == []


HEAD = "Host: 127.0.0.1\r\n"
POST = f"POST /api/votes HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/x.y\r\n\r\n", 400),
        (b"GET / HTTP/1.1 and more\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
        (f"GET http://[ HTTP/1.1\r\n{HEAD}\r\n".encode(), 400),
        (f"GET /api/votes?{'a&' * 500} HTTP/1.1\r\n{HEAD}\r\n".encode(), 400),
        (f"GET /{'x' * 70_000} HTTP/1.1\r\n{HEAD}\r\n".encode(), 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (f"DELETE / HTTP/1.1\r\n{HEAD}\r\n".encode(), 501),
        (f"{POST}\r\n{{}}".encode(), 400),
        (f"{POST}Content-Length: -1\r\n\r\n".encode(), 400),
        (f"{POST}Content-Length: \xb2\r\n\r\n{{}}".encode("latin-1"), 400),
        (f"{POST}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}".encode(), 400),
        (f"{POST}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}".encode(), 400),
        (f"{POST}Content-Length: {'9' * 17}\r\n\r\n".encode(), 413),
        (f"{POST}Content-Length: 90\r\n\r\n{{".encode(), 400),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_a_request_that_cannot_be_parsed_is_answered(
    served: HumanServer, request_: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", served.server_address[1]), timeout=10) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        assert reply.status == status
        assert json.loads(reply.read())["error"]
    assert capfd.readouterr() == ("", "")
    assert ask(served, "GET", "/study.js")[0] == 200, "the server goes on"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 9000,
        b'{"study": 5}',
        b"1" * 5000,
        b"\xff\xfe{}",
        b'{"study": NaN}',
        b'"x"',
        b"\0",
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_body_that_is_no_vote_is_a_400_and_the_connection_goes_on(served: HumanServer, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.server_address[1], timeout=10)
    for path in ("/api/votes", "/api/raters"):
        connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 400 and json.loads(reply.read())["error"]
    connection.close()


@pytest.mark.parametrize(
    "change", [{"rater": 5}, {"answer": {}}, {"name": []}, {"seconds": 10**400}, {"at": "\ud800"}], ids=str
)
def test_a_vote_of_wrong_types_is_a_400(served: HumanServer, study: Study, change: dict[str, Any]) -> None:
    assert post(served, "/api/votes", vote_record(study, "anna", 0) | change)[0] == 400
    assert post(served, "/api/raters", {"study": study.id, "name": change.get("name", 7)})[0] == 400
    assert post(served, "/api/raters", {"study": study.id, "name": "\ud800 \n"})[0] == 400


def test_a_body_that_is_too_long_is_refused_before_it_is_read_and_the_answer_arrives(
    served: HumanServer,
) -> None:
    for size in (20_000, 4_000_000):
        status, body = ask(served, "POST", "/api/votes", body="x" * size, **JSON)
        assert status == 413 and json.loads(body)["error"] == "that is no vote"


def test_a_static_folder_holds_everything_but_the_key(study: Study, tmp_path: Path) -> None:
    page = write_static(tmp_path / "page", study)
    files = sorted(
        file.relative_to(page.parent).as_posix() for file in page.parent.rglob("*") if file.is_file()
    )
    first = min(clip for item in study.items for clip in item.clips)
    assert files[:4] == ["human.css", "human.js", "index.html", f"media/{first}.mp4"]
    assert len(files) == 4 + 6
    write_static(tmp_path / "page", study)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(DiskError, match="is not empty"):
        write_static(tmp_path / "mine", study)
