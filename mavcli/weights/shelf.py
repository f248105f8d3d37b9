"""The user's own shelf of weights: what is added to it, taken from it, and whether it is still what it says.

`mav weights add` puts files of our own format into a family under the user's data folder, where a recipe finds them by
name (`weights.dir: NAME`) just as it finds the families of the installation.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mavcli.errors import DiskError, UsageError, WeightsError
from mavcli.files import copy_file, finished_files, make_folder, remove, together
from mavcli.recipe.schema import STAGES
from mavcli.weights.manifest import load_manifest, weight_roots
from mavcli.weights.provenance import (
    StoredWeights,
    common_name,
    read_header,
    read_index,
    weight_files,
)
from mavcli.weights.safety import check_fit

if TYPE_CHECKING:
    from torch import Tensor

_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")

SERVES: dict[str, tuple[str, ...]] = {
    "clip": ("clip",),
    "prior": ("prior",),
    "decoder": ("decoder",),
    "decoder_t": ("decoder_t", "decoder"),
    "interp": ("interp", "decoder_t", "decoder"),
    "sr_l": ("sr_l",),
    "sr_lt": ("sr_lt", "sr_l"),
    "sr_h": ("sr_h",),
}
"""Role -> the stages that such weights serve (those of judges serve none): ↑F that is told nothing is D^t, and of one frame any is its image network."""


def check_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Whether `path` is whole: its header, its tensors' names, shapes and kinds (those of `state`), values, SHA-256.

    Raises WeightsError with the first fault.
    """
    check_fit(read_index(path), state, path)
    StoredWeights(path, again=True)


def find_weights(source: Path, *, role: str | None = None) -> Path:
    """The weights that `source` means: a file, the common name of shards, or the only ones of `role` in a folder."""
    if source.is_file():
        return common_name(source)
    if weight_files(source):
        return source
    if not source.is_dir():
        raise WeightsError(f"{source} does not exist")
    found = sorted({common_name(file) for file in finished_files(source, "*.safetensors")})
    roles = {path: read_header(path).role for path in found}
    fitting = [path for path in found if role in (None, roles[path])]
    # without weights of the stage itself, those that serve it too
    fitting = fitting or [path for path in found if role in SERVES.get(roles[path], ())]
    if len(fitting) == 1:
        return fitting[0]
    what = f"weights of `{role}`" if role else "weights"
    if not fitting:
        raise WeightsError(f"the folder {source} holds no {what}")
    names = ", ".join(path.name for path in fitting)
    raise WeightsError(
        f"the folder {source} holds {what} {len(fitting)} times: {names}", hint="name one of them"
    )


def add_weights(source: Path, *, role: str, family: str, force: bool = False) -> list[Path]:
    """Copy weights of our own format onto the shelf as `FAMILY/ROLE.safetensors`; returns the files.

    They appear whole or not at all. Raises UsageError for a role or name that cannot be, WeightsError where the header says
    another role, DiskError where they exist and `force` is not given or there is no room.
    """
    if role not in STAGES:
        raise UsageError(f"there is no stage `{role}`", hint=f"the stages are {', '.join(STAGES)}")
    if not _FAMILY.fullmatch(family) or ".." in family:
        raise UsageError(
            f"`{family}` is no name for a family", hint="--family takes letters, digits, `.`, `-` and `_`"
        )
    if family in load_manifest().families:
        raise UsageError(
            f"the family `{family}` belongs to this installation", hint="--family takes another name"
        )
    header = read_header(source)
    serving = SERVES.get(header.role, ())
    if role not in serving:
        serves = ", ".join(f"`{stage}`" for stage in serving) or "no stage"
        raise WeightsError(f"{source} holds `{header.role}` weights, which serve {serves} and not `{role}`")
    folder = weight_roots()[-1] / family
    target = folder / f"{role}.safetensors"
    old = weight_files(target)
    if old and not force:
        raise DiskError(f"{target} exists", hint="--force overwrites it")
    files = weight_files(source)
    names = [folder / file.name.replace(source.stem, role, 1) for file in files]
    need, free = sum(file.stat().st_size for file in files), shutil.disk_usage(_existing(folder)).free
    if need > free:
        raise DiskError(f"{source} takes {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}")
    make_folder(folder)
    with together():
        for file, name in zip(files, names, strict=True):
            copy_file(file, name, overwrite=force)
        for file in old:
            if file not in names:
                remove(file)
    return names


def shelved(what: str) -> list[Path]:
    """The files of `FAMILY` or `FAMILY/STAGE` on the user's shelf; empty where there is none such."""
    name, _, stage = what.partition("/")
    folder = weight_roots()[-1] / name
    if not _FAMILY.fullmatch(name) or ".." in name or not folder.is_dir():
        return []
    files = finished_files(folder, "*.safetensors")
    return [file for file in files if not stage or common_name(file).stem == stage]


def take_away(files: list[Path]) -> None:
    """Delete files, and the folders that become empty. Raises DiskError where that is not allowed."""
    try:
        for file in files:
            file.unlink()
        for folder in {file.parent for file in files}:
            with contextlib.suppress(OSError):
                folder.rmdir()
    except OSError as error:
        raise DiskError(
            f"cannot delete {error.filename}: {(error.strerror or str(error)).lower()}"
        ) from error


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
