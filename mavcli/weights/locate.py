"""Where a recipe's weights are, and how tensors of a parent stage become those of a child (inflation and widening)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from mavcli.errors import WeightsError
from mavcli.recipe.schema import STAGES, Recipe
from mavcli.specs import UNetSpec
from mavcli.weights.manifest import family_folder
from mavcli.weights.provenance import weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn


STEM = "input_blocks.0.0.weight"
"""The tensor of a U-Net that grows when it gets input channels more."""


def family_dir(recipe: Recipe) -> Path:
    """The folder of the recipe's family: of the package or of the user for a bare name, else the path itself."""
    name = recipe.weights.dir
    return family_folder(name) if "/" not in name and "\\" not in name else Path(name)


def stage_path(recipe: Recipe, stage: str) -> Path:
    """The weight file that the recipe names for `stage`, whether it exists or not.

    A stage that is served by another's weights (`decoder_t: interp`) follows that one wherever the recipe takes it from.
    """
    served: set[str] = set()
    while (named := cast("str | None", getattr(recipe.weights, stage))) in STAGES and stage not in served:
        served.add(stage)  # two stages that name each other end here
        stage = named
    return family_dir(recipe) / f"{stage}.safetensors" if named is None or stage in served else Path(named)


def trained_path(recipe: Recipe, stage: str) -> Path:
    """Where `mav train-stage` exports the stage."""
    return Path(recipe.train.out) / "weights" / f"{stage}.safetensors"


def is_imported(recipe: Recipe, stage: str) -> bool:
    """Whether `stage` reads captions, and the recipe names training data without any: its weights are published ones."""
    data = recipe.train.data
    captioned = bool(data.world or data.folders("pairs"))
    plain = bool(data.folders("image") or data.folders("video"))
    return stage in ("clip", "prior") and plain and not captioned


def command_for(recipe: Recipe, stage: str, name: str = "RECIPE") -> str:
    """What gets the weights of `stage` for the recipe called `name`: training, or an import."""
    if is_imported(recipe, stage):
        return f"mav weights import SOURCE --out {family_dir(recipe)}"
    return f"mav train-stage {stage} {name}"


def parent_path(recipe: Recipe, stage: str) -> Path | None:
    """Weights of `stage` for a later stage to start from: this run's own first, then the recipe's family."""
    for path in (trained_path(recipe, stage), stage_path(recipe, stage)):
        if weight_files(path):
            return path
    return None


def inherit(network: nn.Module, tensors: dict[str, Tensor], *, source: Path) -> list[str]:
    """Load a parent's tensors into a network that may have temporal layers and input channels more; returns what is new.

    New input channels get zero columns (invariant 3). Raises WeightsError when anything but temporal layers is missing, or
    a tensor has no place.
    """
    from mavcli.models.unet import is_temporal

    own = network.state_dict()
    unknown = sorted(set(tensors) - set(own))
    missing = sorted(set(own) - set(tensors))
    foreign = [name for name in missing if not is_temporal(name)]
    if unknown or foreign:
        what = "has no place for" if unknown else "lacks"
        names = unknown or foreign
        raise WeightsError(
            f"{source} {what} {len(names)} tensors, the first is `{names[0]}`: it is of another network"
        )
    for name, value in tensors.items():
        target = own[name]
        if target.shape == value.shape:
            target.copy_(value)
        elif (
            name == STEM
            and (columns := stem_columns(cast(UNetSpec, network.spec), value.shape[1])) is not None
        ):
            target.zero_()
            target[:, columns] = value.to(target.dtype)
        else:
            raise WeightsError(
                f"`{name}` of {source} is {tuple(value.shape)}, the network has {tuple(target.shape)}"
            )
    return missing


def mask_columns(spec: UNetSpec) -> list[int]:
    """Which input channels of a widened stem the mask's are: those that its parent had not."""
    area = spec.patch**2
    return list(range(spec.in_channels * area, (spec.in_channels + spec.mask_channels) * area))


def stem_columns(spec: UNetSpec, inherited: int) -> list[int] | None:
    """Which input channels of a wider stem the parent's `inherited` ones are; None when none of its layouts has so many.

    A stem reads x, then the mask's channels, then the low-res picture's; the parent lacks one or both of the latter.
    """
    area = spec.patch**2
    x, mask, low_res = (n * area for n in (spec.in_channels, spec.mask_channels, spec.low_res_channels))
    places = {
        x: range(x),
        x + low_res: [*range(x), *range(x + mask, x + mask + low_res)],
        x + mask: range(x + mask),
    }
    found = places.get(inherited)
    return None if found is None else list(found)
