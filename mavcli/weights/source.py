"""What an importer reads, and what it makes of it: a published checkpoint as lazy tensors, and the plan for one network.

Nothing is read but names and shapes until a tensor is asked for, so a checkpoint larger than the memory can be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavcli.errors import UsageError, WeightsError
from mavcli.files import file_sha256, stamp_of
from mavcli.recipe.yaml_tree import parse
from mavcli.specs import ClipSpec, PriorSpec, SamplerSpec, ScheduleSpec, UNetSpec
from mavcli.weights.keymap import KeyTable
from mavcli.weights.pickles import AVERAGED, SUFFIXES, is_pickle, read_pickle
from mavcli.weights.provenance import StoredTensors, common_name, read_index, weight_files
from mavcli.weights.reading import changed

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTS = (*SUFFIXES, ".safetensors")


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of one or more files, each read when it is asked for; `shapes` and `files` cost nothing.

    Pickles are read whole, in a process of their own (`read_pickle`). What wrapped the network while it was trained is taken
    off its names (`module.` of DDP, `_orig_mod.` of torch.compile), and of weights and their moving average the average is
    taken: `notes` says so, for people. Raises WeightsError where a file is missing or
    damaged, or two files share a name.
    """

    def __init__(self, *paths: Path) -> None:
        self.files: tuple[Path, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[Mapping[str, Tensor], str]] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """One more file of the same network, or its shards."""
        stamps = {file: stamp_of(file) for file in weight_files(path)}  # before anything is read
        if is_pickle(path):
            tensors: Mapping[str, Tensor] = (unpickled := read_pickle(path))
            self.notes += tuple(f"{path.name}: {note}" for note in unpickled.notes)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        else:
            tensors = StoredTensors(path)
            shapes = {name: info.shape for name, info in read_index(path).items()}
        names, notes = unwrapped_names(shapes, path)
        self.notes += tuple(f"{path.name}: {note}" for note in notes)
        twice = sorted(names.keys() & self.shapes.keys())
        if twice:
            raise WeightsError(f"{path} repeats the tensor `{twice[0]}` of {self.files[0]}")
        self.files += tuple(stamps)
        self._stamps |= stamps
        self.shapes.update({name: shapes[stored] for name, stored in names.items()})
        self._where.update({name: (tensors, stored) for name, stored in names.items()})

    def sha256(self, file: Path) -> str:
        """Of the bytes of one of `files`. Raises WeightsError where it is not the file any more that the tensors come from."""
        digest = file_sha256(file)
        if stamp_of(file) != self._stamps[file]:
            raise changed(file)
        return digest

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names (old -> new): a list of tensors has only numbers."""
        for old, new in names.items():
            self.shapes[new] = self.shapes.pop(old)
            self._where[new] = self._where.pop(old)

    def __getitem__(self, name: str) -> Tensor:
        tensors, stored = self._where[name]
        return tensors[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def unwrapped_names(stored: Iterable[str], path: Path) -> tuple[dict[str, str], list[str]]:
    """The network's own names -> those that its tensors are stored under, and what was chosen, for people.

    `_orig_mod.` is torch.compile's wherever it stands; `module.` is DDP's or an average's where every name begins with it.
    Of `ema.X` beside `model.X`, or beside X, the first is taken. Raises WeightsError where two names become one.
    """
    names = {name: name for name in stored}
    notes = []

    def renamed(new: Callable[[str], str], what: str) -> None:
        changed = {new(name): place for name, place in names.items()}
        if len(changed) < len(names):
            raise WeightsError(f"{path} holds two tensors of one name once {what} is taken off")
        names.clear()
        names.update(changed)
        notes.append(f"{what} is taken off the names")

    if any("_orig_mod" in name.split(".") for name in names):
        renamed(
            lambda name: ".".join(p for p in name.split(".") if p != "_orig_mod"),
            "`_orig_mod.` (torch.compile)",
        )
    while len(names) > 1 and all(name.startswith("module.") or name == "n_averaged" for name in names):
        if names.pop("n_averaged", None) is not None:
            notes.append("`n_averaged` is dropped, the counter of an averaged model")
        renamed(lambda name: name.removeprefix("module."), "`module.` (data parallel)")
    for average in AVERAGED:
        made = {
            name.removeprefix(f"{average}."): p for name, p in names.items() if name.startswith(f"{average}.")
        }
        others = [name for name in names if not name.startswith(f"{average}.")]
        plain = "model." if others and all(name.startswith("model.") for name in others) else ""
        if made and others and {name.removeprefix(plain) for name in others} == made.keys():
            names = {plain + name: place for name, place in made.items()}
            notes.append(f"`{average}.*` is taken, the moving average of the weights, not `{plain}*`")
            break
    return names, notes


@dataclass(frozen=True)
class Plan:
    """One network to import: where its tensors are, which are which, and what becomes of them.

    `name` is the file's (`NAME.safetensors`), `what` names the network in messages. Of `tensors`, those under `prefix` are
    this network's.
    """

    role: str
    name: str
    what: str
    spec: ClipSpec | PriorSpec | UNetSpec
    table: KeyTable
    tensors: Checkpoint
    licence: str
    schedule: ScheduleSpec | None = None
    sampler: SamplerSpec | None = None
    prefix: str = ""

    @property
    def found(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the source's tensors that are this network's to use or to drop."""
        return {k: v for k, v in self.tensors.shapes.items() if k.startswith(self.prefix)}


@lru_cache(maxsize=16)
def shapes_of(spec: ClipSpec | PriorSpec | UNetSpec) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor of the network of `spec`; the network is built without memory."""
    import torch

    from mavcli.models.clip import Clip
    from mavcli.models.prior import Prior
    from mavcli.models.unet import UNet

    with torch.device("meta"):
        if isinstance(spec, ClipSpec):
            state = Clip(spec).state_dict()
        else:
            state = (Prior(spec) if isinstance(spec, PriorSpec) else UNet(spec)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def find_one(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The checkpoint in `folder` whose name fits one of the patterns; shards count once. WeightsError for several."""
    found = sorted(
        {
            common_name(file)
            for pattern in patterns
            for file in folder.glob(pattern)
            if file.suffix in CHECKPOINTS
        }
    )
    safe = [file for file in found if file.suffix == ".safetensors"]
    found = safe or found  # the same weights, without a program around them
    if len(found) > 1:
        raise WeightsError(
            f"{folder} holds more than one file for one network: {', '.join(file.name for file in found)}",
            hint="give the file that is meant instead of the folder",
        )
    return found[0] if found else None


def read_config(path: Path) -> dict[str, Any]:
    """A configuration of another code, YAML or JSON. Raises UsageError where it cannot be read or is no mapping."""
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if tree.faults:
        raise UsageError("\n".join(map(str, tree.faults)))
    if not isinstance(tree.value, dict):
        raise UsageError(f"{path} holds no mapping, the configuration of a network is wanted")
    return tree.value
