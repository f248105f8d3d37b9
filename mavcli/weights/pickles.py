"""Checkpoints of other codes (`.pt`, `.ckpt`, `.bin`), read without running what they carry.

A pickle is a program. It is read by torch's restricted unpickler (`weights_only=True`) in a process of its own, with
limits on memory and time; what comes back is plain safetensors and never a pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickletools
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavcli.errors import DiskError, WeightsError
from mavcli.weights.safety import check_name
from mavcli.weights.torchscript import is_torchscript, read_torchscript

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".th")
_WRAPPERS = ("state_dict", "model", "module")  # in the order in which they are looked for
AVERAGED = (
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema_state_dict",
    "params_ema",
)
"""What codes call the moving average of the weights that they save beside them: what is meant to be used."""
_SLACK = 1 << 30  # bytes that the reader may take beside the tensors, over what torch itself takes
_HANDED_OVER = 128_000_000  # bytes a file, so that the reader never holds everything twice
_VERDICT = "verdict.json"
_GLOBAL = re.compile(r"(?:GLOBAL|Unsupported global: GLOBAL) ([\w.]+)")
_CHILD = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from mavcli.weights.pickles import _child\n"
    "_child(sys.argv[2], sys.argv[3], float(sys.argv[4]))\n"
)


class Unpickled(dict[str, "Tensor"]):
    """Name -> tensor, and `notes` on what was chosen to get there."""

    notes: tuple[str, ...] = ()


def read_pickle(path: Path) -> Unpickled:
    """The tensors of a pickled checkpoint, on the CPU and in the type they are stored in; no code of the file runs.

    A map that holds `state_dict` (or else `model`, `module`) stands for the map under that key, again and again; of weights
    and their moving average (`AVERAGED`) the average is taken, and `notes` says so. A list or tuple of tensors is a map with
    the names `0`, `1`, ... What is left must be tensors alone. Tensors that shared memory come
    back apart; the result is mapped from files that are already deleted, so it costs no memory until it is read.

    Of a TorchScript archive the parameters are read, its code is not (`torchscript.py`). Raises WeightsError when the file is
    missing, damaged, no checkpoint, wants to run something, or takes more memory or time than its size explains; DiskError
    when there is no room for the hand-over.
    """
    path = Path(path)
    size = _check_file(path)
    # Of the processor; on a crowded machine or a slow network disk the clock may run ten times as long.
    seconds = 60 + size / 50e6
    with tempfile.TemporaryDirectory(prefix="mav-read-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 1.1 * size:
            raise DiskError(
                f"reading {path} needs {size * 1.1 / 1e9:.2f} GB in {folder.parent}, {free / 1e9:.2f} GB are free",
                hint="TMPDIR=/a/larger/disk mav ...",
            )
        try:
            code = _run_reader(path.resolve(), folder, seconds)
        except subprocess.TimeoutExpired as error:
            raise WeightsError(
                f"reading {path} took more than {10 * seconds:.0f} s, it was stopped"
            ) from error
        verdict, notes = _verdict(folder)
        if verdict is None:
            raise WeightsError(
                f"{path} cannot be read: the process that reads it died ({_ending(code)})",
                hint="the file is damaged or hostile, get it again from its publisher",
            )
        if verdict:
            raise WeightsError(
                f"{path} {verdict}", hint="get the file from its publisher, or ask there for safetensors"
            )
        tensors = _taken_over(folder, path)
        tensors.notes = notes
        return tensors


def is_pickle(path: Path | str) -> bool:
    """Whether the name is that of a pickled checkpoint."""
    return Path(path).suffix.lower() in SUFFIXES


def _check_file(path: Path) -> int:
    """Refuse by name and kind before any process is started; returns the size in bytes."""
    if not is_pickle(path):
        raise WeightsError(
            f"{path} is no checkpoint that can be read, `{'`, `'.join(SUFFIXES)}` and `.safetensors` are"
        )
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    # A pipe or a device would be read for ever.
    if not path.is_file():
        raise WeightsError(f"{path} is no file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if size == 0:
        raise WeightsError(f"{path} is empty", hint="get the file again")
    if head.startswith(b"version "):
        raise WeightsError(
            f"{path} is a pointer of Git LFS, not the file itself", hint="git lfs pull, or download the file"
        )
    return size


def _run_reader(source: Path, folder: Path, seconds: float) -> int:
    """Run `_child` in a Python of its own, return its exit code."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(source), str(folder), str(seconds)]
    # What the file might make the reader print is not for the user's terminal.
    done = subprocess.run(
        command, timeout=10 * seconds, env=_environment(), capture_output=True, stdin=subprocess.DEVNULL
    )
    return done.returncode


def _environment() -> dict[str, str]:
    # Nothing of the user's may loosen the reader, and no device takes part.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _verdict(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """What the reader found wrong, empty for nothing, None when it did not live to say it; and what it chose."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / _VERDICT).read_text(encoding="utf-8")[:100_000])
        return str(found["fault"]), tuple(str(note)[:300] for note in found["notes"][:20])
    return None, ()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _taken_over(folder: Path, path: Path) -> Unpickled:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors = Unpickled()
    try:
        for file in sorted(folder.glob("*.safetensors")):
            tensors.update(load_file(file))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    for name in tensors:
        check_name(name, path)
    return tensors


# What follows runs in the reader's process.


def _child(source: str, folder: str, seconds: float) -> None:
    """Read `source`, leave safetensors and a verdict in `folder`."""
    import torch  # before the limits, which are counted from here

    size = Path(source).stat().st_size
    _limit(3 * size + _SLACK, seconds)
    torch.set_num_threads(1)
    notes: list[str] = []
    try:
        notes = _hand_over(Path(source), Path(folder))
        fault = ""
    except _Refused as error:
        fault = str(error)
    except MemoryError:
        fault = "takes more memory than its size explains, it was stopped"
    (Path(folder) / _VERDICT).write_text(json.dumps({"fault": fault, "notes": notes}), encoding="utf-8")


class _Refused(Exception):
    """Why the file is not taken, as the end of a sentence that begins with its name."""


def _limit(memory: int, seconds: float) -> None:
    # No `resource` on Windows, no RLIMIT_AS on macOS: there the restricted unpickler and the parent's clock must do.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _hand_over(source: Path, folder: Path) -> list[str]:
    """Write the tensors of `source` into `folder` as safetensors; returns notes. Raises _Refused, which says why not."""
    import torch
    from safetensors.torch import save_file

    tensors, notes = _tensors(_loaded(source))
    largest = source.stat().st_size
    batch: dict[str, torch.Tensor] = {}
    filled = written = 0
    for name in list(tensors):
        tensor = tensors.pop(name)
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > largest:
            raise _Refused(f"is damaged: `{name}` would be larger than the whole file")
        if batch and filled + nbytes > _HANDED_OVER:
            save_file(batch, folder / f"{written:05d}.safetensors")
            batch, filled, written = {}, 0, written + 1
        # `clone` unties tensors that share memory, which the format refuses.
        batch[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        filled += nbytes
    save_file(batch, folder / f"{written:05d}.safetensors")
    return notes


def _loaded(source: Path) -> Any:
    import torch

    if is_torchscript(source):
        try:
            return read_torchscript(source)
        except WeightsError as error:
            raise _Refused(error.message.removeprefix(f"{source} ")) from error
    archive = zipfile.is_zipfile(source)
    if archive:
        _check_archive(source)
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=archive)
    except MemoryError:
        raise
    except Exception as error:  # torch and zip raise whatever the bytes lead them to
        raise _Refused(_why(error)) from error


def _check_archive(source: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise _Refused(f"is damaged: {_line(error)}") from error
    # torch never compresses; a bomb does.
    squeezed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if squeezed is not None:
        raise _Refused(f"is no checkpoint that torch wrote: `{squeezed}` in it is compressed")


def _why(error: Exception) -> str:
    text = str(error)
    if found := _GLOBAL.search(text):
        return f"wants to call `{found[1]}`, which no weights need: it was not run"
    if found := re.search(r"whose module (\S+) is blocked", text):
        return f"wants to call something of `{found[1]}`, which no weights need: it was not run"
    if found := re.search(r"Unsupported operand (\d+)", text):
        known = next((op for op in pickletools.opcodes if ord(op.code) == int(found[1])), None)
        what = f"the instruction `{known.name}`" if known else f"byte {found[1]}"
        return f"is no checkpoint: its pickle holds {what}, which no weights need: it was not run"
    if "legacy .tar" in text:
        return "is a checkpoint in the tar format of torch before 2016, which cannot be read safely"
    if isinstance(error, RuntimeError) and "allocate memory" in text:
        return "takes more memory than its size explains, it was stopped"
    return f"cannot be read: {_line(error)}"


def _line(error: BaseException) -> str:
    """The last line that says something, without torch's advice to switch the safety off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "weights_only" not in line and "pytorch.org" not in line]
    return (told[-1] if told else type(error).__name__)[:300]


def _tensors(found: Any) -> tuple[dict[str, Any], list[str]]:
    """The map of tensors in what torch loaded, by the rule of `read_pickle`, and what was chosen on the way."""
    import torch

    notes: list[str] = []
    for _ in range(8):
        if not isinstance(found, Mapping):
            break
        averaged = next(
            (name for name in AVERAGED if isinstance(found.get(name), Mapping | list | tuple)), None
        )
        plain = next((name for name in _WRAPPERS if name in found), None)
        if averaged is not None and _is_named(found[averaged]):
            beside = f", not `{plain}`" if plain is not None else ""
            notes.append(f"`{averaged}` is taken, the moving average of the weights{beside}")
            found = found[averaged]
            continue
        if averaged is not None and plain is not None:
            notes.append(
                f"`{plain}` is taken: `{averaged}`, the moving average of the weights, has no names of tensors"
            )
        if plain is None or isinstance(found[plain], torch.Tensor):
            break
        found = found[plain]
    if isinstance(found, list | tuple):
        found = {str(place): value for place, value in enumerate(found)}
    if not isinstance(found, Mapping):
        raise _Refused(f"holds a {type(found).__name__}, a map of tensors is wanted")
    if not found:
        raise _Refused("holds no tensors")
    for name, value in found.items():
        if not isinstance(name, str):
            raise _Refused(f"has a tensor under the name {name!r}, which is no text")
        if not isinstance(value, torch.Tensor):
            raise _Refused(f"holds a {type(value).__name__} under `{name}`, a tensor is wanted")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise _Refused(f"holds `{name}` as a sparse, quantised or empty tensor, a plain one is wanted")
    return dict(found), notes


def _is_named(average: Any) -> bool:
    """Whether a moving average names its tensors; some codes keep a bare list of them in the order of the parameters."""
    import torch

    if not isinstance(average, Mapping):
        return False
    inner = next((average[name] for name in _WRAPPERS if isinstance(average.get(name), Mapping)), average)
    tensors = [name for name, value in inner.items() if isinstance(value, torch.Tensor)]
    return bool(tensors) and len(tensors) == len(inner)
