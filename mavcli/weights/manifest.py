"""`weights/manifest.yaml`: the weights that this package knows, beside what is on the disk.

A family is made of our own files and serves a recipe as it is. Published weights are other people's checkpoints: they
are pulled, then imported into a family.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mavcli.errors import WeightsError
from mavcli.files import finished_files
from mavcli.recipe.share import data_dir, share_dir
from mavcli.recipe.yaml_tree import parse
from mavcli.specs import ClipSpec, PriorSpec, Spec, UNetSpec
from mavcli.weights.provenance import common_name, spec_class, weight_files

_PATH = re.compile(r"[\w.=\-]+(/[\w.=\-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Family(Spec):
    """Weights that belong together. `get` is the command that makes or fetches one stage, with `STAGE` for its name."""

    title: str
    licence: str
    source: str
    notice: str = ""
    get: str
    files: dict[str, str]

    def command(self, stage: str) -> str:
        """The command that gets the weights of `stage`."""
        return self.get.replace("STAGE", stage)


class RemoteFile(Spec):
    """One file of published weights: `path` is its place in the folder (and in the hub's repository).

    `size` is in bytes as far as it is published, rounded or not at all; `sha256` is null where the publisher states none
    (the hub then has its own).
    """

    path: str
    stage: str
    url: str = ""
    size: int | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not _PATH.fullmatch(self.path) or ".." in self.path:
            raise ValueError(f"`{self.path}` is no path within a folder")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"`{self.sha256}` is no SHA-256")
        if self.url and not self.url.startswith("https://"):
            raise ValueError(f"`{self.url}` is not https")
        return self


class Network(Spec):
    """One network of published weights: the stage that it serves, its size, and what it is."""

    stage: str
    parameters: int = Field(ge=1)
    spec: ClipSpec | PriorSpec | UNetSpec

    @field_validator("spec", mode="before")
    @classmethod
    def _spec_by_stage(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            return spec_class(info.data.get("stage", "")).model_validate_json(json.dumps(value))
        return value


class Published(Spec):
    """Somebody else's weights. `hub` is a repository of the Hugging Face hub; without it each file has an address."""

    title: str
    licence: str
    source: str
    notice: str = ""
    importer: str = Field(description="how `mav weights import` reads them")
    hub: str | None = None
    revision: str = Field("main", description="commit of the hub's repository")
    files: tuple[RemoteFile, ...]
    networks: tuple[Network, ...] = ()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.hub is None and (lost := [file.path for file in self.files if not file.url]):
            raise ValueError(f"`{lost[0]}` has neither a hub nor a url")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that these weights can serve."""
        return tuple(dict.fromkeys(file.stage for file in self.files))

    @property
    def size(self) -> int:
        """Bytes of the files that state theirs, 0 where none does."""
        return sum(file.size or 0 for file in self.files)


class Manifest(Spec):
    families: dict[str, Family]
    published: dict[str, Published] = Field(default_factory=dict)


@dataclass(frozen=True)
class OnDisk:
    """One stage's weights: the common name of its files, and those of them that exist."""

    stage: str
    path: Path
    files: tuple[Path, ...]

    @property
    def present(self) -> bool:
        return bool(self.files)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def load_manifest(path: Path | None = None) -> Manifest:
    """The manifest of this installation, or the one in `path`. Raises WeightsError where it does not hold together."""
    path = path or share_dir("weights") / "manifest.yaml"
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if tree.faults:
        raise WeightsError("\n".join(map(str, tree.faults)))
    try:
        return Manifest.model_validate_json(json.dumps(tree.value))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        raise WeightsError(f"{path}: {where}: {what[:1].lower()}{what[1:]}") from error


def family(name: str) -> Family:
    """A family by name. Raises WeightsError with the nearest name."""
    families = load_manifest().families
    if name in families:
        return families[name]
    near = difflib.get_close_matches(name, families, n=1)
    meant = f", did you mean `{near[0]}`" if near else ""
    raise WeightsError(f"there is no weight family `{name}`{meant}", hint="mav weights ls")


def published(name: str) -> Published:
    """Published weights by name. Raises WeightsError with the nearest name."""
    known = load_manifest()
    if name in known.published:
        return known.published[name]
    if name in known.families:
        entry = known.families[name]
        raise WeightsError(f"the family `{name}` is not published elsewhere", hint=entry.get)
    near = difflib.get_close_matches(name, known.published, n=1)
    meant = f", did you mean `{near[0]}`" if near else ""
    raise WeightsError(f"there are no published weights `{name}`{meant}", hint="mav weights ls")


def on_disk(name: str) -> list[OnDisk]:
    """What of a family exists, one entry for each stage in the manifest's order."""
    folder = family_folder(name)
    return [
        OnDisk(stage, folder / file, tuple(weight_files(folder / file)))
        for stage, file in family(name).files.items()
    ]


def weight_roots() -> tuple[Path, ...]:
    """The folders whose folders are families: the installation's, then the user's own."""
    return (share_dir("weights"), data_dir() / "weights")


def family_folder(name: str) -> Path:
    """The folder of the family `name`, of the installation before the user's own; the latter where there is none yet."""
    places = [root / name for root in weight_roots()]
    return next(
        (place for place in places if place.is_dir()),
        places[0] if name in load_manifest().families else places[1],
    )


def own_families() -> dict[str, list[Path]]:
    """The user's own families: name -> weights, shards under their common name."""
    root = weight_roots()[-1]
    if not root.is_dir():
        return {}
    found = {
        folder.name: sorted({common_name(file) for file in finished_files(folder, "*.safetensors")})
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    return {name: files for name, files in found.items() if files}


def unlisted() -> list[Path]:
    """Weights that belong to no family, shards under their common name."""
    listed = {
        family_folder(name) / file
        for name, entry in load_manifest().families.items()
        for file in entry.files.values()
    }
    listed |= {file for files in own_families().values() for file in files}
    found = {
        common_name(file)
        for root in weight_roots()
        for file in finished_files(root, "*.safetensors", nested=True)
    }
    return sorted(found - listed)
