"""`mav weights ls|show`: from headers alone, no tensor is read unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli.console import Console, size, table
from mavcli.cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from mavcli.weights.provenance import TensorInfo, WeightsHeader

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="List weights, and what a weight file says about itself."
)


@app.command(short_help="List the families and what of them is on this disk.")
def ls(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the families of weights and what of them is on this disk; -q prints the paths of the files alone."""
    from mavcli.weights.manifest import load_manifest, on_disk, unlisted

    console = Console(json=json)
    told: list[dict[str, Any]] = []
    for name, entry in load_manifest().families.items():
        stages = on_disk(name)
        if quiet:
            for stage in stages:
                for file in stage.files:
                    console.result(file)
            continue
        there = sum(stage.present for stage in stages)
        total = size(sum(stage.bytes for stage in stages))
        console.result(f"{name}  {entry.title}")
        console.result(f"  {there} of {len(stages)} stages present, {total}, {entry.licence}")
        rows = [
            (f"  {stage.stage}", size(stage.bytes), _name(stage.files))
            if stage.present
            else (f"  {stage.stage}", "missing", entry.command(stage.stage))
            for stage in stages
        ]
        for line in table(rows):
            console.result(line)
        told.append(
            {
                "name": name,
                "title": entry.title,
                "licence": entry.licence,
                "source": entry.source,
                "notice": entry.notice,
                "stages": [
                    {
                        "stage": stage.stage,
                        "path": str(stage.path),
                        "present": stage.present,
                        "bytes": stage.bytes,
                        "files": [str(file) for file in stage.files],
                        "get": entry.command(stage.stage),
                    }
                    for stage in stages
                ],
            }
        )
    others = unlisted()
    if others and not quiet:
        console.result("not of a known family")
    for path in others:
        console.result(path if quiet else f"  {path}")
    console.result_object({"families": told, "unlisted": [str(path) for path in others]})


@app.command(short_help="Show the headers of a family, a stage or a file.")
def show(
    what: Annotated[
        str, typer.Argument(metavar="FAMILY|FAMILY/STAGE|FILE", help="`pocket`, `pocket/decoder`, or a file.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every tensor and compare it with the header's SHA-256.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what weights say about themselves: network, training, parents, licence.

    Reads headers only, unless --verify is given.
    """
    from mavcli.errors import WeightsError
    from mavcli.weights.provenance import is_intact, read_header, read_index, weight_files

    console = Console(json=json)
    told = []
    for place, path in enumerate(_paths(what)):
        header, index = read_header(path), read_index(path)
        files = weight_files(path)
        if verify and not is_intact(path):
            raise WeightsError(
                f"{path} is damaged: its tensors are not those that its header describes",
                hint="get the file again",
            )
        facts = _facts(path, header, index, sum(file.stat().st_size for file in files), len(files))
        if verify:
            facts["verified"] = "every tensor agrees with the SHA-256"
        if place:
            console.result("")
        for line in table(list(facts.items())):
            console.result(line)
        console.result("network")
        for name, value in header.spec:
            default = type(header.spec).model_fields[name].default
            if value != default:
                console.result(f"  {name}: {_short(value)}")
        told.append(
            {
                "path": str(path),
                "files": [str(file) for file in files],
                "bytes": sum(file.stat().st_size for file in files),
                "tensors": len(index),
                "parameters": sum(info.parameters for info in index.values()),
                "verified": verify,
                "header": header.model_dump(mode="json", by_alias=True),
            }
        )
    console.result_object({"weights": told})


def _paths(what: str) -> list[Path]:
    """The weights that `what` names, present ones only; raises WeightsError where there are none."""
    import difflib

    from mavcli.errors import WeightsError
    from mavcli.weights.manifest import family, load_manifest, on_disk
    from mavcli.weights.provenance import common_name, weight_files

    path = Path(what).expanduser()
    if path.is_file() or weight_files(path):
        return [path if path.is_file() and common_name(path) == path else common_name(path)]
    if path.is_dir() and what not in load_manifest().families:
        found = sorted({common_name(file) for file in path.glob("*.safetensors")})
        if not found:
            raise WeightsError(f"the folder {path} holds no safetensors")
        return found
    name, _, stage = what.partition("/")
    if path.suffix or name not in load_manifest().families:
        if "/" in what or path.suffix:
            raise WeightsError(f"{what} does not exist", hint="mav weights ls")
        family(name)
    entries = on_disk(name)
    if stage and stage not in {entry.stage for entry in entries}:
        near = difflib.get_close_matches(stage, [entry.stage for entry in entries], n=1)
        meant = f", did you mean `{name}/{near[0]}`" if near else ""
        raise WeightsError(f"the family `{name}` has no stage `{stage}`{meant}", hint="mav weights ls")
    chosen = [entry for entry in entries if stage in ("", entry.stage)]
    present = [entry.path for entry in chosen if entry.present]
    if not present:
        missing = chosen[0]
        raise WeightsError(f"{missing.path} does not exist", hint=family(name).command(missing.stage))
    return present


def _facts(
    path: Path, header: WeightsHeader, index: dict[str, TensorInfo], total: int, files: int
) -> dict[str, str]:
    parameters = sum(info.parameters for info in index.values())
    kinds = ", ".join(sorted({info.dtype for info in index.values()}))
    where = f"{size(total)} in {files} files" if files > 1 else size(total)
    facts = {
        "weights": str(path),
        "serves": f"stage {header.role}",
        "size": f"{parameters / 1e6:.2f} M parameters in {len(index)} tensors ({kinds}), {where}",
        "trained": f"{header.step} steps, {header.samples_seen} samples" if header.step else "not recorded",
        "from": "; ".join(f"{parent.role} at step {parent.step}" for parent in header.parents) or "scratch",
        "licence": header.licence,
        "source": header.source or "not recorded",
        "recipe": header.recipe_sha256 or "not recorded",
        "sha256": header.content_sha256 or "not recorded",
    }
    if header.schedule is not None:
        schedule = header.schedule
        facts["schedule"] = f"{schedule.name}, {schedule.timesteps} steps, predicts {schedule.prediction}"
    return facts


def _name(files: tuple[Path, ...]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"


def _short(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 12:
        return f"{len(value)} entries: {', '.join(map(str, value[:8]))} ..."
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
