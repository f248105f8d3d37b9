"""What a stage starts from: scratch, its parent stage, weights of its own, and the frozen towers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from mavcli.engine.assemble import build_network, load_clip, load_network, load_prior
from mavcli.engine.backend import Backend
from mavcli.engine.room import check_training
from mavcli.errors import RecipeError, WeightsError
from mavcli.models.unet import UNet
from mavcli.recipe.resolve import Machine, Resolved
from mavcli.recipe.schema import Recipe
from mavcli.recipe.share import cache_dir
from mavcli.specs import UNetSpec
from mavcli.training.distributed import Group
from mavcli.training.embeddings import Embeddings
from mavcli.training.stage import Stage, Task
from mavcli.training.stages import STAGES, missing_stage
from mavcli.weights.locate import command_for, inherit, parent_path, stage_path, trained_path
from mavcli.weights.provenance import Parent, load_weights, read_header, weight_files


def build_task(
    stage: Stage,
    recipe: Recipe,
    *,
    backend: Backend,
    group: Group | None = None,
    recorded: Sequence[Parent] | None = None,
    again: bool = False,
) -> tuple[Task, list[Parent]]:
    """The network with the weights it starts from, the frozen towers, and what they are.

    A training that goes on has `recorded` what it started from, which is not looked for again. Where the data come `again`
    and again, so do the towers' embeddings, and these are kept.
    Raises WeightsError when weights are missing or of another network.
    """
    config = recipe.stage(stage.name)
    seed = zlib.crc32(f"{recipe.train.seed}/{stage.name}/init".encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers draw their first weights from the global generator
        network = build_network(stage.network(recipe))
    frozen = stage.frozen(recipe)
    helpers = {*frozen, "sr_lt"} if "sr_l" in frozen else set(frozen)  # of either's weights SR_l is made
    parents = [p for p in recorded or () if p.role not in helpers]
    path = start_path(stage, recipe) if recorded is None else None
    if path is not None:
        header = read_header(path)
        if header.role not in (stage.name, *stage.parents):
            wanted = "` or `".join((stage.name, *stage.parents))
            raise WeightsError(
                f"{path} holds `{header.role}` weights, stage `{stage.name}` starts from `{wanted}`",
                hint=f"--set train.stages.{stage.name}.start=FILE",
            )
        inherit(network, load_weights(path, expect_sha256=header.content_sha256), source=path)
        parents.append(header.as_parent())
    clip, kept = None, None
    if "clip" in frozen:
        towers = _frozen_path(stage, recipe, "clip")
        header = read_header(towers)
        clip = load_clip(recipe, towers, sha256=header.content_sha256).to(backend.device)
        parents.append(header.as_parent())
        if again:
            kept = Embeddings(
                clip,
                backend,
                sha256=header.content_sha256,
                folder=cache_dir() / "embeddings",
                limit=int(recipe.train.embeddings_gb * 1e9),
            )
    prior = None
    if "prior" in frozen:
        path = _frozen_path(stage, recipe, "prior")
        header = read_header(path)
        prior = load_prior(recipe, path, sha256=header.content_sha256).to(backend.device)
        parents.append(header.as_parent())
    sr_l = None
    if "sr_l" in frozen:
        path = _frozen_path(stage, recipe, "sr_l")
        header = read_header(path)
        network_of = "sr_lt" if header.role == "sr_lt" else "sr_l"
        spec = STAGES[network_of].network(recipe)
        loaded = load_network(spec, path, role=network_of, sha256=header.content_sha256)
        assert isinstance(loaded, UNet)
        sr_l = loaded.to(backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parents.append(header.as_parent())
    group = group or Group(device=backend.device)
    # FSDP cuts contiguous parameters only
    sharded = group.world > 1 and config.sharding == "fsdp"
    layout = torch.contiguous_format if sharded else torch.channels_last
    network = network.to(backend.device, memory_format=layout).train()  # type: ignore[call-overload]
    schedule = stage.schedule(recipe) if stage.schedule else None
    task = Task(stage.name, recipe, config, network, backend.device, schedule, clip, kept, prior, group, sr_l)
    return task, parents


def start_path(stage: Stage, recipe: Recipe) -> Path | None:
    """The weights that `train.stages.STAGE.start` means; None for scratch. Raises WeightsError where there are none."""
    start = recipe.stage(stage.name).start
    if start == "scratch":
        return None
    if start == "auto":
        for parent in stage.parents:
            path = parent_path(recipe, parent)
            if path is not None:
                return path
        if stage.parent_needed:
            raise WeightsError(
                f"stage `{stage.name}` starts from `{stage.parents[0]}`, which is not trained yet: "
                f"no {trained_path(recipe, stage.parents[0])}",
                hint=f"mav train-stage {stage.parents[0]} RECIPE",
            )
        return None
    path = stage_path(recipe, stage.name) if start == "own" else Path(start)
    if not weight_files(path):
        raise WeightsError(
            f"`train.stages.{stage.name}.start` is `{start}`, and {path} does not exist",
            hint="`mav weights ls` lists the weights there are; `start=auto` takes the parent stage's",
        )
    return path


def check_parents(stage: Stage, recipe: Recipe) -> None:
    """Raises WeightsError where weights are missing that a training of `stage` would begin with; reads none."""
    start_path(stage, recipe)
    for role in stage.frozen(recipe):
        _frozen_path(stage, recipe, role)


def _frozen_path(stage: Stage, recipe: Recipe, role: Literal["clip", "prior", "sr_l"]) -> Path:
    """The weights of CLIP's towers, of P or of SR_l, which take part and do not train."""
    path = parent_path(recipe, "sr_lt") if role == "sr_l" else None
    path = path or parent_path(recipe, role)
    if path is None:
        words = {
            "clip": "CLIP's towers, which are",
            "prior": "P for captions, which is",
            "sr_l": "SR_l for `made_probability`, which is",
        }
        what = words[role]
        raise WeightsError(
            f"stage `{stage.name}` needs {what} not there yet: no {trained_path(recipe, role)}",
            hint=command_for(recipe, role),
        )
    return path


def check_stage(stage: Stage, recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where the family has no such stage, or so many processes cannot train it."""
    config = recipe.stage(stage.name)
    key = f"train.stages.{stage.name}"
    if (missing := missing_stage(recipe, stage.name)) is not None:
        setting, value, wanted = missing
        raise RecipeError(
            f"the family `{recipe.name}` has no stage `{stage.name}`: `{setting}` is `{value}`",
            hint=f"leave the stage out, or say `{setting}: {wanted}` and describe the network",
        )
    if config.batch_size < stage.fewest:
        raise RecipeError(
            f"`{key}.batch_size` is {config.batch_size}: the loss of `{stage.name}` compares samples, "
            f"it needs {stage.fewest}",
            hint=f"--set {key}.batch_size={stage.fewest}",
        )
    if config.batch_size % processes:
        nearest = max(1, round(config.batch_size / processes)) * processes
        raise RecipeError(
            f"`{key}.batch_size` is {config.batch_size}, which {processes} processes cannot share equally",
            hint=f"--set {key}.batch_size={nearest}",
        )
    if "sr_l" in stage.frozen(recipe) and (
        recipe.cascade.sr_l.kind != "network" or recipe.cascade.sr_l.last_step
    ):
        raise RecipeError(
            f"`{key}.degradation.made_probability` wants one network for SR_l, and `cascade.sr_l` has "
            + ("two (`last_step`)" if recipe.cascade.sr_l.kind == "network" else "none (`kind`)"),
            hint=f"--set {key}.degradation.made_probability=0",
        )
    if config.cuda_graphs:
        _check_graphs(stage, recipe, processes)
    if config.sam_rho and config.sharding == "fsdp" and processes > 1:
        raise RecipeError(
            f"`{key}.sam_rho` wants each process's own gradient, which `sharding: fsdp` never holds whole",
            hint=f"--set {key}.sharding=ddp",
        )
    if stage.told_by_captions(recipe) and recipe.train.data.world != 1:
        raise RecipeError(
            f"`{key}.told_by` is `caption`, and captions of clips are known of the rendered world only",
            hint="leave it out, your clips need no words; or `--set train.data.world=true`",
        )
    if stage.name != "clip":
        return
    if config.sharding == "fsdp" and processes > 1:
        raise RecipeError(
            "stage `clip` trains with whole towers in every process", hint=f"--set {key}.sharding=ddp"
        )
    if config.micro_batch is not None and config.micro_batch * processes < config.batch_size:
        raise RecipeError(
            f"`{key}.micro_batch` is {config.micro_batch}: the contrastive loss needs all pairs of a step at once",
            hint=f"--set {key}.micro_batch=null",
        )


def check_memory(stage: Stage, recipe: Recipe, machine: Machine, resolved: Resolved) -> None:
    """Raises OutOfMemoryError where the network of `stage` is larger than the memory of `machine`."""
    if missing_stage(recipe, stage.name) is None:
        network, config = stage.network(recipe), recipe.stage(stage.name)
        check_training(stage.name, network, config, machine=machine, resolved=resolved)


def _check_graphs(stage: Stage, recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where a step is more than one pass of one U-Net on one GPU, or no two are alike."""
    config, network, key = recipe.stage(stage.name), stage.network(recipe), f"train.stages.{stage.name}"
    against = {
        f"stage `{stage.name}`, whose network is no U-Net": not isinstance(network, UNetSpec),
        "dropout, whose masks are drawn anew": isinstance(network, UNetSpec) and network.dropout > 0,
        f"{processes} processes": processes > 1,
        f"`{key}.micro_batch`": config.micro_batch is not None and config.micro_batch < config.batch_size,
        f"`{key}.compile`": config.compile,
        f"`{key}.recompute`": config.recompute,
        f"`{key}.sam_rho`": config.sam_rho > 0,
        f"`{key}.pictures_beside`": config.pictures_beside > 0,
    }
    for what, asked in against.items():
        if asked:
            raise RecipeError(
                f"`{key}.cuda_graphs` records a step in one piece, which does not go with {what}",
                hint=f"--set {key}.cuda_graphs=false",
            )
