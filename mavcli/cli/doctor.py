"""`mav doctor`: whether this machine and this installation can do the work, each doubt with the line that settles it."""

from __future__ import annotations

import contextlib
import functools
import locale
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mavcli.cli.console import Console, cache_dir, is_terminal, paint, size
from mavcli.cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from mavcli.recipe.resolve import Machine

Status = Literal["ok", "warn", "fail"]

_FREE_FAIL, _FREE_WARN = 200e6, 2e9  # bytes: one run's files, and a day's
_COLOURS = {"ok": "32", "warn": "33", "fail": "1;31"}


@dataclass(frozen=True)
class Check:
    """What one check found; `fix` is the one thing to do about it."""

    name: str
    status: Status
    found: str
    fix: str = ""


def doctor(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Check this machine and this installation; each doubt comes with what to do about it.

    Ends with exit code 1 when something fails; warnings do not count. -q shows warnings and failures alone.
    """
    console = Console(json=json, quiet=quiet)
    done: list[Check] = []
    for check in run_checks():
        done.append(check)
        if not quiet or check.status != "ok":
            console.result(f"{_painted(check.status)}  {check.name:<12} {check.found}")
            if check.fix:
                console.result(f"{'':18}{check.fix}")
    failed = sum(check.status == "fail" for check in done)
    warned = sum(check.status == "warn" for check in done)
    console.message(
        "everything is in order" if not failed + warned else f"{failed} failed, {warned} in doubt"
    )
    console.result_object({"ok": not failed, "checks": [vars(check) for check in done]})
    if failed:
        raise typer.Exit(1)


def _painted(status: Status) -> str:
    # Colour follows stdout here, because the checks are this command's result.
    return paint(f"{status:<4}", _COLOURS[status]) if is_terminal(sys.stdout) else f"{status:<4}"


def run_checks() -> Iterator[Check]:
    """Every check, one after the other; a check that breaks is a failed check."""
    for name, check in CHECKS:
        try:
            yield check()
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            fix = "pip install --upgrade --upgrade-strategy eager mavcli"
            yield Check(name, "fail", f"{type(error).__name__}: {text}", fix)


def check_python() -> Check:
    version = platform.python_version()
    return Check("python", "ok", f"{version} on {platform.system()} {platform.machine()}, {sys.prefix}")


def check_libraries() -> Check:
    """What mav declares is there, at a version that it was tested with or a newer one; of an extra, what is installed."""
    doubts, fixes, needed = [], [], 0
    for requirement in _requirements():
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        version = _version(requirement.name)
        if optional and not version:
            continue
        needed += not optional
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            doubts.append(f"{requirement.name} {version or 'is missing'}, wanted {wanted or 'any'}")
            fixes.append((_declared(requirement.name), optional))
    if doubts:
        status: Status = "warn" if all(optional for _, optional in fixes) else "fail"
        fix = f"pip install --upgrade {' '.join(dict.fromkeys(name for name, _ in fixes))}"
        return Check("libraries", status, "; ".join(dict.fromkeys(doubts)), fix)
    return Check("libraries", "ok", f"{needed} are declared, none is older than what mav was tested with")


def check_torch() -> Check:
    """torch, and a torchvision built for the same torch: the classic broken pair."""
    import torch

    torchvision = _version("torchvision")
    found = f"torch {torch.__version__}, torchvision {torchvision or 'missing'}"
    broken = _fails("import torchvision")
    if broken:
        return Check(
            "torch", "fail", f"{found}: {broken}", "pip install --upgrade --force-reinstall torch torchvision"
        )
    return Check("torch", "ok", found)


def check_hardware() -> Check:
    from mavcli.recipe.resolve import resolve
    from mavcli.recipe.schema import Recipe

    machine = _machine()
    chosen = resolve(Recipe(name="doctor"), machine=machine)
    found = f"{chosen.backend}: {chosen.reasons['backend']}"
    if chosen.backend == "cpu" and shutil.which("nvidia-smi"):
        return Check(
            "device",
            "warn",
            found,
            "there is an NVIDIA driver: pip install a torch built for its CUDA version",
        )
    return Check("device", "ok", found)


def check_arithmetic() -> Check:
    """Multiplies in the type that `auto` picks, so that a wrong CPU flag shows here and not in a video."""
    import torch

    from mavcli.recipe.resolve import resolve
    from mavcli.recipe.schema import Recipe

    chosen = resolve(Recipe(name="doctor"), machine=_machine())
    dtype = torch.bfloat16 if chosen.dtype == "bfloat16" else torch.float32
    ones = torch.ones(64, 64, dtype=dtype, device=chosen.device)
    if float((ones @ ones).float().mean()) != 64.0:
        return Check(
            "arithmetic", "fail", f"{chosen.dtype} multiplies wrongly", "--set hardware.dtype=float32"
        )
    return Check("arithmetic", "ok", f"{chosen.dtype}: {chosen.reasons['dtype']}")


def check_kernels() -> Check:
    """The kernels that are compiled on the machine they run on; a CPU needs none."""
    from mavcli.models.normalisation import kernels_fault

    if not _machine().cuda:
        return Check("kernels", "ok", "none are needed without a GPU")
    if fault := kernels_fault():
        return Check(
            "kernels",
            "warn",
            f"normalisation takes PyTorch's own, which read and write more: {fault}",
            "apt install gcc python3-dev, which Triton builds with",
        )
    return Check("kernels", "ok", "Triton builds them on this machine")


def check_threads() -> Check:
    from mavcli.recipe.resolve import resolve
    from mavcli.recipe.schema import Recipe

    machine = _machine()
    chosen = resolve(Recipe(name="doctor"), machine=machine)
    memory = f", {size(machine.memory)} memory" if machine.memory else ""
    found = f"{chosen.threads}: {chosen.reasons['threads']}{memory}, {machine.cpu}"
    if chosen.threads > machine.cores:
        return Check("threads", "warn", found, f"export OMP_NUM_THREADS={machine.cores}")
    return Check("threads", "ok", found)


def check_networks() -> Check:
    """A normalisation and a convolution there and back, of frames that share their memory, against 64-bit numbers."""
    import torch
    from torch.nn import functional as F

    from mavcli.models.normalisation import GroupNorm
    from mavcli.recipe.resolve import resolve
    from mavcli.recipe.schema import Recipe

    device = resolve(Recipe(name="doctor"), machine=_machine()).device
    shown = torch.linspace(-1, 2, 8 * 6 * 6).reshape(1, 8, 6, 6)
    kernel = torch.linspace(-1, 1, 4 * 8 * 9).reshape(4, 8, 3, 3)
    norm = GroupNorm(2, 8)
    slopes = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        x = shown.to(where, dtype).requires_grad_()
        frames = x.expand(3, -1, -1, -1)
        weight, bias = norm.weight.to(where, dtype), norm.bias.to(where, dtype)
        if dtype == torch.float64:
            y = F.silu(F.group_norm(frames.contiguous(), 2, weight, bias, norm.eps))
        else:
            y = norm.to(where)(frames, activation="silu")
        z = F.conv2d(y, kernel.to(where, dtype))
        (slope,) = torch.autograd.grad(z.square().mean(), x)
        slopes.append(slope.double().cpu())
    right, found = slopes
    error = float((found - right).norm() / right.norm())
    if not error < 1e-2:  # a GPU's convolutions round to 10 bits
        fix = f"pip install --upgrade {_declared('torch')}"
        return Check("networks", "fail", f"slopes on {device} are wrong by {error:.0%}", fix)
    return Check("networks", "ok", f"normalisation and convolution on {device}, there and back")


def check_safetensors() -> Check:
    """Tensors through both writers, mav's own and the library's, and back through the library's reader."""
    import torch
    from safetensors.torch import load_file, save_file

    from mavcli.weights.provenance import write_plain

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    version = _version("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.safetensors", Path(folder) / "theirs.safetensors"
        write_plain(ours, tensors)
        save_file(tensors, theirs)
        for path in (ours, theirs):
            read = load_file(path)
            if any(not torch.equal(read[name], tensor) for name, tensor in tensors.items()):
                fix = f"pip install --force-reinstall {_declared('safetensors')}"
                return Check(
                    "safetensors", "fail", f"{version}: tensors come back changed from {path.name}", fix
                )
    return Check("safetensors", "ok", f"{version}: tensors written and read")


def check_pictures() -> Check:
    """A picture written and read in each of the formats that cameras, phones and pages use."""
    import io

    import numpy as np
    import pillow_heif
    from PIL import Image

    from mavcli.media.image import read_image, write_png

    versions = f"pillow {_version('pillow')}, pillow-heif {_version('pillow-heif')}"
    fix = f"pip install --force-reinstall {_declared('pillow')} {_declared('pillow-heif')}"
    shown = np.full((64, 64, 3), 40, np.uint8)
    shown[:, :32] = (200, 120, 60)
    files = {}
    for name in ("JPEG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(shown).save(file, name, quality=95)
        files[name] = file.getvalue()
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(shown)).save(file, quality=95)
    files["HEIC"] = file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        write_png(Path(folder) / "check.png", shown)
        files["PNG"] = (Path(folder) / "check.png").read_bytes()
    for name, data in files.items():
        seen = read_image(data)
        if seen.shape != shown.shape or np.abs(seen.astype(float) - shown).mean() > 10:
            return Check("pictures", "fail", f"{versions}: a {name} comes back another picture", fix)
    return Check("pictures", "ok", f"{versions}: {', '.join(files)} written and read")


def check_video() -> Check:
    """16 frames through the encoder and back: exact count, exact rate, colours near enough."""
    from fractions import Fraction

    import av
    import numpy as np

    from mavcli.media.video import read_clip, write_video

    versions = f"av {av.__version__}"
    shown = np.zeros((16, 64, 64, 3), np.uint8)
    for index in range(16):
        shown[index, :, : 4 * (index + 1)] = 200
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        write_video(path, shown, fps=Fraction(24))
        seen = read_clip(path)
    fix = f"pip install --force-reinstall {_declared('av')}"
    if len(seen.frames) != 16 or seen.rate != 24:
        return Check(
            "video",
            "fail",
            f"{versions}: wrote 16 frames at 24 fps, read {len(seen.frames)} at {seen.rate}",
            fix,
        )
    error = float(np.abs(seen.frames.astype(float) - shown).mean())
    if error > 10:
        return Check("video", "fail", f"{versions}: frames come back {error:.0f} of 255 away", fix)
    return Check("video", "ok", f"{versions}: 16 frames written and read")


def check_write() -> Check:
    """A file written and renamed in the cache, the working folder and the temporary folder."""
    for name, folder in _folders().items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".mav-", delete=False) as file:
                file.write(b"mav")
            renamed = Path(file.name).with_suffix(".done")
            os.replace(file.name, renamed)
            renamed.unlink()
        except OSError as error:
            fix = {"cache": "export MAV_CACHE=FOLDER", "temporary": "export TMPDIR=FOLDER"}.get(
                name, "write with -o FOLDER/"
            )
            return Check(
                "write", "fail" if name != "output" else "warn", f"{name} {folder}: {error.strerror}", fix
            )
    return Check("write", "ok", ", ".join(f"{name} {folder}" for name, folder in _folders().items()))


def check_disk() -> Check:
    free = {name: shutil.disk_usage(_existing(folder)).free for name, folder in _folders().items()}
    name = min(free, key=lambda key: free[key])
    found = f"{size(free[name])} free for {name} files"
    if free[name] < _FREE_WARN:
        fix = "free some space, or write elsewhere with -o"
        return Check("disk", "fail" if free[name] < _FREE_FAIL else "warn", found, fix)
    return Check("disk", "ok", found)


def check_work() -> Check:
    """What earlier runs left for later ones; bounded, and safe to delete."""
    from mavcli.engine.work import LIMIT, Work

    work = Work(cache_dir() / "work")
    found = f"{size(work.size())} of stage outputs kept in {work.folder}, at most {size(LIMIT)}"
    return Check("kept work", "ok", found)


def check_clip() -> Check:
    """In a process of its own: it imports torchvision, which may not even load."""
    version = _version("open_clip_torch")
    if broken := _fails("import open_clip"):
        fix = "pip install --upgrade --force-reinstall open_clip_torch torchvision"
        return Check("open_clip", "fail", f"{version or 'missing'}: {broken}", fix)
    return Check("open_clip", "ok", f"{version}")


def check_weights() -> Check:
    """The embedded default is whole, and its tensors are those that the headers describe."""
    from mavcli.errors import WeightsError
    from mavcli.weights.manifest import family, on_disk
    from mavcli.weights.provenance import StoredWeights

    stages = on_disk("pocket")
    missing = [entry.stage for entry in stages if not entry.present]
    if missing:
        fix = family("pocket").command(missing[0])
        return Check("weights", "warn", f"pocket lacks {', '.join(missing)}", fix)
    for entry in stages:
        fix = f"get {entry.path.name} again, with git or pip"
        try:
            StoredWeights(entry.path, again=True)
        except WeightsError as error:
            return Check("weights", "fail", error.message, error.hint or fix)
    return Check(
        "weights", "ok", f"pocket, {len(stages)} stages, {size(sum(e.bytes for e in stages))}, SHA-256 agree"
    )


def check_terminal() -> Check:
    encoding = (sys.stdout.encoding or "none").lower()
    columns = shutil.get_terminal_size().columns
    where = f"{columns} columns" if is_terminal(sys.stderr) else "no terminal, progress comes as plain lines"
    found = f"{encoding}, {locale.setlocale(locale.LC_CTYPE) or 'C'}, {where}"
    if encoding.replace("-", "") != "utf8":
        return Check("terminal", "warn", found, "export PYTHONUTF8=1")
    return Check("terminal", "ok", found)


CHECKS: tuple[tuple[str, Callable[[], Check]], ...] = (
    ("python", check_python),
    ("libraries", check_libraries),
    ("torch", check_torch),
    ("device", check_hardware),
    ("arithmetic", check_arithmetic),
    ("networks", check_networks),
    ("kernels", check_kernels),
    ("threads", check_threads),
    ("safetensors", check_safetensors),
    ("pictures", check_pictures),
    ("video", check_video),
    ("open_clip", check_clip),
    ("weights", check_weights),
    ("write", check_write),
    ("disk", check_disk),
    ("kept work", check_work),
    ("terminal", check_terminal),
)


@functools.cache
def _machine() -> Machine:
    from mavcli.recipe.resolve import probe_machine

    return probe_machine()


def _folders() -> dict[str, Path]:
    return {"cache": cache_dir(), "output": Path.cwd(), "temporary": Path(tempfile.gettempdir())}


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


@functools.cache
def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    return [Requirement(line) for line in metadata.requires("mavcli") or ()]


def _declared(package: str) -> str:
    """A package as pip is told of it: `'av<19,>=16'`."""
    return next((f"'{package}{each.specifier}'" for each in _requirements() if each.name == package), package)


def _fails(statement: str) -> str:
    """Why a statement fails in a fresh Python, in one line; empty when it works."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, text=True, errors="replace", timeout=120
        )
    except subprocess.TimeoutExpired:
        return f"`{statement}` does not end"
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""
