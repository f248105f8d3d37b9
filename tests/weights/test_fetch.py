"""Published weights: whole or not at all, checked, continued, and never asked for twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import Hub, serving, sha256
from huggingface_hub import constants

from mavcli.errors import DiskError, UsageError, WeightsError
from mavcli.report import Silent
from mavcli.weights import fetch
from mavcli.weights.fetch import check_pulled, download, plan_pull, pull, recorded
from mavcli.weights.manifest import Published, RemoteFile

BIG = bytes(range(256)) * 4000
FILES = {
    "decoder/config.json": b'{"a": 1}',
    "decoder/model.safetensors": BIG,
    "prior/model.safetensors": BIG[::-1],
}


class Heard(Silent):
    """A report that counts."""

    def __init__(self) -> None:
        self.total = self.done = 0.0
        self.messages: list[str] = []

    def plan(self, total: float) -> None:
        self.total = total

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    skip = advance

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A download that breaks off is tried again at once, and not five times.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    with serving(Hub(dict(FILES))) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


def on_hub(hub: Hub, **sums: str) -> Published:
    files = [
        RemoteFile(path=path, stage=path.split("/")[0], sha256=sums.get(path.split("/")[0])) for path in FILES
    ]
    return published(files, hub=hub.repo)


def at_addresses(hub: Hub, **sums: str) -> Published:
    files = [
        # no https on this machine, so the check of addresses is stepped over
        RemoteFile.model_construct(
            path=path,
            stage=path.split("/")[0],
            url=f"{hub.url}/{path}",
            size=None,
            sha256=sums.get(path.split("/")[0]),
        )
        for path in FILES
    ]
    return published(files, hub=None)


def published(files: list[RemoteFile], *, hub: str | None) -> Published:
    return Published.model_construct(
        title="t", licence="MIT", source="s", notice="", importer="karlo", hub=hub, revision="main",
        files=tuple(files), networks=(),
    )  # fmt: skip


@pytest.fixture(params=["hub", "addresses"])
def entry(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Published:
    made = on_hub(hub) if request.param == "hub" else at_addresses(hub)
    monkeypatch.setattr(fetch, "published", lambda name: made)
    return made


def gets(hub: Hub) -> list[str]:
    return [path for method, path, _ in hub.asked if method == "GET" and not path.startswith("/api/")]


def visible(folder: Path) -> list[str]:
    """The files of a folder without what begins with a dot."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def test_what_is_pulled_is_whole_recorded_and_not_asked_for_again(hub: Hub, entry: Published) -> None:
    heard = Heard()
    plan = plan_pull("x")
    assert plan.to_fetch == sum(map(len, FILES.values())) and not plan.unknown
    assert [path.read_bytes() for path in pull(plan, heard)] == list(FILES.values())
    assert heard.done == heard.total == 2 * plan.to_fetch
    assert visible(plan.folder) == sorted([*FILES, fetch.RECORD])
    assert {name: record["sha256"] for name, record in recorded(plan.folder).items()} == {
        name: sha256(content) for name, content in FILES.items()
    }
    asked = len(hub.asked)
    again = plan_pull("x", offline=True)
    assert not again.missing and pull(again, Silent()) and len(hub.asked) == asked
    assert all(fault is None for _, fault in check_pulled("x", entry))


def test_one_stage_alone_can_be_pulled(hub: Hub, entry: Published) -> None:
    plan = plan_pull("x", stages=["prior"])
    pull(plan, Silent())
    assert visible(plan.folder) == ["prior/model.safetensors", fetch.RECORD]
    with pytest.raises(UsageError, match="`x` has no weights for `sr_l`, it has decoder, prior"):
        plan_pull("x", stages=["sr_l"])


def test_what_is_sent_must_be_what_was_published(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (on_hub(hub, prior="0" * 64), at_addresses(hub, prior="0" * 64)):
        monkeypatch.setattr(fetch, "published", lambda name, made=made: made)
        plan = plan_pull("x", folder=Path(os.environ["MAV_CACHE"]) / str(made.hub))
        with pytest.raises(WeightsError, match="is not what was published: SHA-256") as caught:
            pull(plan, Silent())
        assert caught.value.exit_code == 3 and "prior/model.safetensors" not in visible(plan.folder)
        # what came before it stays, and is not fetched again
        assert "decoder/model.safetensors" in recorded(plan.folder)


def test_the_hubs_own_sha256_is_checked_where_the_manifest_has_none(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = on_hub(hub)
    monkeypatch.setattr(fetch, "published", lambda name: made)
    plan = plan_pull("x", stages=["prior"])
    hub.files["prior/model.safetensors"] = bytes(
        len(BIG)
    )  # the store behind the hub is not what the hub says
    with pytest.raises(WeightsError, match="is not what was published"):
        pull(plan, Silent())


def test_a_download_that_broke_off_is_continued(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    hub.cut = 350_000
    with pytest.raises(WeightsError, match="cannot get http"):
        broken(hub, target)
    (part,) = tmp_path.glob(".model.pt.*.part")
    got = part.stat().st_size
    assert 0 < got < len(BIG) and not target.exists()
    hub.cut = None
    hub.asked.clear()
    heard = Heard()
    download(f"{hub.url}/decoder/model.safetensors", target, report=heard)
    assert target.read_bytes() == BIG and not list(tmp_path.glob(".model.pt*"))
    assert hub.asked[-1][2] == f"bytes={got}-" and heard.done == len(BIG)


def broken(hub: Hub, target: Path) -> None:
    """A download whose every attempt dies: the library tries again by itself, so the server is shut for the rest."""
    calls = len(hub.asked)

    def shut() -> None:
        while sum(method == "GET" for method, _, _ in hub.asked[calls:]) < 1:
            pass
        hub.status = 503

    watcher = threading.Thread(target=shut)
    watcher.start()
    try:
        download(f"{hub.url}/decoder/model.safetensors", target, report=Silent())
    finally:
        watcher.join()
        hub.status = None


def test_a_killed_download_leaves_no_file_and_is_continued(hub: Hub, tmp_path: Path) -> None:
    target, url = tmp_path / "model.pt", f"{hub.url}/decoder/model.safetensors"
    code = (
        "import sys; from pathlib import Path; from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 100_000\n"
        "from mavcli.report import Silent; from mavcli.weights.fetch import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), report=Silent())"
    )
    hub.held = threading.Event()
    with subprocess.Popen([sys.executable, "-c", code, url, str(target)]) as child:
        while (
            child.poll() is None and sum(part.stat().st_size for part in tmp_path.glob(".*.part")) < 200_000
        ):
            time.sleep(0.01)
        child.kill()
    hub.held.set()
    assert not target.exists()
    (part,) = tmp_path.glob(".model.pt.*.part")
    got = part.stat().st_size
    hub.held = None
    download(url, target, report=Silent())
    assert target.read_bytes() == BIG and hub.asked[-1][2] == f"bytes={got}-" and 200_000 <= got < len(BIG)


def test_a_part_of_another_version_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    (tmp_path / ".model.pt.000000000000.part").write_bytes(b"old")
    download(f"{hub.url}/decoder/model.safetensors", target, report=Silent())
    assert target.read_bytes() == BIG and [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        "model.pt"
    ]


def test_a_server_without_ranges_sends_everything_again(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    hub.cut = 300_000
    with pytest.raises(WeightsError):
        broken(hub, target)
    hub.cut, hub.ranges = None, False
    download(f"{hub.url}/decoder/model.safetensors", target, report=Silent())
    assert target.read_bytes() == BIG


def test_a_file_that_is_not_there_is_one_line(hub: Hub, entry: Published) -> None:
    plan = plan_pull("x")
    del hub.files["prior/model.safetensors"]
    with pytest.raises(WeightsError, match="cannot get .*prior/model.safetensors") as caught:
        pull(plan, Silent())
    assert "\n" not in caught.value.message and "--from FOLDER" in (caught.value.hint or "")


def test_offline_nothing_is_asked_for(hub: Hub, entry: Published) -> None:
    with pytest.raises(WeightsError, match="3 files of `x` are not on this disk") as caught:
        plan_pull("x", offline=True)
    assert not hub.asked and "--from" in (caught.value.hint or "")


def test_a_folder_of_the_users_is_a_source(hub: Hub, entry: Published, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for name, content in FILES.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_bytes(content)
    plan = plan_pull("x", local=mine, offline=True)
    assert plan.to_fetch == 0
    pull(plan, Silent())
    assert visible(plan.folder) == sorted([*FILES, fetch.RECORD]) and not hub.asked
    assert all((mine / name).is_file() for name in FILES)
    (mine / "prior/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=re.escape("lacks prior/model.safetensors of `x`")):
        plan_pull("x", local=mine, folder=tmp_path / "other")
    with pytest.raises(WeightsError, match="does not exist"):
        plan_pull("x", local=tmp_path / "none", folder=tmp_path / "other")


def test_a_single_file_may_have_any_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = published([RemoteFile(path="model.pt", stage="clip", sha256=sha256(BIG))], hub=hub.repo)
    monkeypatch.setattr(fetch, "published", lambda name: made)
    (tmp_path / "downloaded (1).pt").write_bytes(BIG)
    (path,) = pull(plan_pull("x", local=tmp_path / "downloaded (1).pt"), Silent())
    assert path.name == "model.pt" and path.read_bytes() == BIG
    (tmp_path / "wrong.pt").write_bytes(b"wrong")
    with pytest.raises(WeightsError, match="wrong.pt is not what was published"):
        pull(plan_pull("x", local=tmp_path / "wrong.pt", folder=tmp_path / "other"), Silent())
    assert (tmp_path / "wrong.pt").read_bytes() == b"wrong"


def test_what_lies_in_the_hubs_cache_is_not_fetched_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    made = on_hub(hub)
    monkeypatch.setattr(fetch, "published", lambda name: made)
    for name in FILES:
        huggingface_hub.hf_hub_download(hub.repo, name, cache_dir=constants.HF_HUB_CACHE)
    hub.asked.clear()
    plan = plan_pull("x", offline=True)
    assert plan.to_fetch == 0 and len(plan.missing) == len(FILES)
    assert [path.read_bytes() for path in pull(plan, Silent())] == list(FILES.values()) and not hub.asked


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: Hub, entry: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_pull("x")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskError, match=r"needs 0.00 GB in .*, 0.00 GB are free"):
        pull(plan, Silent())
    assert not gets(hub) and not plan.folder.exists()


def test_two_at_once_fetch_once(hub: Hub, entry: Published) -> None:
    plans = [plan_pull("x"), plan_pull("x")]
    faults: list[BaseException] = []

    def get(plan: fetch.Pull) -> None:
        try:
            pull(plan, Silent())
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=get, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(gets(hub)) == len(FILES)
    assert [piece.target.read_bytes() for piece in plans[0].pieces] == list(FILES.values())


def test_what_was_pulled_is_checked_byte_by_byte(hub: Hub, entry: Published) -> None:
    plan = plan_pull("x")
    pull(plan, Silent())
    content = bytearray(BIG)
    content[7] ^= 1
    (plan.folder / "decoder/model.safetensors").write_bytes(content)
    (plan.folder / "prior/model.safetensors").unlink()
    faults = [
        None if fault is None else fault.message.split(": ")[0] for _, fault in check_pulled("x", entry)
    ]
    assert faults == [
        None,
        f"{plan.folder}/decoder/model.safetensors is damaged",
        f"{plan.folder}/prior/model.safetensors is gone",
    ]


def test_a_spoilt_record_is_no_record(tmp_path: Path) -> None:
    for text in ("", "[]", '{"files": 3}', '{"files": {"a": 1}}'):
        (tmp_path / fetch.RECORD).write_text(text)
        assert recorded(tmp_path) == {}
    (tmp_path / fetch.RECORD).write_text(json.dumps({"files": {"a": {"bytes": 1}}}))
    assert list(recorded(tmp_path)) == ["a"]
