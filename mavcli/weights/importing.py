"""Published weights become ours: `mav weights import SOURCE --as LAYOUT`.

A source is looked at first (names and shapes against a strict key table), then converted tensor by tensor. What is written
is safetensors whose header says what the network is, which files it was made of and by what; Karlo's family also gets a
recipe, with the schedules and samplers that its networks were published with.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mavcli.errors import DiskError, UsageError, WeightsError, one_line
from mavcli.files import is_sealed, sealed, sweep, write_text
from mavcli.recipe.load import load_recipe
from mavcli.report import Report, Silent
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.weights import adm, karlo, unclip
from mavcli.weights.licences import UNKNOWN, stated_licence
from mavcli.weights.provenance import (
    SourceFile,
    WeightsHeader,
    load_weights,
    read_header,
    refuse_existing,
    save_weights,
    spec_class,
    weight_files,
)
from mavcli.weights.source import Plan, read_config, shapes_of

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["karlo", "adm", "unclip-diffusers"]
DType = Literal["keep", "float32", "bfloat16", "float16"]
MAX_SHARD_BYTES = 4_000_000_000  # imported weights stay on the disk that they were imported to
RECIPE = "recipe.yaml"
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATISTICS = ("clip_mean", "clip_std")  # a thousand numbers, that scale everything after them


@dataclass(frozen=True)
class Imported:
    """One network that was written."""

    plan: Plan
    files: tuple[Path, ...]
    header: WeightsHeader
    parameters: int


def plan_import(
    source: Path,
    *,
    layout: Layout,
    roles: Sequence[str] = (),
    configs: Sequence[Path] = (),
    licence: str | None = None,
    published: str | None = None,
) -> list[Plan]:
    """What importing `source` (a file or a folder) would write; every key table is checked, no tensor is converted.

    `roles` chooses networks of a folder, or says what a single network is to be. `configs` are the source's own
    configurations (YAML or JSON), or folders of them; those in `source` and its `configs/` are found. `licence` is what the
    caller says of all that is imported. Without, it is Karlo's and OpenAI's for their own releases; else what the model card
    in `source` states, else `published`, the manifest's word for an ID; else UNKNOWN. Raises WeightsError where the source is not what `layout` says, UsageError where a configuration is of another network.
    """
    source = source.expanduser()
    if not source.exists():
        raise WeightsError(f"{source} does not exist", hint="mav weights pull gets published weights")
    try:
        plans = _plans(source, layout, roles, configs)
    # Whatever stands in somebody else's configuration.
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{source}: its configuration cannot be used: {_line(error)}") from error
    plans = _chosen(plans, roles, source)
    stated = stated_licence(source) if source.is_dir() else None
    plans = [_licensed(plan, licence, stated or published) for plan in plans]
    for plan in plans:
        plan.table.check(plan.found, shapes_of(plan.spec), source=str(source), what=plan.what)
    return plans


def _licensed(plan: Plan, licence: str | None, stated: str | None) -> Plan:
    if licence is None:
        licence = stated if plan.licence == UNKNOWN and stated is not None else plan.licence
    return dataclasses.replace(plan, licence=one_line(licence, limit=200))


def _plans(source: Path, layout: Layout, roles: Sequence[str], configs: Sequence[Path]) -> list[Plan]:
    if layout == "unclip-diffusers":
        if configs:
            raise UsageError("a folder of diffusers has its configurations in it, --config is not for it")
        return unclip.plans(source, roles=roles)
    flags = [adm.flat_flags(read_config(path)) for path in _config_files(source, configs, layout)]
    if layout == "karlo":
        return karlo.plans(source, flags, roles=roles)
    if len(flags) > 1:
        raise UsageError(f"{len(flags)} configurations for `{layout}`, one describes one checkpoint")
    plans = adm.plans(source, flags[0] if flags else None)
    if flags and len(plans) > 1:
        raise UsageError(f"one configuration for {len(plans)} checkpoints", hint="import each alone")
    return plans


def _line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return " ".join(str(error).split())[:200]


def run_import(
    plans: Sequence[Plan],
    out: Path,
    *,
    layout: Layout,
    dtype: DType = "keep",
    force: bool = False,
    report: Report | None = None,
    command: str = "",
) -> list[Imported]:
    """Convert and write the networks of `plans` into the folder `out`. What the same import left there before stays.

    Raises DiskError where something else is there and `force` is not given, or the disk is too small; WeightsError on nan
    or inf.
    """
    report = report or Silent()
    if not plans:
        raise WeightsError("nothing to import")
    if out.is_dir():
        sweep(out, again=True)
    digests: dict[Path, str] = {}

    def header_of(plan: Plan) -> WeightsHeader:
        for file in plan.tensors.files:
            digests[file] = digests.get(file) or plan.tensors.sha256(file)
        return WeightsHeader(
            role=plan.role,
            spec=plan.spec,
            schedule=plan.schedule,
            sampler=plan.sampler,
            licence=plan.licence,
            source=(command or f"mav weights import --as {layout}")
            + (f" --dtype {dtype}" if dtype != "keep" else ""),
            importer=f"mav weights import --as {layout}",
            imported_from=tuple(SourceFile(name=f.name, sha256=digests[f]) for f in plan.tensors.files),
        )

    there = set()
    for plan in plans:
        target = out / f"{plan.name}.safetensors"
        if not force and weight_files(target):
            if not _is_of(target, header_of(plan)):
                refuse_existing(target, force=False)
            there.add(plan.name)
    _check_room([plan for plan in plans if plan.name not in there], out, dtype)
    total = sum(_bytes(plan, dtype) for plan in plans if plan.name not in there)
    report.plan(2 * total)
    done = []
    for plan in plans:
        target = out / f"{plan.name}.safetensors"
        if plan.name in there:
            report.message(f"{target} is there already, of the same import")
            done.append(Imported(plan, tuple(weight_files(target)), read_header(target), count(plan)))
            continue
        report.message(f"{plan.name}: {plan.what}, {_millions(plan)} M parameters")
        report.stage(plan.name, 2 * _bytes(plan, dtype))
        header = header_of(plan)
        tensors = _Typed(plan.table.convert(plan.tensors), dtype, report)
        files = save_weights(target, tensors, header, max_shard_bytes=MAX_SHARD_BYTES)
        done.append(Imported(plan, tuple(files), read_header(target), count(plan)))
    return done


def _is_of(target: Path, header: WeightsHeader) -> bool:
    """Whether an import of this header wrote `target`, and it is whole."""
    try:
        found = read_header(target)
        same = found.model_copy(update={"content_sha256": ""}) == header
        return same and bool(load_weights(target))  # which looks at every byte
    except WeightsError:
        return False


def count(plan: Plan) -> int:
    """Parameters of the network that the plan makes, statistics included."""
    return sum(math.prod(shape) for shape in shapes_of(plan.spec).values())


def write_recipe(out: Path, plans: Sequence[Plan], *, name: str, force: bool = False) -> Path | None:
    """`out`/recipe.yaml for networks of an unCLIP, with their schedules and published samplers.

    None where somebody wrote or changed the one that is there, which stays unless `force`. What mav's own says already of
    networks that are not in `plans` stays. Decoder and super-resolution are given temporal
    layers, which `mav inflate` adds to the weights. The file is checked by loading it.
    """
    path = out / RECIPE
    if path.is_file() and not (force or is_sealed(path)):
        return None
    if path.is_file():
        recipe = read_config(path)
    else:
        recipe = {
            "name": name,
            "description": _description(plans),
            "weights": {"dir": "./"},
            "cascade": {"sr_l": {"kind": "none"}, "sr_h": {"kind": "none"}},
        }
    cascade = recipe.setdefault("cascade", {})
    for plan in plans:
        if plan.name == "sr_l_last":
            cascade["sr_l"]["last_step"] = True
            continue
        part = cascade[plan.role] = _part(plan)
        if plan.role == "prior":
            part["samples"] = 1  # as published
        elif plan.role == "decoder":
            part["network"] |= {"temporal": "p3d", "fps": True}
            cascade["interp"] = {"sampler": part["sampler"] | {"guidance_scale": 1.0}}
        elif plan.role == "sr_l":
            assert isinstance(plan.spec, UNetSpec)
            part["network"] |= {"temporal": "p3d"}
            part |= {"size": plan.spec.image_size, "enlarge": "bicubic-antialias"}
    about = "# Written by `mav weights import`."
    if "decoder" in cascade:
        about += f" `mav inflate {out}/decoder.safetensors --out {out}` adds the temporal layers."
    else:
        about += " It has no D: `mav recipe cp open-words mine.yaml` has one to train."
    text = sealed(f"{about}\n" + yaml.safe_dump(recipe, sort_keys=False, width=110), comment="# {}")
    write_text(path, text, overwrite=True)
    load_recipe(path)
    return path


def _description(plans: Sequence[Plan]) -> str:
    if any(plan.role == "decoder" for plan in plans):
        return "imported; the decoder draws pictures until its temporal layers are trained"
    return f"imported: {', '.join(plan.role for plan in plans)}"


def _part(plan: Plan) -> dict[str, Any]:
    """What a recipe says of one network, fields with their default left out."""
    part: dict[str, Any] = {"network": plan.spec.model_dump(mode="json", exclude_defaults=True)}
    for name, value in (("schedule", plan.schedule), ("sampler", plan.sampler)):
        if value is not None:
            part[name] = value.model_dump(mode="json", exclude_defaults=True) | {"name": value.name}
    return part


def _config_files(source: Path, configs: Sequence[Path], layout: Layout) -> list[Path]:
    found: list[Path] = []
    for path in configs:
        if not path.exists():
            raise UsageError(f"{path} does not exist, a configuration was to be read from it")
        found += sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    if not configs and layout == "karlo":
        folder = source if source.is_dir() else source.parent
        files = [*folder.glob("*.yaml"), *folder.glob("configs/*.yaml")]
        found = sorted(path for path in files if isinstance(read_config(path).get("model"), dict))
    return found


def _chosen(plans: list[Plan], roles: Sequence[str], source: Path) -> list[Plan]:
    if roles:
        kept = [plan for plan in plans if plan.role in roles]
        if not kept and len(plans) == 1 and len(roles) == 1:
            (plan,), (role,) = plans, roles
            if not isinstance(plan.spec, spec_class(role)):
                raise UsageError(f"{plan.what} cannot serve as `{role}`")
            kept = [adm.with_role(plan, role)]
        absent = [role for role in roles if role not in {plan.role for plan in kept}]
        if absent:
            raise UsageError(
                f"{source} holds no `{absent[0]}`, it holds {', '.join(f'`{p.name}`' for p in plans)}"
            )
        plans = kept
    names = [plan.name for plan in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{source} holds {names.count(twice[0])} networks that would all be `{twice[0]}.safetensors`",
            hint="import each file alone, with an --out of its own",
        )
    return plans


def _check_room(plans: Sequence[Plan], out: Path, dtype: DType) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    needed, free = sum(_bytes(plan, dtype) for plan in plans), shutil.disk_usage(there).free
    if free < 1.05 * needed:
        raise DiskError(
            f"{out} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            hint="--dtype bfloat16 halves float32, --role imports less",
        )


def _bytes(plan: Plan, dtype: DType) -> int:
    return count(plan) * _WIDTH.get(dtype, 4)


def _millions(plan: Plan) -> str:
    return f"{count(plan) / 1e6:.1f}"


class _Typed(Mapping[str, "Tensor"]):
    """Tensors made in another type when they are asked for, which is told to the report."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: DType, report: Report) -> None:
        self._tensors, self._dtype, self._report = tensors, dtype, report

    def __getitem__(self, name: str) -> Tensor:
        import torch

        tensor = self._tensors[name]
        if self._dtype != "keep" and tensor.is_floating_point() and name not in _STATISTICS:
            tensor = tensor.to(getattr(torch, self._dtype))
        self._report.advance(tensor.numel() * _WIDTH.get(self._dtype, 4))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def describe(spec: ClipSpec | PriorSpec | UNetSpec) -> str:
    """A network in a few words."""
    if isinstance(spec, UNetSpec):
        mult = ", ".join(f"{m:g}" for m in spec.channel_mult)
        return f"U-Net of {spec.image_size} px, {spec.model_channels} channels x [{mult}]"
    if isinstance(spec, PriorSpec):
        return f"transformer of {spec.layers} layers x {spec.width}"
    return f"CLIP of {spec.embed_dim} dimensions, {spec.image_size} px"
