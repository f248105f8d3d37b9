"""`mav weights import`: published checkpoints, in the layouts of their own codes, become weights of a family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mavcli.cli.console import Console, size, table
from mavcli.cli.options import DryRunOption, ForceOption, JsonOption, QuietOption

if TYPE_CHECKING:
    from mavcli.weights.source import Plan


def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint, a folder of them, or an ID that was pulled (`karlo`, `kandinsky-2-1-prior`).",
        ),
    ],
    layout: Annotated[
        Literal["karlo", "adm", "unclip-diffusers"] | None,
        typer.Option("--as", help="Whose layout it is: the code that published it. Known for an ID."),
    ] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            metavar="STAGE",
            help="Only this network (clip, prior, decoder, sr_l); for a single checkpoint, the stage that it is to "
            "serve. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder of the family; without it, one of your own named like SOURCE.",
        ),
    ] = None,
    configs: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The configuration that the source was trained with (YAML or JSON), where it is not a published one. "
            "Repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["keep", "float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="The type that the tensors are stored in."),
    ] = "keep",
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            metavar="NAME",
            help="The licence that the weights come with, where their model card (README.md) states none or another.",
        ),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn published weights into weights of a family: karlo, adm (guided-diffusion, unconditional), unclip-diffusers.

    Every tensor of the source is used, or dropped by name; every tensor of the network is filled; nothing is guessed.
    Pickles (.pt, .ckpt, .bin) are read without running what they carry. The licence is what the source states, and is said to be
    unknown where it states none. An unCLIP's family (Karlo's, Kandinsky's prior) also gets a recipe.yaml.
    """
    from mavcli.weights.importing import plan_import, run_import, write_recipe
    from mavcli.weights.licences import UNKNOWN

    _check_roles(roles or [])
    path, layout, published = _source(source, layout)
    folder = out or _own_folder(path if path.is_dir() else path.with_suffix(""))
    with Console(quiet=quiet, json=json) as console:
        plans = plan_import(
            path,
            layout=layout,
            roles=roles or (),
            configs=configs or (),
            licence=licence,
            published=published,
        )
        unknown = [plan.name for plan in plans if plan.licence == UNKNOWN]
        if unknown:
            console.warning(
                f"nothing in {path} states the licence of {', '.join(f'`{name}`' for name in unknown)}: it is recorded as "
                f"unknown, --licence NAME records what you know"
            )
        if layout in ("karlo", "unclip-diffusers") and not roles and "clip" not in {p.role for p in plans}:
            console.warning(
                f"{path} has no CLIP with both towers, so the family lacks one: `mav weights pull clip-vit-l-14`, then "
                f"`mav weights import clip-vit-l-14 --out {folder}`"
            )
        for note in dict.fromkeys(note for plan in plans for note in plan.tensors.notes):
            console.message(note)
        told = [_describe(plan) for plan in plans]
        if dry_run:
            rows = [(t["file"], t["what"], f"{t['parameters'] / 1e6:.1f} M", t["licence"]) for t in told]
            for line in table(rows):
                console.result(line)
            console.message(f"every tensor has its place; would write into {folder}")
            console.result_object({"out": str(folder), "weights": told, "recipe": None})
            return
        done = run_import(
            plans,
            folder,
            layout=layout,
            dtype=dtype,
            force=force,
            report=console,
            command=f"mav weights import {path.name} --as {layout}",
        )
        recipe = None
        if layout in ("karlo", "unclip-diffusers"):
            recipe = write_recipe(folder, plans, name=folder.absolute().name, force=force)
            if recipe is None:
                console.warning(
                    f"{folder / 'recipe.yaml'} is not as mav wrote it and stays as it is: "
                    f"--force rewrites it with {', '.join(f'`{plan.role}`' for plan in plans)}"
                )
        console.close()
        for imported, entry in zip(done, told, strict=True):
            bytes_ = sum(file.stat().st_size for file in imported.files)
            entry |= {
                "files": [str(file) for file in imported.files],
                "bytes": bytes_,
                "sha256": imported.header.content_sha256,
                "imported_from": [file.model_dump() for file in imported.header.imported_from],
            }
            for file in imported.files:
                console.result(file)
            console.message(f"{entry['what']}: {entry['network']}, {size(bytes_)}, {entry['licence']}")
        if recipe is not None:
            console.result(recipe)
            drawn = any(plan.role == "decoder" for plan in plans) or (folder / "decoder.safetensors").exists()
            console.message(
                f"next: mav generate PROMPT --still --recipe {recipe}"
                if drawn
                else "next: mav recipe cp open-words mine.yaml, whose D is trained on pictures without captions"
            )
        console.result_object(
            {"out": str(folder), "weights": told, "recipe": None if recipe is None else str(recipe)}
        )


def _describe(plan: Plan) -> dict[str, Any]:
    from mavcli.weights.importing import count, describe

    return {
        "role": plan.role,
        "file": f"{plan.name}.safetensors",
        "what": plan.what,
        "network": describe(plan.spec),
        "parameters": count(plan),
        "licence": plan.licence,
        "notes": list(plan.tensors.notes),
    }


def _check_roles(roles: list[str]) -> None:
    from mavcli.errors import UsageError
    from mavcli.recipe.schema import STAGES

    for role in roles:
        if role not in STAGES:
            raise UsageError(f"there is no stage `{role}`; the stages are {', '.join(STAGES)}")


def _source(source: str, layout: Any) -> tuple[Path, Any, str | None]:
    """The file or folder of SOURCE, which may be the ID of published weights, its layout, and an ID's licence."""
    from mavcli.errors import UsageError, WeightsError
    from mavcli.weights.fetch import published_dir
    from mavcli.weights.manifest import load_manifest

    path, licence = Path(source).expanduser(), None
    if not path.exists() and source in (known := load_manifest().published):
        path, layout = published_dir(source), layout or known[source].importer
        licence = known[source].licence
        if not path.is_dir():
            raise WeightsError(
                f"the published weights `{source}` are not on this disk", hint=f"mav weights pull {source}"
            )
    if layout is None:
        raise UsageError(
            "nothing says whose layout it is",
            hint="--as karlo|adm|unclip-diffusers names the code that wrote it",
        )
    return path, layout, licence


def _own_folder(source: Path) -> Path:
    """A family of the user's own, named like the source."""
    import re

    from mavcli.recipe.share import data_dir

    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.absolute().name).strip("-.") or "imported"
    return data_dir() / "weights" / name
