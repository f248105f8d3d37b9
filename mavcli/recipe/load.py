"""YAML -> a validated Recipe (design, section 5).

Order, later wins: schema defaults, `extends` parents, the file, `--set a.b=c`, dedicated flags. Every fault is
reported at once, as `file:line: key: what was wrong`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from mavcli.errors import RecipeError
from mavcli.recipe.schema import STAGES, Data, Recipe, Train, Weights
from mavcli.recipe.share import share_dir
from mavcli.recipe.yaml_tree import MAX_BYTES, Fault, Key, Origin, Tree, dotted, parse
from mavcli.specs import Spec

_MAX_PARENTS = 16
_PATHS: tuple[Key, ...] = tuple(
    [("weights", name) for name in Weights.model_fields]
    + [("train", "data", name) for name in Data.model_fields]
    + [("train", "stages", name, "start") for name in STAGES]
)
_STARTS = ("auto", "scratch", "own")  # what `start` may be beside a path
# They name one file, so a child does not take them from its parent.
_OWN = ("name", "description")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and where it came from.

    `sources` are the files and flags that made it, the strongest last; `origins` tells of each written key path where
    it was written. `sha256` is over what the recipe says, with paths as written: the same on every machine.
    """

    recipe: Recipe
    path: Path
    sources: tuple[str, ...]
    sha256: str
    origins: Mapping[Key, Origin]


def load_recipe(
    name_or_path: str | Path, *, sets: Sequence[str] = (), overrides: Mapping[str, object] | None = None
) -> LoadedRecipe:
    """Read, merge and check a recipe.

    `name_or_path` is a shipped recipe's name (`pocket`, `train/small`) or a file. `sets` are `a.b=c` texts of `--set`.
    `overrides` maps dotted keys to values of dedicated flags; None means that the flag was not given.
    Raises RecipeError with every fault, one a line.
    """
    path = find_recipe(name_or_path)
    sources: list[str] = []
    tree = _read_with_parents(path, (), sources)
    for text in sets:
        _apply_set(tree, text, sources)
    for key, value in (overrides or {}).items():
        if value is not None:
            flag = f"--{key.rpartition('.')[2].replace('_', '-')}"
            shown = value if isinstance(value, str) else json.dumps(value)
            tree.put(tuple(key.split(".")), Tree(value, {(): Origin(flag, text=shown)}))
            sources.append(f"{flag} {shown}")
    if tree.faults and not isinstance(tree.value, dict):
        raise _error(tree.faults)
    # Kept, so that the digest does not depend on where the recipe lies.
    as_written = {key: _get(tree.value, key) for key in _path_keys(tree.value)}
    _make_paths_absolute(tree, path)
    _spread_training_defaults(tree)
    recipe, faults = _validate(tree)
    if recipe is None or faults:
        raise _error(faults)
    return LoadedRecipe(recipe, path, tuple(sources), _digest(recipe, as_written), tree.origins)


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a shipped recipe's name or of a path. Raises RecipeError with the nearest names."""
    text = str(name_or_path)
    shipped = list_recipes()
    if text in shipped:
        return shipped[text]
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(
            f"recipe `{text}` is a folder", hint="give the YAML file itself, or a name of `mav recipe ls`"
        )
    if path.suffix in (".yaml", ".yml") or "/" in text:
        near = difflib.get_close_matches(path.name.removesuffix(path.suffix), shipped, n=3)
        what = f"recipe file `{text}` does not exist"
    else:
        near = difflib.get_close_matches(text, shipped, n=3)
        what = f"there is no recipe `{text}`"
    if near:
        what += f", did you mean {_either(near)}"
    raise RecipeError(what, hint="mav recipe ls")


def list_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe, in the order of the names."""
    root = share_dir("recipes")
    files = sorted(root.rglob("*.yaml"))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def as_yaml(recipe: Recipe) -> Iterator[tuple[int, Key, str]]:
    """The resolved recipe as YAML lines: depth, key path, and the line without its indent."""
    yield from _yaml_lines(json.loads(recipe.model_dump_json()), (), 0)


def _yaml_lines(value: dict[str, Any], key: Key, depth: int) -> Iterator[tuple[int, Key, str]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield depth, (*key, name), f"{name}:"
            yield from _yaml_lines(item, (*key, name), depth + 1)
        else:
            yield depth, (*key, name), f"{name}: {_yaml_value(item)}"


def _yaml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_yaml_value(item) for item in value) + "]"
    if isinstance(value, str):
        plain = parse(value, "", flag=True)
        # Quoted unless it reads back as itself, in a list too.
        safe = plain.value == value and not plain.faults and not set(value) & set(",[]{}#:&*!|>'\"%@`")
        return value if safe and value == value.strip() and value else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _read_with_parents(path: Path, children: tuple[Path, ...], sources: list[str]) -> Tree:
    """A file laid over the recipes that it extends."""
    tree = _read(path)
    label = _display(path)
    parent = tree.value.pop("extends", None) if isinstance(tree.value, dict) else None
    if parent is not None:
        origin = tree.origin(("extends",))
        chain = (*children, path.resolve())
        base: Tree | None = None
        if not isinstance(parent, str):
            tree.faults.append(Fault(origin, ("extends",), "must be the name of a recipe or a path"))
        elif (found := _parent_file(parent, path)) is None:
            near = difflib.get_close_matches(parent, list_recipes(), n=3)
            meant = f", did you mean {_either(near)}" if near else ""
            tree.faults.append(Fault(origin, ("extends",), f"there is no recipe `{parent}`{meant}"))
        elif found.resolve() in chain:
            circle = [*chain[chain.index(found.resolve()) :], found.resolve()]
            names = " -> ".join(file.name for file in circle)
            tree.faults.append(Fault(origin, ("extends",), f"goes round in a circle: {names}"))
        elif len(chain) > _MAX_PARENTS:
            tree.faults.append(Fault(origin, ("extends",), f"more than {_MAX_PARENTS} recipes deep"))
        else:
            base = _read_with_parents(found, chain, sources)
        if base is not None and isinstance(base.value, dict):
            for name in _OWN:
                base.value.pop(name, None)
                base.origins.pop((name,), None)
            base.put((), tree)
            tree = base
    if isinstance(tree.value, dict) and "name" not in tree.value:
        tree.value["name"] = path.stem
    sources.append(label)
    return tree


def _parent_file(name: str, child: Path) -> Path | None:
    shipped = list_recipes()
    if name in shipped:
        return shipped[name]
    path = child.parent / Path(name).expanduser()
    return path if path.is_file() else None


def _read(path: Path) -> Tree:
    label = _display(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            return Tree(
                None,
                {},
                [Fault(Origin(label, 1), (), f"larger than {MAX_BYTES // 1024} KiB, a recipe is not")],
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Tree(
            None, {}, [Fault(Origin(label, 1), (), f"no UTF-8 text: byte {error.start} is no character")]
        )
    except OSError as error:
        raise RecipeError(f"cannot read {label}: {error.strerror or error}") from error
    tree = parse(text, label)
    if tree.value is None and not tree.faults:
        tree.value = {}
    if not isinstance(tree.value, dict):
        if not tree.faults:
            tree.faults.append(Fault(Origin(label, 1), (), "must be a map of keys and values"))
        tree.value = None
    return tree


def _apply_set(tree: Tree, text: str, sources: list[str]) -> None:
    flag = f"--set {text}"
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    sources.append(flag)
    if not equals or not all(key):
        tree.faults.append(Fault(Origin(flag), (), "must be `KEY=VALUE`, for example `--set output.fps=12`"))
        return
    parsed = parse(value, flag, flag=True)
    parsed.faults = [Fault(fault.origin, key + fault.key, fault.what) for fault in parsed.faults]
    if key == ("extends",):
        tree.faults.append(Fault(Origin(flag), (), "a recipe cannot be changed with --set, use --recipe"))
        return
    for length in range(1, len(key)):
        if isinstance(_get(tree.value, key[:length]), list):
            whole = dotted(key[:length])
            tree.faults.append(Fault(Origin(flag), key, f"a list is set as a whole, `--set {whole}=[...]`"))
            return
    if isinstance(tree.value, dict):
        parsed.origins.setdefault((), Origin(flag, text=value))
        tree.put(key, parsed)


def _make_paths_absolute(tree: Tree, path: Path) -> None:
    """Relative paths belong to the file they stand in; those of flags belong to the working folder."""
    for key in _path_keys(tree.value):
        value = _get(tree.value, key)
        if not isinstance(value, str) or not value or (key == ("weights", "dir") and _is_family(value)):
            continue
        if (key[0] == "weights" and value in STAGES) or (key[-1] == "start" and value in _STARTS):
            continue
        origin = tree.origin(key)
        base = _base_of(origin, path)
        _put(tree.value, key, str((base / Path(value).expanduser()).absolute()))


def _path_keys(value: Any) -> Iterator[Key]:
    """The keys of all paths that a recipe may say, those of a list of folders among them."""
    for key in _PATHS:
        named = _get(value, key)
        if isinstance(named, list):
            yield from ((*key, i, "folder") for i in range(len(named)))
        else:
            yield key


def _base_of(origin: Origin, path: Path) -> Path:
    return Path(origin.source).expanduser().parent if origin.line else Path.cwd()


def _is_family(value: str) -> bool:
    """Whether `weights.dir` is the name of a family and no path."""
    return "/" not in value and not value.startswith((".", "~")) and not value.endswith(".safetensors")


def _spread_training_defaults(tree: Tree) -> None:
    """`train.defaults` under what each stage says itself."""
    defaults = _get(tree.value, ("train", "defaults"))
    stages = _get(tree.value, ("train", "stages"))
    if "defaults" not in Train.model_fields or not isinstance(defaults, dict) or not isinstance(stages, dict):
        return
    at = len(("train", "defaults"))
    origins = {key[at:]: origin for key, origin in tree.origins.items() if key[:at] == ("train", "defaults")}
    for name, own in list(stages.items()):
        if not isinstance(own, dict) and own is not None:
            continue
        here: Key = ("train", "stages", name)
        stage = Tree(own or {}, {key[3:]: o for key, o in tree.origins.items() if key[:3] == here})
        merged = Tree(json.loads(json.dumps(defaults)), dict(origins))
        merged.put((), stage)
        stages[name] = merged.value
        for key, origin in merged.origins.items():
            tree.origins[here + key] = origin


def _validate(tree: Tree) -> tuple[Recipe | None, list[Fault]]:
    """The recipe and everything wrong with it, as far as one can tell."""
    faults = list(tree.faults)
    stages = _get(tree.value, ("train", "stages"))
    for name in stages if isinstance(stages, dict) else ():
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1)
            meant = (
                f"did you mean `{near[0]}`"
                if near
                else f"the stages are {', '.join(f'`{s}`' for s in STAGES)}"
            )
            key: Key = ("train", "stages", name)
            faults.append(Fault(tree.origin(key), key, f"unknown stage, {meant}"))
    known = {fault.key for fault in faults if fault.key}
    recipe = None
    try:
        recipe = Recipe.model_validate_json(json.dumps(tree.value))
    except ValidationError as error:
        groups: dict[Key, list[Any]] = {}
        for item in error.errors():
            key, rest = _key_of(item["loc"], tree.value)
            if item["type"] in ("missing", "extra_forbidden") and rest:
                key, rest = (*key, rest[0]), rest[1:]
            if key == ("train",) and any(k[:2] == ("train", "stages") for k in known):
                continue  # the schema's own word on unknown stages, which has no line
            groups.setdefault(key, []).append(item)
        for path, items in groups.items():
            below = [other[len(path)] for other in groups if other[: len(path)] == path and other != path]
            if any(isinstance(part, int) for part in below):
                continue  # it may be a list or something else, and is a list: only what is wrong in it is told
            if not any(path[:length] in known for length in range(1, len(path) + 1)):
                at = getattr(
                    items[0].get("ctx", {}).get("error"), "at", ()
                )  # a check of several keys names one
                faults.append(Fault(tree.origin((*path, *at)), (*path, *at), _words(path, items, tree)))
    return recipe, list(dict.fromkeys(faults))


def _error(faults: Sequence[Fault]) -> RecipeError:
    order = {
        source: place for place, source in enumerate(dict.fromkeys(fault.origin.source for fault in faults))
    }
    ranked = sorted(faults, key=lambda fault: (order[fault.origin.source], fault.origin.line))
    # A value that many stages inherit is one fault, told once.
    told: dict[tuple[Origin, str], Fault] = {}
    for fault in ranked:
        told.setdefault((fault.origin, fault.what), fault)
    return RecipeError("\n".join(str(fault) for fault in told.values()))


def _key_of(loc: tuple[int | str, ...], value: Any) -> tuple[Key, tuple[int | str, ...]]:
    """The part of pydantic's location that is a path of the document, and the rest."""
    key: Key = ()
    for place, part in enumerate(loc):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif isinstance(value, list) and isinstance(part, str):
            continue  # the name of a union's member
        else:
            return key, loc[place:]
        key = (*key, part)
    return key, ()


def _words(key: Key, items: Sequence[Any], tree: Tree) -> str:
    """What is wrong with one key; a union gives one item for each of its members."""
    literals = [item for item in items if item["type"] == "literal_error"]
    if literals and len(items) > 1:
        others = [_wanted(key, item) for item in items if item["type"] != "literal_error"]
        either = " or ".join(dict.fromkeys([*_literals(key), *filter(None, others)]))
        return f"{_shown(key, items[0], tree)} must be {either}"
    wanted = list(dict.fromkeys(filter(None, (_wanted(key, item) for item in items))))
    if len(items) > 1 and wanted:
        return f"{_shown(key, items[0], tree)} must be {' or '.join(wanted)}"
    item = items[0]
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(key)
    if kind == "literal_error":
        choices = [choice.strip("`") for choice in _literals(key)]
        near = difflib.get_close_matches(str(item["input"]), choices, n=1)
        meant = f", did you mean `{near[0]}`" if near else ""
        return f"{_shown(key, item, tree)} must be one of {', '.join(f'`{c}`' for c in choices)}{meant}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", item["msg"]))
    if kind == "finite_number":
        return f"{_shown(key, item, tree)} must be a finite number"
    if wanted:
        return f"{_shown(key, item, tree)} must be {wanted[0]}"
    return str(item["msg"])[:1].lower() + str(item["msg"])[1:]


_LIMITS = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "`true` or `false`",
    "string_type": "text (put it in quotes)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "none_required": "null",
}


def _wanted(key: Key, item: Any) -> str:
    kind = item["type"]
    if kind in _LIMITS:
        return _range(key) or f"{_LIMITS[kind]} {_number(next(iter(item['ctx'].values())))}"
    if kind == "missing" and item["loc"] and isinstance(item["loc"][-1], int):
        return f"a list of more than {item['loc'][-1]} items"
    if kind == "too_long":
        return f"a list of at most {item['ctx']['max_length']} items"
    if kind == "too_short":
        return f"a list of at least {item['ctx']['min_length']} items"
    return _WANTED.get(kind, "")


def _shown(key: Key, item: Any, tree: Tree) -> str:
    """The value as its writer wrote it."""
    value = item["input"]
    text = tree.origins[key].text if key in tree.origins else ""
    shown = text or json.dumps(value, ensure_ascii=False)
    return f"`{shown if len(shown) <= 40 else shown[:37] + '...'}`"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if abs(value) >= 10_000 else str(value)


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _unknown_key(key: Key) -> str:
    name = str(key[-1])
    names = _names_at(key[:-1])
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"unknown key, did you mean `{near[0]}`"
    elsewhere = [dotted(path) for path in _all_keys() if path[-1] == name]
    if elsewhere:
        return f"unknown key here, did you mean {_either(elsewhere[:2])}"
    return (
        f"unknown key, the keys here are {', '.join(f'`{n}`' for n in names)}"
        if len(names) <= 12
        else "unknown key"
    )


def _annotations(kind: Any) -> Iterator[Any]:
    """The members of an annotation, with unions and `Annotated` taken apart."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _annotations(member)
    else:
        yield kind


def _kinds_at(key: Key) -> list[Any]:
    kinds: list[Any] = [Recipe]
    for part in key:
        inner: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Spec) and part in kind.model_fields:
                inner += _annotations(kind.model_fields[str(part)].annotation)
            elif get_origin(kind) is dict:
                inner += _annotations(get_args(kind)[1])
            elif get_origin(kind) is tuple and isinstance(part, int):
                members = [member for member in get_args(kind) if member is not Ellipsis]
                inner += _annotations(members[min(part, len(members) - 1)])
        kinds = inner
    return kinds


def _range(key: Key) -> str:
    """`0.1 to 240`: what the number at `key` may be; empty where it has no two ends."""
    for node in _schema_at(key):
        low, high, below = node.get("minimum"), node.get("maximum"), node.get("exclusiveMaximum")
        if low is not None and (high is not None or below is not None):
            return f"{_number(low)} to {_number(high) if below is None else f'less than {_number(below)}'}"
    return ""


def _schema_at(key: Key) -> list[dict[str, Any]]:
    """What the recipe's JSON schema says of `key`: a node for each member of a union."""
    whole = _json_schema()

    def members(node: Any) -> Iterator[dict[str, Any]]:
        if "$ref" in node:
            yield from members(whole["$defs"][node["$ref"].rpartition("/")[2]])
        for inner in (*node.get("anyOf", ()), *node.get("allOf", ())):
            yield from members(inner)
        yield node

    def inside(node: dict[str, Any], part: str | int) -> Any:
        if isinstance(part, str):
            return node.get("properties", {}).get(part) or node.get("additionalProperties")
        items = node.get("prefixItems")
        return items[part] if items and part < len(items) else node.get("items")

    nodes = list(members(whole))
    for part in key:
        found = [inside(node, part) for node in nodes]
        nodes = [one for node in found if isinstance(node, dict) for one in members(node)]
    return nodes


@functools.cache
def _json_schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _names_at(key: Key) -> list[str]:
    if key == ("train", "stages"):
        return list(STAGES)
    names: list[str] = ["extends"] if not key else []
    for kind in _kinds_at(key):
        if isinstance(kind, type) and issubclass(kind, Spec):
            names += kind.model_fields
    return names


def _literals(key: Key) -> list[str]:
    return [f"`{c}`" for kind in _kinds_at(key) if get_origin(kind) is Literal for c in get_args(kind)]


@functools.cache
def _all_keys() -> tuple[Key, ...]:
    found: list[Key] = []

    def walk(kind: Any, key: Key) -> None:
        for member in _annotations(kind):
            if isinstance(member, type) and issubclass(member, Spec):
                for name, entry in member.model_fields.items():
                    found.append((*key, name))
                    walk(entry.annotation, (*key, name))
            elif get_origin(member) is dict:
                walk(get_args(member)[1], (*key, "STAGE"))

    walk(Recipe, ())
    return tuple(found)


def _digest(recipe: Recipe, as_written: Mapping[Key, Any]) -> str:
    said = json.loads(recipe.model_dump_json())
    for key, value in as_written.items():
        if value is not None:
            _put(said, key, value)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _get(value: Any, key: Key) -> Any:
    for part in key:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        else:
            return None
    return value


def _put(value: Any, key: Key, new: Any) -> None:
    for part in key[:-1]:
        value = value[part]
    value[key[-1]] = new


def _display(path: Path) -> str:
    """As short as it stays unambiguous: relative where it is below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
