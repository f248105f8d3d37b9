"""Weights on their way out: the folders of a diffusers pipeline, or each network as one file without shards.

The key tables are those of the importers, read backwards, so what was imported goes back as it came. Tensors are converted
and written one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavcli.errors import DiskError, WeightsError
from mavcli.files import make_folder, write_text
from mavcli.report import Report, Silent
from mavcli.specs import PriorSpec, SamplerSpec, ScheduleSpec, UNetSpec
from mavcli.weights.keymap import KeyTable
from mavcli.weights.provenance import (
    StoredWeights,
    WeightsHeader,
    load_weights,
    read_header,
    refuse_existing,
    save_weights,
    write_plain,
)
from mavcli.weights.unclip import prior_table, text_proj_names, unet_table

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_VERSION = "0.33.1"  # the last that supports UnCLIPPipeline
_ONE_FILE = 2**62
_FOLDERS = {"prior": "prior", "decoder": "decoder", "sr_l": "super_res_first", "sr_l_last": "super_res_last"}
# What diffusers' networks of unCLIP cannot be told; another value is another network.
_FIXED: dict[str, Any] = {
    "in_channels": 3, "mask_channels": 0, "patch": 1, "activation": "silu", "resblock_updown": True, "norm_groups": 32,
    "norm_eps": 1e-5, "noise_level": False, "clip_scale": 1.0, "low_res_residual": False,
    "temporal": "none", "fps": False,
}  # fmt: skip


@dataclass
class Exported:
    """What was written: the files, and of each network its name, header and source. `left_out` says why, by name."""

    files: list[Path] = field(default_factory=list)
    networks: dict[str, tuple[WeightsHeader, Path]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def export_single_files(
    sources: Sequence[Path], out: Path, *, force: bool = False, report: Report | None = None
) -> Exported:
    """Each network of `sources` as `out`/NAME.safetensors, one file whose header says all: what publishers upload.

    Raises WeightsError where a source is damaged, DiskError where a file exists and `force` is not given.
    """
    report = report or Silent()
    done = Exported()
    targets = {source: out / f"{source.stem}.safetensors" for source in sources}
    for source, target in targets.items():
        if target.absolute() == source.absolute():
            raise DiskError(f"{target} is the source itself", hint="--out chooses another folder")
        if not _is_copy(source, target):
            refuse_existing(target, force=force)
    for source, target in targets.items():
        header = read_header(source)
        if not force and _is_copy(source, target):
            report.message(f"{target} is there already")
            done.files.append(target)
            done.networks[source.stem] = (header, target)
            continue
        report.message(f"{source.stem}: {header.role}")
        stored = StoredWeights(source, sha256=header.content_sha256)
        files = save_weights(target, stored, header, max_shard_bytes=_ONE_FILE)
        done.files += files
        done.networks[source.stem] = (read_header(target), target)
    return done


def _is_copy(source: Path, target: Path) -> bool:
    """Whether an earlier export of `source` wrote `target`, and it is whole."""
    try:
        return target.is_file() and read_header(target) == read_header(source) and bool(load_weights(target))
    except WeightsError:
        return False


def export_diffusers(
    sources: Sequence[Path], out: Path, *, force: bool = False, report: Report | None = None
) -> Exported:
    """The networks of `sources` as the folders of an unCLIP pipeline: `prior`, `decoder` and `text_proj`, `super_res_*`.

    CLIP is left out (a pipeline takes OpenAI's own, `openai/clip-vit-large-patch14`), video networks too: diffusers has none
    with these temporal layers. Raises WeightsError when nothing is left, or when a network has no form in diffusers.
    """
    report = report or Silent()
    done = Exported()
    chosen: list[tuple[str, Path, WeightsHeader]] = []
    for source in sources:
        header = read_header(source)
        reason = _left_out(source, header)
        if reason is None:
            chosen.append((_FOLDERS[_place(source, header)], source, header))
        else:
            done.left_out.append(f"{source.stem}: {reason}")
            report.warning(f"{source.stem} is left out: {reason}")
    if not chosen:
        raise WeightsError(
            f"none of {', '.join(source.name for source in sources)} has a form in diffusers: {done.left_out[0]}",
            hint="--to single-file",
        )
    for folder, source, _ in chosen:
        target = out / folder / _WEIGHTS
        if target.exists() and not force:
            raise DiskError(f"{target} exists", hint="--force overwrites it, --out chooses another folder")
        if sum(folder == other for other, _, _ in chosen) > 1:
            raise WeightsError(
                f"{source} and another network would both be `{folder}`", hint="export one at a time"
            )
    for folder, source, header in chosen:
        report.message(f"{source.stem} -> {folder}")
        done.files += _write_network(out, folder, source, header)
        done.networks[folder] = (header, source)
    return done


def _place(source: Path, header: WeightsHeader) -> str:
    return "sr_l_last" if source.stem == "sr_l_last" else header.role


def _left_out(source: Path, header: WeightsHeader) -> str | None:
    """Why a network has no form in diffusers, or None."""
    spec = header.spec
    if header.role == "clip":
        return "the pipeline reads CLIP from a release of its own"
    if isinstance(spec, PriorSpec):
        if spec.text_dim != spec.clip_dim:
            return f"a PriorTransformer has one width for text and image, not {spec.text_dim} and {spec.clip_dim}"
        return None if spec.final_norm else "a PriorTransformer ends in a norm"
    if not isinstance(spec, UNetSpec) or header.role not in _FOLDERS:
        what = "video networks have temporal layers that diffusers has no form for"
        return (
            what if header.role in ("decoder_t", "interp", "sr_lt") else f"a pipeline has no `{header.role}`"
        )
    fixed = dict(_FIXED)
    if header.role == "decoder":
        fixed |= {"text": "clip", "low_res_channels": 0, "mid_attention": True}
    else:
        fixed |= {"text": "none", "low_res_channels": 3, "mid_attention": False, "attention_resolutions": ()}
        fixed |= {"clip_dim": None, "context_dim": None}
    faults = [
        f"`{name}` is {getattr(spec, name)}" for name, value in fixed.items() if getattr(spec, name) != value
    ]
    if header.role == "decoder" and (
        spec.clip_dim is None or spec.context_dim is None or not spec.clip_tokens
    ):
        faults.append("it reads no CLIP embedding")
    if header.role == "decoder" and spec.text_dim != spec.clip_dim:
        faults.append("its text and image embeddings differ in width")
    if header.role == "decoder" and spec.num_head_channels is None:
        faults.append("its heads have no fixed width")
    if not isinstance(spec.num_res_blocks, int):
        faults.append("its levels differ in depth")
    if spec.time_embed_dim not in (None, 4 * spec.model_channels):
        faults.append(f"`time_embed_dim` is {spec.time_embed_dim}")
    return f"diffusers' unCLIP networks cannot be so: {', '.join(faults)}" if faults else None


def _write_network(out: Path, folder: str, source: Path, header: WeightsHeader) -> list[Path]:
    ours = StoredWeights(source, sha256=header.content_sha256)
    if isinstance(header.spec, PriorSpec):
        parts = {folder: (prior_config(header.spec), Inverted(prior_table(header.spec), ours))}
    else:
        assert isinstance(header.spec, UNetSpec)
        theirs = Inverted(unet_table(header.spec), ours)
        if header.role == "decoder":
            names = text_proj_names()
            split = [
                theirs.only(lambda key, side=side: (key.split(".")[0] in names) == side)
                for side in (True, False)
            ]
            parts = {
                "text_proj": (text_proj_config(header.spec), split[0]),
                folder: (decoder_config(header.spec), split[1]),
            }
        else:
            parts = {folder: (super_res_config(header.spec), theirs)}
    written = []
    for place, (config, tensors) in parts.items():
        write_plain(out / place / _WEIGHTS, tensors)
        written += [out / place / _WEIGHTS, _write_json(out / place / "config.json", config)]
    if header.schedule is not None:
        name = {"prior": "prior", "decoder": "decoder"}.get(folder, "super_res") + "_scheduler"
        path = out / name / "scheduler_config.json"
        written.append(_write_json(path, scheduler_config(header.schedule, header.sampler)))
    return written


class Inverted(Mapping[str, "Tensor"]):
    """Another code's tensors out of ours, by the importer's own table; each is made when it is asked for."""

    def __init__(self, table: KeyTable, ours: Mapping[str, Tensor]) -> None:
        self._ours = ours
        self._places = {name: (entry, i) for entry in table.entries for i, name in enumerate(entry.sources)}

    def only(self, wanted: Any) -> Inverted:
        """Those whose name `wanted` says yes to."""
        part = Inverted(KeyTable(()), self._ours)
        part._places = {name: place for name, place in self._places.items() if wanted(name)}
        return part

    def __getitem__(self, name: str) -> Tensor:
        entry, i = self._places[name]
        return entry.conversion.theirs(self._ours[entry.target])[i]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def prior_config(spec: PriorSpec) -> dict[str, Any]:
    """A PriorTransformer's configuration."""
    return {
        "_class_name": "PriorTransformer",
        "_diffusers_version": _VERSION,
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.width // spec.num_heads,
        "num_layers": spec.layers,
        "embedding_dim": spec.clip_dim,
        "num_embeddings": spec.text_context,
        "additional_embeddings": 4,
        "dropout": 0.0,
    }


def text_proj_config(spec: UNetSpec) -> dict[str, Any]:
    """A UnCLIPTextProjModel's configuration."""
    return {
        "_class_name": "UnCLIPTextProjModel",
        "_diffusers_version": _VERSION,
        "clip_extra_context_tokens": spec.clip_tokens,
        "clip_embeddings_dim": spec.clip_dim,
        "time_embed_dim": 4 * spec.model_channels,
        "cross_attention_dim": spec.context_dim,
    }


def decoder_config(spec: UNetSpec) -> dict[str, Any]:
    """A UNet2DConditionModel's configuration for a decoder."""
    has = [spec.image_size // 2**level in spec.attention_resolutions for level in range(spec.levels)]
    return {
        **_unet_config(spec, "UNet2DConditionModel"),
        "down_block_types": [
            "SimpleCrossAttnDownBlock2D" if yes else "ResnetDownsampleBlock2D" for yes in has
        ],
        "up_block_types": [
            "SimpleCrossAttnUpBlock2D" if yes else "ResnetUpsampleBlock2D" for yes in reversed(has)
        ],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "in_channels": 3,
        "cross_attention_dim": spec.context_dim,
        "class_embed_type": "identity",
        "attention_head_dim": spec.num_head_channels,
    }


def super_res_config(spec: UNetSpec) -> dict[str, Any]:
    """A UNet2DModel's configuration for a super-resolution network."""
    return {
        **_unet_config(spec, "UNet2DModel"),
        "down_block_types": ["ResnetDownsampleBlock2D"] * spec.levels,
        "up_block_types": ["ResnetUpsampleBlock2D"] * spec.levels,
        "in_channels": 6,
        "add_attention": False,
    }


def _unet_config(spec: UNetSpec, name: str) -> dict[str, Any]:
    return {
        "_class_name": name,
        "_diffusers_version": _VERSION,
        "sample_size": spec.image_size,
        "layers_per_block": spec.num_res_blocks,
        "block_out_channels": [int(mult * spec.model_channels) for mult in spec.channel_mult],
        "out_channels": spec.out_channels,
        "resnet_time_scale_shift": "scale_shift" if spec.use_scale_shift_norm else "default",
    }


def scheduler_config(schedule: ScheduleSpec, sampler: SamplerSpec | None = None) -> dict[str, Any]:
    """A UnCLIPScheduler's configuration; raises WeightsError for a process that it does not know.

    The clamp of x0 is that of `sampler`, which imported weights keep, else Karlo's.
    """
    if schedule.name != "cosine" or schedule.prediction == "v" or schedule.variance == "fixed_large":
        raise WeightsError(
            f"a UnCLIPScheduler has no {schedule.name} process with prediction `{schedule.prediction}` and variance "
            f"`{schedule.variance}`",
            hint="--to single-file",
        )
    sample = schedule.prediction == "x0"
    clamp = sampler.clip_x0 if sampler is not None else 5.0 if sample else 1.0
    return {
        "_class_name": "UnCLIPScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": schedule.timesteps,
        "variance_type": "learned_range" if schedule.variance == "learned_range" else "fixed_small_log",
        "clip_sample": clamp is not None,
        **({} if clamp is None else {"clip_sample_range": clamp}),
        "prediction_type": "sample" if sample else "epsilon",
    }


def _write_json(path: Path, value: dict[str, Any]) -> Path:
    make_folder(path.parent)
    write_text(path, json.dumps(value, indent=2) + "\n", overwrite=True)
    return path
