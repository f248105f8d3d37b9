"""Features are computed once, kept by content, shared by ranks, and never of fewer clips than is said."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standin_networks import write_clips
from torch import Tensor

from mavcli.cli import app
from mavcli.errors import DiskError, InputError, Interrupted, WeightsError
from mavcli.evaluation.clips import Folder, FrameChoice, open_folder
from mavcli.evaluation.features import Entry, FeatureStore, Measured, measure
from mavcli.evaluation.scores import Measurement, fvd, gaussian, inception
from mavcli.evaluation.shards import Shard
from mavcli.media.frames import Frames
from mavcli.report import Silent


class Means:
    """A stand-in for a network: the mean of each channel of the first and of the last frame; counts its calls."""

    def __init__(self, *, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.calls, self._fail_at, self._error = 0, fail_at, error
        self.facts: Mapping[str, Any] = {"name": "means"}

    def prepare(self, frames: Frames) -> Tensor:
        return torch.from_numpy(np.concatenate([frames[0].mean((0, 1)), frames[-1].mean((0, 1))]))[None]

    def features(self, prepared: Tensor) -> Tensor:
        if self.calls == self._fail_at:
            raise self._error
        self.calls += 1
        return prepared.float()


class Lonely(Shard):
    """A rank that hears nobody."""

    def gather(self, mine: Sequence[str]) -> list[str]:
        return list(mine)


class Follower(Shard):
    """A rank that measures all, and does not lead."""

    @property
    def leads(self) -> bool:
        return False


class Heard(Silent):
    """A report that keeps what it was warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


CHOICE = FrameChoice(4)


def run(
    folder: Folder, cache: Path, network: Means, *, batch: int = 3, shard: Shard | None = None
) -> Measured:
    return measure(folder, network, CHOICE, cache=cache, shard=shard or Shard(), report=Silent(), batch=batch)


def all_rows(found: Measured) -> np.ndarray:
    return np.concatenate(list(found.clips()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("clips") / "set"
    write_clips(root, 10, frames=4)
    return open_folder(root)


def test_what_was_measured_once_is_found_again_by_content(tmp_path: Path, folder: Folder) -> None:
    first, again, renamed = Means(), Means(), Means()
    rows = all_rows(run(folder, tmp_path, first))
    assert first.calls == 10 and rows.shape == (10, 6)
    assert np.array_equal(all_rows(run(folder, tmp_path, again)), rows) and again.calls == 0
    other = tmp_path / "other"
    other.mkdir()
    for i, path in enumerate(reversed(folder.files)):
        (other / f"{i:02d}.mkv").write_bytes(path.read_bytes())
    assert np.array_equal(all_rows(run(open_folder(other), tmp_path, renamed)), rows[::-1])
    assert renamed.calls == 0


def test_another_choice_or_network_finds_nothing(tmp_path: Path, folder: Folder) -> None:
    run(folder, tmp_path, Means())
    other = Means()
    other.facts = {"name": "means", "weights_sha256": "0"}
    run(folder, tmp_path, other)
    assert other.calls == 10


def test_reading_runs_no_more_clips_ahead_than_there_are_workers(tmp_path: Path, folder: Folder) -> None:
    class Watched(Means):
        read = 0

        def prepare(self, frames: Frames) -> Tensor:
            self.read += 1
            return super().prepare(frames)

        def features(self, prepared: Tensor) -> Tensor:
            time.sleep(0.05)  # readers that could run on would be far ahead by now
            assert self.read <= self.calls + 1 + 2
            return super().features(prepared)

    measure(folder, Watched(), CHOICE, cache=tmp_path, shard=Shard(), report=Silent(), batch=10, workers=2)


def test_a_run_that_dies_loses_one_batch(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(RuntimeError):
        run(folder, tmp_path, Means(fail_at=8))
    rest = Means()
    rows = all_rows(run(folder, tmp_path, rest))
    assert rest.calls == 4  # 6 of the 8 were kept: two whole batches of 3
    assert np.array_equal(rows, all_rows(run(folder, tmp_path / "fresh", Means())))


def test_an_interrupted_run_says_what_it_kept(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(Interrupted, match="6 of 10 clips .* are measured and kept"):
        run(folder, tmp_path, Means(fail_at=7, error=KeyboardInterrupt))


def test_a_damaged_batch_is_made_anew(tmp_path: Path, folder: Folder) -> None:
    rows = all_rows(run(folder, tmp_path, Means()))
    kept = sorted(tmp_path.rglob("*.safetensors"))
    assert len(kept) == 4
    data = bytearray(kept[0].read_bytes())
    data[-1] ^= 1
    kept[0].write_bytes(data)
    kept[1].write_bytes(kept[1].read_bytes()[:40])
    again = Means()
    assert np.array_equal(all_rows(run(folder, tmp_path, again)), rows)
    assert 2 <= again.calls <= 6


def test_ranks_share_the_work_and_the_result_is_that_of_one(tmp_path: Path, folder: Folder) -> None:
    whole = run(folder, tmp_path / "one", Means())
    networks = [Means(), Means()]
    # The store is all that ranks share; each, alone, finds that the other's part is missing.
    for rank, lacking in enumerate(("clip03", "clip00")):
        with pytest.raises(DiskError, match=rf"{lacking}.mkv` are not in"):
            run(folder, tmp_path / "two", networks[rank], shard=Lonely(rank, 2))
    assert [network.calls for network in networks] == [6, 4]
    both = run(folder, tmp_path / "two", Means(fail_at=0))
    assert np.array_equal(all_rows(both), all_rows(whole))
    a, b = gaussian(both), gaussian(whole)
    assert np.array_equal(a.covariance, b.covariance)


def test_an_unusable_clip_ends_the_measurement_or_is_counted(tmp_path: Path, folder: Folder) -> None:
    root = tmp_path / "set"
    write_clips(root, 4, frames=4)
    write_clips(root / "short", 1, frames=3)
    (root / "empty.mp4").touch()
    broken = open_folder(root)
    how = Measurement(CHOICE, tmp_path / "cache", Silent(), batch=2)
    with pytest.raises(InputError) as caught:
        fvd(broken, folder, Means(), how)
    head, *lines = caught.value.message.splitlines()
    assert head == f"2 of the 6 videos in `{root}` cannot be measured:" and len(lines) == 2
    assert "empty.mp4" in lines[0] and "has 3 frames, 4 are wanted" in lines[1]
    assert caught.value.hint is not None and "--skip-unusable" in caught.value.hint
    lenient = Measurement(CHOICE, tmp_path / "cache", Silent(), batch=2, skip_unusable=True)
    score = fvd(broken, folder, Means(), lenient)
    side = score.fingerprint.fields["real"]
    assert (side["measured"], side["left_out"], side["in_folder"]) == (4, 2, 6)
    assert len(score.left_out) == 2
    clean = tmp_path / "clean"
    write_clips(clean, 4, frames=4)
    for path, source in zip(sorted(clean.iterdir()), sorted(root.glob("clip*")), strict=True):
        path.write_bytes(source.read_bytes())
    assert fvd(open_folder(clean), folder, Means(), how).value == score.value


def test_nothing_usable_or_one_clip_is_no_score(tmp_path: Path, folder: Folder) -> None:
    write_clips(tmp_path / "short", 2, frames=3)
    write_clips(tmp_path / "one", 1, frames=4)
    lenient = Measurement(CHOICE, tmp_path / "cache", Silent(), skip_unusable=True)
    with pytest.raises(InputError, match="holds no usable clip"):
        fvd(open_folder(tmp_path / "short"), folder, Means(), lenient)
    with pytest.raises(InputError, match="a covariance needs at least two"):
        fvd(open_folder(tmp_path / "one"), folder, Means(), lenient)
    with pytest.raises(InputError, match="10 rows, 11 splits need at least as many"):
        inception(folder, Means(), lenient, splits=11)


def test_a_score_has_a_fingerprint_that_changes_with_every_choice(tmp_path: Path, folder: Folder) -> None:
    write_clips(tmp_path / "b", 5, frames=4)
    other = open_folder(tmp_path / "b")
    how = Measurement(CHOICE, tmp_path / "cache", Silent())
    score = fvd(folder, other, Means(), how)
    assert score.fingerprint.sha256 == fvd(folder, other, Means(), how).fingerprint.sha256
    biased = fvd(folder, other, Means(), how, covariance="biased")
    assert score.fingerprint.differences(biased.fingerprint) == [
        "`covariance` is unbiased here, biased there"
    ]
    assert biased.value != score.value
    table = score.as_markdown()
    assert "| generated.measured | 5 |" in table and "| versions.torch |" in table


def test_features_that_are_not_finite_are_told_and_not_kept(tmp_path: Path, folder: Folder) -> None:
    class Infinite(Means):
        def features(self, prepared: Tensor) -> Tensor:
            return super().features(prepared) / 0

    with pytest.raises(WeightsError, match=r"means gives values that are not finite for `.*clip00"):
        run(folder, tmp_path, Infinite())
    assert not list(tmp_path.rglob("*.safetensors"))
    assert np.isfinite(all_rows(run(folder, tmp_path, Means()))).all()


def test_a_full_or_foreign_cache_is_said_with_its_path(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    store = FeatureStore(blocked, {})
    with pytest.raises(DiskError, match="cannot keep features: cannot write"):
        store.put([Entry("a" * 64, torch.zeros(1, 2), "16 x 16")])


def test_what_every_rank_finds_is_said_by_the_one_that_leads(tmp_path: Path) -> None:
    write_clips(tmp_path / "set", 3, frames=4)
    (tmp_path / "set" / "zz.mp4").write_bytes(b"no video")
    damaged = open_folder(tmp_path / "set")
    for shard, words in ((Follower(), []), (Shard(), ["left out", "left out", "3 samples for"])):
        heard = Heard()
        how = Measurement(CHOICE, tmp_path / "cache", heard, shard=shard, skip_unusable=True)
        assert fvd(damaged, damaged, Means(), how).value == pytest.approx(0, abs=1e-6)
        assert [text[: len(word)] for text, word in zip(heard.warnings, words, strict=True)] == words


def _rank(rank: int, root: str, cache: str, port: int, out: str) -> None:
    """One of two ranks, in a process of its own."""
    env = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MAV_CACHE": cache}
    os.environ.update(env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    with open(out, "w", encoding="utf-8") as file:
        sys.stdout = file
        code = app.run(["eval", "motion", root, "--frames", "4", "--batch", "3", "--json"])
        file.flush()
    os._exit(code)


def test_two_gloo_processes_give_the_score_of_one(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # torch is imported already
    outs = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    arguments = [(rank, str(folder.root), str(tmp_path / "two"), port, str(outs[rank])) for rank in (0, 1)]
    ranks = [fork.Process(target=_rank, args=given) for given in arguments]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "one"))
    capsys.readouterr()
    assert app.run(["eval", "motion", str(folder.root), "--frames", "4", "--batch", "3", "--json"]) == 0
    assert outs[1].read_text() == ""
    assert json.loads(outs[0].read_text()) == json.loads(capsys.readouterr().out)
    assert len(list((tmp_path / "two").rglob("*.safetensors"))) == 4
