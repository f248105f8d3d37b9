"""`mav weights`: what there is (`ls`, `show`: from headers alone), getting it (`pull`, `add`), `check` and `rm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mavcli.cli.console import Console, size, table
from mavcli.cli.options import DryRunOption, ForceOption, JsonOption, QuietOption
from mavcli.cli.weights_deepen import deepen_weights
from mavcli.cli.weights_export import export_weights
from mavcli.cli.weights_import import import_weights
from mavcli.cli.weights_mean import mean_weights

if TYPE_CHECKING:
    from torch import Tensor

    from mavcli.weights.fetch import Pull
    from mavcli.weights.manifest import Published
    from mavcli.weights.provenance import WeightsHeader
    from mavcli.weights.safety import TensorInfo

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show, get, check and remove weights.",
)

app.command("import", short_help="Turn published checkpoints into weights of a family.")(import_weights)
app.command("export", short_help="Write weights for other codes, with a model card.")(export_weights)
app.command("mean", short_help="Write the mean of weights of one network.")(mean_weights)
app.command("deepen", short_help="Give a network more blocks, which change nothing yet.")(deepen_weights)

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command(short_help="List the families, published weights, and what of them is on this disk.")
def ls(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the families of weights, the published ones that can be pulled, and what of all is on this disk.

    -q prints the paths of the families' files alone.
    """
    from mavcli.weights.fetch import published_dir, recorded
    from mavcli.weights.manifest import load_manifest, on_disk, own_families, unlisted
    from mavcli.weights.provenance import weight_files

    console = Console(json=json)
    manifest = load_manifest()
    told: list[dict[str, Any]] = []
    for name, entry in manifest.families.items():
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
    own: list[dict[str, Any]] = []
    for name, paths in own_families().items():
        files = {path: weight_files(path) for path in paths}
        bytes_ = {path: sum(file.stat().st_size for file in files[path]) for path in paths}
        for file in (file for path in paths for file in files[path] if quiet):
            console.result(file)
        if not quiet:
            console.result(f"{name}  yours, {size(sum(bytes_.values()))}, in {paths[0].parent}")
            for line in table([(f"  {p.stem}", size(bytes_[p]), _name(tuple(files[p]))) for p in paths]):
                console.result(line)
        own.append({"name": name, "files": [str(file) for path in paths for file in files[path]]})
    others = unlisted()
    if others and not quiet:
        console.result("not of a known family")
    for path in others:
        console.result(path if quiet else f"  {path}")
    pulled = {name: len(recorded(published_dir(name))) for name in manifest.published}
    if not quiet:
        console.result("published elsewhere, `mav weights pull ID` gets them")
        offered = [
            (f"  {name}", _about(entry), _pulled(pulled[name], len(entry.files)), entry.licence, entry.title)
            for name, entry in manifest.published.items()
        ]
        for line in table(offered):
            console.result(line)
    published = [
        {
            "id": name,
            "title": entry.title,
            "licence": entry.licence,
            "source": entry.source,
            "bytes": entry.size or None,
            "stages": entry.stages,
            "importer": entry.importer,
            "files": len(entry.files),
            "pulled": pulled[name],
        }
        for name, entry in manifest.published.items()
    ]
    console.result_object(
        {"families": told, "own": own, "unlisted": [str(path) for path in others], "published": published}
    )


@app.command(short_help="Show the headers of a family, a stage or a file, or what is published under an ID.")
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY|FAMILY/STAGE|FILE|ID", help="`pocket`, `pocket/decoder`, a file, `karlo`."
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Show what weights say about themselves: network, stages, training, parents, licence. Reads headers only."""
    from mavcli.weights.manifest import load_manifest, own_families
    from mavcli.weights.provenance import read_header, read_index, weight_files

    console = Console(json=json)
    known = load_manifest().published
    whole: dict[str, Any] = {}
    # What was imported from an ID is usually a family of the same name.
    if what in known:
        whole |= _show_published(console, what, known[what])
    told = []
    for place, path in enumerate(named_weights(what) if what not in known or what in own_families() else ()):
        header, index = read_header(path), read_index(path)
        files = weight_files(path)
        facts = _facts(path, header, index, sum(file.stat().st_size for file in files), len(files))
        if place or whole:
            console.result("")
        for line in table(list(facts.items())):
            console.result(line)
        console.result("network")
        for line in _network(header.spec):
            console.result(line)
        told.append(
            {
                "path": str(path),
                "files": [str(file) for file in files],
                "bytes": sum(file.stat().st_size for file in files),
                "tensors": len(index),
                "parameters": sum(info.parameters for info in index.values()),
                "serves": _serves(header.role),
                "header": header.model_dump(mode="json", by_alias=True),
            }
        )
    console.result_object({**whole, "weights": told})


@app.command(short_help="Get published weights from the hub, an address, or files on this disk.")
def pull(
    name: Annotated[str, typer.Argument(metavar="ID", help="What to get; `mav weights ls` lists it.")],
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="STAGE", help="Only the files of a stage; repeatable."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE|FOLDER", help="Take the files from here, not from the network."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where they go; mav's cache otherwise."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the network.")] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Get published weights: licence, size and free disk are shown first, then what arrives is checked.

    What was interrupted is continued. The result is the folder, which `mav weights import` reads.
    """
    from mavcli.weights.fetch import plan_pull, published_dir
    from mavcli.weights.fetch import pull as carry_out

    with Console(quiet=quiet, json=json) as console:
        plan = plan_pull(name, folder=out, stages=stage or (), local=source, offline=offline)
        if plan.missing:
            for line in table(list(_pull_facts(plan).items())):
                console.message(line)
        if dry_run:
            console.result_object(_pulled_object(plan, dry_run=True))
            return
        if plan.missing:
            _agree(
                yes, f"get {len(plan.missing)} files under this licence?", f"mav weights pull {name} --yes"
            )
            carry_out(plan, console)
        else:
            console.message("everything is here already")
        console.result(plan.folder)
        console.result_object(_pulled_object(plan, dry_run=False))
        own = plan.folder == published_dir(name)
        console.message(
            f"next: mav weights import {name if own else f'{plan.folder} --as {plan.entry.importer}'}"
        )


@app.command(short_help="Put weights of mav's own format into a family, where recipes find them.")
def add(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="Weights that mav wrote.")],
    role: Annotated[
        str | None,
        typer.Option("--as", metavar="STAGE", help="The stage they are to serve; the header's otherwise."),
    ] = None,
    family: Annotated[
        str,
        typer.Option(
            "--family", metavar="NAME", help="The family that they go into, a recipe's `weights.dir`."
        ),
    ] = "mine",
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Check weights and copy them into a family of yours: `weights.dir: NAME` in a recipe then finds them."""
    from mavcli.weights.provenance import read_header
    from mavcli.weights.shelf import SERVES, add_weights, check_weights, find_weights

    console = Console(json=json)
    serving = next((r for r in SERVES if r == role), None)
    path = find_weights(source, role=serving)
    header = read_header(path)
    check_weights(path, _state(path, header))
    files = add_weights(path, role=role or header.role, family=family, force=force)
    for file in files:
        console.result(file)
    console.result_object({"family": family, "stage": role or header.role, "files": [str(f) for f in files]})
    console.message(f"next: --set weights.dir={family}")


@app.command(short_help="Check weights: SHA-256, header, values, and whether they fit their network.")
def check(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FAMILY|FAMILY/STAGE|FILE|ID]...", help="Everything on this disk otherwise."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read every tensor of weights, or every byte of what was pulled, and tell each fault. Exit code 3 for any."""
    from mavcli.errors import MavError, WeightsError
    from mavcli.weights.fetch import check_pulled, published_dir, recorded
    from mavcli.weights.manifest import load_manifest, on_disk, own_families, unlisted
    from mavcli.weights.provenance import read_header
    from mavcli.weights.shelf import check_weights

    console = Console(json=json)
    manifest = load_manifest()
    chosen: list[Path] = []
    pulled: list[str] = []
    if not what:
        chosen = [entry.path for name in manifest.families for entry in on_disk(name) if entry.present]
        chosen += [path for paths in own_families().values() for path in paths] + unlisted()
        pulled = [name for name in manifest.published if recorded(published_dir(name))]
    for name in what or ():
        own = name in own_families()
        if name in manifest.published and (not own or recorded(published_dir(name))):
            pulled.append(name)
        if name not in manifest.published or own:
            chosen += named_weights(name)
    told: list[dict[str, Any]] = []

    def tell(where: str, error: MavError | None) -> None:
        told.append({"what": where, "ok": error is None, "fault": None if error is None else error.message})
        console.result(f"ok    {where}" if error is None else f"FAULT {error.message}")

    for path in chosen:
        fault: MavError | None = None
        try:
            check_weights(path, _state(path, read_header(path)))
        except WeightsError as error:
            fault = error
        tell(str(path), fault)
    for name in pulled:
        for place, pulled_fault in check_pulled(name, manifest.published[name]):
            tell(place, pulled_fault)
    console.result_object({"checked": told})
    faults = sum(not entry["ok"] for entry in told)
    if faults:
        raise WeightsError(
            f"{faults} of {len(told)} have a fault", hint="get or train them again: mav weights ls"
        )


@app.command(short_help="Delete pulled files, or weights that you added.")
def rm(
    what: Annotated[str, typer.Argument(metavar="FAMILY|FAMILY/STAGE|ID", help="What to delete.")],
    pulled: Annotated[
        bool | None,
        typer.Option("--pulled/--family", help="Which, where pulled files and a family have the same name."),
    ] = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete what `pull`, `add` or `import` brought, after asking. Weights of this installation stay."""
    from mavcli.errors import UsageError, WeightsError
    from mavcli.weights.fetch import forget, published_dir, recorded
    from mavcli.weights.manifest import load_manifest
    from mavcli.weights.shelf import shelved, take_away

    console = Console(json=json)
    manifest = load_manifest()
    if what.partition("/")[0] in manifest.families:
        raise UsageError(f"`{what}` belongs to this installation, it stays")
    source = published_dir(what) if what in manifest.published else None
    if source is not None and source.is_dir() and shelved(what) and pulled is None:
        raise UsageError(
            f"`{what}` is both, files that were pulled and a family of yours",
            hint=f"mav weights rm {what} --pulled, or --family",
        )
    folder = None if pulled is False or (pulled is None and shelved(what)) else source
    if folder is not None:
        files = [folder / name for name in recorded(folder) if (folder / name).is_file()]
    else:
        files = [] if pulled else shelved(what)
        if files and "/" not in what:
            # what `mav weights import` puts beside the weights of a family
            files += [file for file in files[0].parent.glob("recipe.yaml") if file.is_file()]
    if not files and (folder is None or not folder.is_dir()):
        raise WeightsError(f"nothing of `{what}` is here", hint="mav weights ls")
    total = sum(file.stat().st_size for file in files)
    where = folder or files[0].parent
    console.message(f"{len(files)} files, {size(total)}, in {where}")
    _agree(yes, "delete them?", f"mav weights rm {what} --yes")
    if folder is not None:
        forget(folder)
    else:
        take_away(files)
    console.result(where)
    console.result_object({"deleted": [str(file) for file in files], "bytes": total})


def _agree(yes: bool, question: str, command: str) -> None:
    """Ask on the terminal; without one nobody can answer."""
    import sys

    from mavcli.cli.console import is_terminal
    from mavcli.errors import UsageError

    if yes:
        return
    if not is_terminal(sys.stdin):
        raise UsageError("nothing was done: there is nobody to ask", hint=command)
    typer.echo(f"{question} [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done", hint=command)


def _state(path: Path, header: WeightsHeader) -> dict[str, Tensor]:
    """Names, shapes and kinds of the tensors of the network that a header describes; it takes no memory.

    Raises WeightsError for a description of no network.
    """
    import torch

    from mavcli.engine.assemble import build_network
    from mavcli.specs import ClassifierSpec, MotionJudgeSpec
    from mavcli.weights.provenance import as_described

    spec = header.spec
    with as_described(path), torch.device("meta"):
        if isinstance(spec, ClassifierSpec):
            from mavcli.evaluation.classifier import Classifier

            return dict(Classifier(spec).state_dict())
        if isinstance(spec, MotionJudgeSpec):
            from mavcli.evaluation.trajectory import MotionJudge

            return dict(MotionJudge(spec).state_dict())
        return dict(build_network(spec).state_dict())


def _show_published(console: Console, name: str, entry: Published) -> dict[str, Any]:
    from mavcli.weights.fetch import published_dir, recorded

    folder = published_dir(name)
    here = recorded(folder)
    facts = {
        "published": f"{name}, {entry.title}",
        "serves": f"stages {', '.join(entry.stages)}",
        "size": _about(entry),
        "licence": entry.licence,
        "notice": entry.notice,
        "source": f"{entry.source} at {entry.revision}" if entry.hub else entry.source,
        "here": str(folder) if here else f"no, mav weights pull {name}",
        "import": f"mav weights import {name}",
    }
    for line in table([(key, value) for key, value in facts.items() if value]):
        console.result(line)
    console.result("files")
    rows = [
        (
            f"  {file.path}",
            file.stage,
            size(file.size) if file.size else "",
            f"SHA-256 {file.sha256[:12]}" if file.sha256 else "",
            "here" if file.path in here else "",
        )
        for file in entry.files
    ]
    for line in table(rows):
        console.result(line)
    for network in entry.networks:
        console.result(f"network {network.stage}, {network.parameters / 1e6:.1f} M parameters")
        for line in _network(network.spec):
            console.result(line)
    return {"published": {"id": name, **entry.model_dump(mode="json")}, "pulled": here}


def _network(spec: Any) -> list[str]:
    """The fields of a spec that are not the default, a line each."""
    fields = type(spec).model_fields
    return [f"  {name}: {_short(value)}" for name, value in spec if value != fields[name].default]


def _about(entry: Published) -> str:
    return f"about {size(entry.size)}" if entry.size else "size not stated"


def _pulled(count: int, files: int) -> str:
    return "not here" if not count else "here" if count == files else f"{count} of {files} files here"


def _pull_facts(plan: Pull) -> dict[str, str]:
    entry = plan.entry
    near = [piece for piece in plan.missing if piece.here is not None]
    fetched = len(plan.missing) - len(near)
    parts = []
    if fetched:
        unknown = f", {plan.unknown} of unknown size" if plan.unknown else ""
        parts.append(f"{fetched} files to fetch, {size(plan.to_fetch)}{unknown}")
    if near:
        parts.append(f"{len(near)} files on this disk, {size(sum(piece.size or 0 for piece in near))}")
    facts = {
        "weights": f"{plan.name}, {entry.title}",
        "licence": entry.licence,
        "notice": entry.notice,
        "source": entry.source,
        "size": "; ".join(parts),
        "free": f"{size(plan.free)} in {plan.folder}",
    }
    return {key: value for key, value in facts.items() if value}


def _pulled_object(plan: Pull, *, dry_run: bool) -> dict[str, Any]:
    return {
        "id": plan.name,
        "licence": plan.entry.licence,
        "folder": str(plan.folder),
        "importer": plan.entry.importer,
        "dry_run": dry_run,
        "files": [
            {"path": str(piece.target), "bytes": piece.size, "fetched": not piece.done and not dry_run}
            for piece in plan.pieces
        ],
    }


def _serves(role: str) -> list[str]:
    from mavcli.weights.shelf import SERVES

    return list(SERVES.get(role, ()))


def named_weights(what: str) -> list[Path]:
    """The weights that `what` names, present ones only; raises WeightsError where there are none."""
    import difflib

    from mavcli.errors import WeightsError
    from mavcli.files import finished_files
    from mavcli.weights.manifest import family, load_manifest, on_disk
    from mavcli.weights.provenance import common_name, weight_files
    from mavcli.weights.shelf import shelved

    path = Path(what).expanduser()
    if path.is_file() or weight_files(path):
        return [path if path.is_file() and common_name(path) == path else common_name(path)]
    if path.is_dir() and what not in load_manifest().families:
        found = sorted({common_name(file) for file in finished_files(path, "*.safetensors")})
        if not found:
            raise WeightsError(f"the folder {path} holds no safetensors")
        return found
    if own := shelved(what):
        return sorted({common_name(file) for file in own})
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


def named_network(what: str) -> Path:
    """The one network that `what` names."""
    from mavcli.errors import UsageError

    found = named_weights(what)
    if len(found) > 1:
        names = ", ".join(path.stem for path in found)
        raise UsageError(f"{what} holds {len(found)} networks ({names}), one is wanted: name its file")
    return found[0]


def _facts(
    path: Path, header: WeightsHeader, index: dict[str, TensorInfo], total: int, files: int
) -> dict[str, str]:
    parameters = sum(info.parameters for info in index.values())
    kinds = ", ".join(sorted({info.dtype for info in index.values()}))
    where = f"{size(total)} in {files} files" if files > 1 else size(total)
    facts = {
        "weights": str(path),
        "serves": _stages_in_words(header),
        "size": f"{parameters / 1e6:.2f} M parameters in {len(index)} tensors ({kinds}), {where}",
        "trained": f"{header.step} steps, {header.samples_seen} samples" if header.step else "not recorded",
        "from": "; ".join(f"{parent.role} at step {parent.step}" for parent in header.parents) or "scratch",
        "licence": header.licence,
        "source": header.source or "not recorded",
        "recipe": header.recipe_sha256 or "not recorded",
        "sha256": header.content_sha256 or "not recorded",
    }
    if header.imported_from:
        sources = ", ".join(f"{file.name} ({file.sha256[:12]})" for file in header.imported_from)
        facts["imported"] = f"by {header.importer} from {sources}"
    if header.schedule is not None:
        schedule = header.schedule
        facts["schedule"] = f"{schedule.name}, {schedule.timesteps} steps, predicts {schedule.prediction}"
    return facts


def _stages_in_words(header: WeightsHeader) -> str:
    """`stage sr_lt; as a picture network sr_l`: what the weights can be used as."""
    stages = _serves(header.role)
    if not stages:
        return "no stage, it measures"
    words = f"stage {stages[0]}" + (f", and {' and '.join(stages[1:])}" if len(stages) > 1 else "")
    return words if header.inflation is None else f"{words}; its temporal layers are untrained"


def _name(files: tuple[Path, ...]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"


def _short(value: object) -> str:
    from mavcli.errors import one_line

    if isinstance(value, tuple) and len(value) > 12:
        value = f"{len(value)} entries: {', '.join(map(str, value[:8]))} ..."
    elif isinstance(value, tuple):
        value = "[" + ", ".join(map(str, value)) + "]"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return one_line(text, limit=400)
