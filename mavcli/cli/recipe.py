"""`mav recipe ls|show|cp|check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mavcli.cli.console import Console, table, wrapped
from mavcli.cli.options import ForceOption, JsonOption, QuietOption, SetOption

if TYPE_CHECKING:
    from mavcli.recipe.resolve import Resolved

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List, show, copy and check recipes.")

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe's name, or a YAML file.")]


@app.command(short_help="List the recipes that come with mav.")
def ls(json: JsonOption = False) -> None:
    """List the recipes that come with mav."""
    from mavcli.recipe.load import list_recipes, load_recipe

    console = Console(json=json)
    found = [(name, load_recipe(path).recipe.description, path) for name, path in list_recipes().items()]
    lines = table([(name, description) for name, description, _ in found])
    for line in wrapped(lines, indent=max((len(name) for name, _, _ in found), default=0) + 2):
        console.result(line)
    console.result_object(
        {"recipes": [{"name": name, "description": text, "path": str(path)} for name, text, path in found]}
    )


@app.command(short_help="Show a whole recipe, and where each entry comes from.")
def show(
    name: Name,
    set_: SetOption = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="KEY", help="Show this part alone, for example `train.stages`."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a whole recipe, after its parents, --set and defaults, and where each entry comes from.

    The output is itself a recipe. Entries without a remark have the default.
    """
    import difflib
    from json import loads

    from mavcli.errors import UsageError
    from mavcli.recipe.load import as_yaml, load_recipe
    from mavcli.recipe.yaml_tree import dotted

    console = Console(json=json)
    loaded = load_recipe(name, sets=set_ or ())
    lines = list(as_yaml(loaded.recipe))
    if only is not None:
        known = [dotted(key) for _, key, _ in lines]
        if only not in known:
            near = difflib.get_close_matches(only, known, n=1)
            meant = f", did you mean `{near[0]}`" if near else ""
            raise UsageError(f"the recipe has no entry `{only}`{meant}", hint=f"mav recipe show {name}")
        part = tuple(only.split("."))
        # With the maps round it, so that what is shown can stand in a recipe.
        lines = [line for line in lines if line[1][: len(part)] == part or line[1] == part[: len(line[1])]]
    for depth, key, text in lines:
        line = "  " * depth + text
        origin = loaded.origins.get(key)
        shown = origin is not None and not text.endswith(":")
        console.result(f"{line:<46}  # {origin}" if shown else line)
    console.result_object(
        {
            "recipe": loads(loaded.recipe.model_dump_json()),
            "sha256": loaded.sha256,
            "path": str(loaded.path),
            "sources": list(loaded.sources),
        }
    )


@app.command(short_help="Copy a recipe, to change it.")
def cp(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; a folder keeps the name.")],
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Copy a recipe, to change it."""
    from mavcli.files import make_folder, refuse_existing, write_bytes
    from mavcli.recipe.load import find_recipe, load_recipe

    console = Console(json=json)
    source = find_recipe(name)
    load_recipe(source)
    target = file / source.name if file.is_dir() else file
    make_folder(target.parent)
    refuse_existing(target, force, hint="--force overwrites it")
    write_bytes(target, source.read_bytes(), overwrite=force)
    load_recipe(target)
    console.result(target)
    console.result_object({"path": str(target)})


@app.command(short_help="Name every fault, or say how it would run here.")
def check(name: Name, set_: SetOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Check a recipe: name every fault at once, or say how it would run on this machine."""
    from mavcli.recipe.load import load_recipe
    from mavcli.recipe.remarks import remarks
    from mavcli.recipe.resolve import probe_machine, resolve

    console = Console(json=json, quiet=quiet)
    loaded = load_recipe(name, sets=set_ or ())
    resolved = resolve(loaded.recipe, machine=probe_machine())
    beyond = remarks(loaded.recipe)
    for text in beyond:
        console.warning(text)
    console.result(f"ok: {loaded.recipe.name}, from {', '.join(loaded.sources)}")
    if not quiet:
        for line in describe(resolved):
            console.result(line)
    console.result_object(
        {
            "ok": True,
            "name": loaded.recipe.name,
            "sha256": loaded.sha256,
            "sources": list(loaded.sources),
            "backend": resolved.backend,
            "dtype": resolved.dtype,
            "threads": resolved.threads,
            "reasons": resolved.reasons,
            "warnings": beyond,
        }
    )


def describe(resolved: Resolved) -> list[str]:
    """How a recipe runs here, one line for each decision with its reason."""
    return table(
        [
            ("backend", resolved.backend, resolved.reasons["backend"]),
            ("arithmetic", resolved.dtype, resolved.reasons["dtype"]),
            ("threads", str(resolved.threads), resolved.reasons["threads"]),
        ]
    )
