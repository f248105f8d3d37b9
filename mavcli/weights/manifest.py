"""`weights/manifest.yaml`: the families of weights that this package knows, beside what is on the disk."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mavcli.errors import WeightsError
from mavcli.recipe.share import share_dir
from mavcli.recipe.yaml_tree import parse
from mavcli.specs import Spec
from mavcli.weights.provenance import common_name, weight_files


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


class Manifest(Spec):
    families: dict[str, Family]


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
        raise WeightsError(f"{path}: {where}: {fault['msg'].lower()}") from error


def family(name: str) -> Family:
    """A family by name. Raises WeightsError with the nearest name."""
    families = load_manifest().families
    if name in families:
        return families[name]
    near = difflib.get_close_matches(name, families, n=1)
    meant = f", did you mean `{near[0]}`" if near else ""
    raise WeightsError(f"there is no weight family `{name}`{meant}", hint="mav weights ls")


def on_disk(name: str) -> list[OnDisk]:
    """What of a family exists, one entry for each stage in the manifest's order."""
    folder = share_dir("weights") / name
    return [
        OnDisk(stage, folder / file, tuple(weight_files(folder / file)))
        for stage, file in family(name).files.items()
    ]


def unlisted() -> list[Path]:
    """Weights below `weights/` that no family lists, shards under their common name."""
    root = share_dir("weights")
    listed = {
        root / name / file
        for name, entry in load_manifest().families.items()
        for file in entry.files.values()
    }
    return sorted({common_name(file) for file in root.rglob("*.safetensors")} - listed)
