"""Pickled checkpoints: their tensors come back, what they would like to run does not run."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import random
import re
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mavcli.errors import WeightsError
from mavcli.weights import pickles
from mavcli.weights.pickles import read_pickle


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in a fork of this process, which has torch already: milliseconds instead of seconds."""

    def run(source: Path, folder: Path, seconds: float) -> int:
        child = os.fork()
        if child == 0:
            try:
                pickles._child(str(source), str(folder), seconds)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    monkeypatch.setattr(pickles, "_run_reader", run)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {f"model.block.{i}.weight": torch.randn(3, 4, generator=generator) for i in range(3)}
    return {**drawn, "half": torch.ones(2).half(), "count": torch.tensor(7)}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    alike = (torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in wanted.items())
    return found.keys() == wanted.keys() and all(alike)


def test_a_checkpoint_comes_back_from_a_process_of_its_own(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": weights()}, tmp_path / "decoder-ckpt-step=01.ckpt")
    found = read_pickle(tmp_path / "decoder-ckpt-step=01.ckpt")
    assert same(found, weights())
    found["half"].add_(1)  # what came back may be changed


@pytest.mark.parametrize(
    "saved",
    [
        lambda w: w,
        lambda w: OrderedDict(w),
        lambda w: {"state_dict": w, "hyper_parameters": {"lr": 1e-4}, "callbacks": [1, None]},
        lambda w: {"model": w, "optimizer": {}},
        lambda w: {"model": {"state_dict": w}, "step": 3},
        lambda w: {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in w.items()},
        lambda w: {**w, "half": torch.ones(5, 2).half()[3]},
    ],
    ids=["bare", "ordered", "state_dict", "model", "both", "parameters", "views"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.usefixtures("forked")
def test_every_usual_wrapping_gives_the_same_tensors(
    tmp_path: Path, saved: Callable[[dict[str, torch.Tensor]], object], zipped: bool
) -> None:
    torch.save(saved(weights()), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_pickle(tmp_path / "x.pt"), weights())


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        (lambda w, old: {"model": old, "ema": w, "step": 7}, "`ema` is taken, the moving average of the weights, not `model`"),
        (lambda w, old: {"state_dict": old, "state_dict_ema": {"module": w}}, "`state_dict_ema` is taken"),
        (lambda w, old: {"model_ema": w}, "`model_ema` is taken, the moving average of the weights"),
        (lambda w, old: {"model": w, "ema": {"decay": 0.999, "shadow_params": list(old.values())}}, "`model` is taken: `ema`"),
        (lambda w, old: {"model": w, "ema": list(old.values())}, "`model` is taken: `ema`"),
    ],
    ids=["model and ema", "wrapped", "alone", "a list in it", "a list"],
)  # fmt: skip
@pytest.mark.usefixtures("forked")
def test_of_weights_and_their_moving_average_the_average_is_taken_and_said(
    tmp_path: Path, saved: Callable[..., object], note: str
) -> None:
    old = {name: torch.zeros_like(value) for name, value in weights().items()}
    torch.save(saved(weights(), old), tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    assert same(found, weights())
    assert len(found.notes) == 1 and found.notes[0].startswith(note)


@pytest.mark.usefixtures("forked")
def test_a_pair_of_tensors_gets_numbers_for_names(tmp_path: Path) -> None:
    torch.save((torch.zeros(2), torch.ones(2)), tmp_path / "ViT-L-14_stats.th")
    assert same(read_pickle(tmp_path / "ViT-L-14_stats.th"), {"0": torch.zeros(2), "1": torch.ones(2)})


@pytest.mark.usefixtures("forked")
def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    torch.save({"a": whole, "b": whole, "c": whole[1:3]}, tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    found["a"].zero_()
    assert same(found, {"a": torch.zeros(4), "b": whole, "c": whole[1:3]})


@pytest.mark.usefixtures("forked")
def test_of_a_torchscript_archive_the_parameters_are_read_and_the_code_is_not(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    net = Net()
    torch.jit.script(net).save(str(tmp_path / "ViT-L-14.pt"))
    assert same(read_pickle(tmp_path / "ViT-L-14.pt"), dict(net.state_dict()))


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (torch.ones(2), "holds a Tensor, a map of tensors is wanted"),
        ({}, "holds no tensors"),
        ({"a": torch.ones(2), "step": 3}, "holds a int under `step`"),
        ({3: torch.ones(2)}, "under the name 3, which is no text"),
        ({"a": torch.eye(3).to_sparse()}, "holds `a` as a sparse"),
        ({"state_dict": {"a": {"b": torch.ones(1)}}}, "holds a dict under `a`"),
        ({"a": torch.zeros(1).expand(2**40)}, "`a` would be larger than the whole file"),
        ({"../../a": torch.zeros(1)}, "unusable name"),
    ],
    ids=["tensor", "nothing", "number", "number as a name", "sparse", "nested", "stretched", "path"],
)
@pytest.mark.usefixtures("forked")
def test_what_is_no_map_of_tensors_is_refused(tmp_path: Path, saved: object, told: str) -> None:
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=re.escape(told)) as caught:
        read_pickle(tmp_path / "x.pt")
    assert "\n" not in caught.value.message


# Every payload wants to make this file.


def _system(marker: Path) -> bytes:
    return f"touch {marker}".encode()


def _reduce(marker: Path) -> bytes:
    return b"cposix\nsystem\n(V" + _system(marker) + b"\ntR."


def _reduce_below(marker: Path) -> bytes:
    return b"}(Va\ncposix\nsystem\n(V" + _system(marker) + b"\ntRVb\nK\x01u."


def _inst(marker: Path) -> bytes:
    return b"(V" + _system(marker) + b"\niposix\nsystem\n."


def _obj(marker: Path) -> bytes:
    return b"(cposix\nsystem\nV" + _system(marker) + b"\no."


def _stack_global(marker: Path) -> bytes:
    text = _system(marker)
    return b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(text)]) + text + b"\x85R."


def _build(marker: Path) -> bytes:
    # BUILD sets attributes: an exception class whose `__setstate__` is the function that gets the state
    return b"cposix\nsystem\n(V" + _system(marker) + b"\ntRcbuiltins\ndict\n)R}Vx\nK\x01sb."


def _popen(marker: Path) -> bytes:
    return b"csubprocess\nPopen\n((Vtouch\nV" + str(marker).encode() + b"\nltR."


def _getattr(marker: Path) -> bytes:
    return b"cbuiltins\ngetattr\n(cos\n__dict__\nVget\ntR(Vsystem\ntR(V" + _system(marker) + b"\ntR."


def _eval(marker: Path) -> bytes:
    code = f"__import__('os').system('touch {marker}')".encode()
    return b"c__builtin__\neval\n(V" + code + b"\ntR."


def _extension(marker: Path) -> bytes:
    return b"\x82\xf1(V" + _system(marker) + b"\ntR."


@pytest.fixture
def registered() -> Iterator[None]:
    copyreg.add_extension("posix", "system", 0xF1)
    yield
    copyreg.remove_extension("posix", "system", 0xF1)


RAW = {
    "reduce": _reduce, "reduce below a map": _reduce_below, "inst": _inst, "obj": _obj, "stack_global": _stack_global,
    "build": _build, "popen": _popen, "getattr": _getattr, "eval": _eval, "extension": _extension,
}  # fmt: skip


def archive(pickled: bytes, *, name: str = "data.pkl", compress: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compress) as file:
        file.writestr(f"archive/{name}", pickled)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
    return stream.getvalue()


def legacy(pickled: bytes) -> bytes:
    magic = (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": True}, 2)
    )
    return magic + pickled + pickle.dumps([], 2)


def tar(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            file.addfile(info, io.BytesIO(pickled))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return stream.getvalue()


def torchscript(pickled: bytes) -> bytes:
    stream = io.BytesIO(archive(pickled))
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("archive/constants.pkl", pickled)
        file.writestr("archive/code/__torch__.py", "import os")
    return stream.getvalue()


def attempt(path: Path, marker: Path) -> WeightsError:
    started = time.process_time()
    with pytest.raises(WeightsError) as caught:
        read_pickle(path)
    assert not marker.exists() and caught.value.exit_code == 3 and "\n" not in caught.value.message
    assert str(path) in caught.value.message and "weights_only=False" not in caught.value.message
    assert time.process_time() - started < 1
    return caught.value


@pytest.mark.parametrize("payload", RAW.values(), ids=RAW)
@pytest.mark.usefixtures("forked", "registered")
def test_no_payload_runs(tmp_path: Path, payload: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "zipped.pt").write_bytes(archive(payload(marker)))
    (tmp_path / "legacy.ckpt").write_bytes(legacy(payload(marker)))
    (tmp_path / "plain.bin").write_bytes(payload(marker))
    for name in ("zipped.pt", "legacy.ckpt", "plain.bin"):
        assert (
            "which no weights need: it was not run" in attempt(tmp_path / name, marker).message
            or name == "plain.bin"
        )
    # The payload is worth its name: an ordinary unpickler runs it.
    (child := os.fork()) or _unpickle(payload(marker))
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marker.exists()


def _unpickle(payload: bytes) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        pickle.loads(payload)
    finally:
        os._exit(0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda m: tar(_reduce(m)), "tar format"),
        (lambda m: torchscript(_reduce(m)), "it wants `posix.system`"),
        (lambda m: archive(archive(_reduce(m)), name="data.pkl"), "is no checkpoint"),
        (lambda m: archive(_reduce(m), compress=zipfile.ZIP_DEFLATED), "in it is compressed"),
        (lambda m: archive(bytes(20_000_000), compress=zipfile.ZIP_DEFLATED), "in it is compressed"),
        (lambda m: archive(_reduce(m))[:-40], ""),
        (lambda m: b"", "is empty"),
        (lambda m: b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (lambda m: b"\x80\x02" + b"(" * 100_000, "cannot be read"),
        (lambda m: random.Random(4).randbytes(5000), ""),
    ],
    ids=["tar", "torchscript", "nested zip", "deflated", "bomb", "cut", "empty", "lfs", "marks", "noise"],
)
@pytest.mark.usefixtures("forked")
def test_no_disguise_helps(tmp_path: Path, content: Callable[[Path], bytes], told: str) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "x.pt").write_bytes(content(marker))
    assert told in attempt(tmp_path / "x.pt", marker).message


def test_a_payload_behind_a_link_does_not_run_in_the_real_reader_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "ran"
    (tmp_path / "blob").write_bytes(archive(_reduce(marker)))
    (tmp_path / "pytorch_model.bin").symlink_to("blob")
    error = attempt(tmp_path / "pytorch_model.bin", marker)
    assert "wants to call `posix.system`" in error.message


@pytest.mark.parametrize("name", ["x.pkl", "x.npy", ".metadata", "x.py", "x.joblib", "x"])
def test_other_kinds_of_pickle_are_refused_by_name(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    (tmp_path / name).write_bytes(_reduce(marker))
    assert "no checkpoint that can be read" in attempt(tmp_path / name, marker).message


def test_a_pipe_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "folder.pt"):
        assert "is no file" in attempt(tmp_path / name, tmp_path / "ran").message
    assert "does not exist" in attempt(tmp_path / "nothing.pt", tmp_path / "ran").message


def test_a_reader_that_dies_is_told_as_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    monkeypatch.setattr(pickles, "_run_reader", lambda source, folder, seconds: -9)
    assert "died (signal 9)" in attempt(tmp_path / "x.pt", tmp_path / "ran").message


@pytest.mark.usefixtures("forked")
def test_a_checkpoint_that_claims_more_memory_than_it_can_fill_is_stopped(tmp_path: Path) -> None:
    class Liar(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 2**38, None) if obj == "here" else None

    class Tensor:
        def __reduce__(self) -> object:
            return torch._utils._rebuild_tensor_v2, ("here", 0, (2**38,), (1,), False, OrderedDict())

    stream = io.BytesIO()
    Liar(stream, 2).dump({"a": Tensor()})
    (tmp_path / "legacy.ckpt").write_bytes(legacy(stream.getvalue()))
    error = attempt(tmp_path / "legacy.ckpt", tmp_path / "ran")
    assert "takes more memory than its size explains" in error.message


@pytest.mark.usefixtures("forked")
def test_a_pickle_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tuples of tuples of ..., each twice the same: a few bytes each, and to hash the last takes 2^60 steps.
    doubled = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    (tmp_path / "x.pt").write_bytes(archive(b"\x80\x02K\x01q\x00" + doubled + b"}h\x3cK\x01s."))
    forked_reader = pickles._run_reader
    monkeypatch.setattr(pickles, "_run_reader", lambda s, f, seconds: forked_reader(s, f, 0))
    assert "the process that reads it died (signal" in attempt(tmp_path / "x.pt", tmp_path / "ran").message
