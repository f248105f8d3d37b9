"""The model card that goes out with exported weights: a README that the hub and people read.

What it says is in the headers, the recipe and what the publisher gives. Nothing is made up: what nobody has told is named
as missing, in the card and to the one who exports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavcli.errors import DiskError, UsageError
from mavcli.files import is_sealed, sealed, write_text
from mavcli.recipe.load import as_yaml
from mavcli.recipe.schema import Recipe
from mavcli.specs import UNetSpec
from mavcli.weights.export import Exported
from mavcli.weights.licences import HUB, UNKNOWN
from mavcli.weights.provenance import WeightsHeader, read_index

_TITLES = {
    "clip": "C_x and C_y, CLIP's towers", "prior": "P, text to a CLIP image embedding", "decoder": "D, a picture",
    "decoder_t": "D^t, 16 key frames", "interp": "↑F, frames between key frames", "sr_l": "SR_l, frame by frame",
    "sr_lt": "SR_l^t, over space and time", "sr_h": "SR_h, frame by frame",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """The card that was written, and what it could not say."""

    path: Path
    missing: tuple[str, ...]


def read_metrics(path: Path) -> dict[str, Any]:
    """Measurements as `mav eval --json` prints them: one JSON object. Raises UsageError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the metrics in {path}: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object, the output of `mav eval ... --json` is wanted")
    return value


def refuse_card(out: Path, *, force: bool) -> None:
    """DiskError where `out`/README.md is not mav's own, unchanged, and `force` is not given; before anything is written."""
    path = out / "README.md"
    if not force and path.exists() and not is_sealed(path):
        raise DiskError(
            f"{path} exists and is no card as mav wrote it",
            hint="--force overwrites it, --out chooses another folder",
        )


def write_card(
    out: Path,
    done: Exported,
    *,
    layout: str,
    recipe: Recipe | None = None,
    data: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Card:
    """`out`/README.md for what was exported; `refuse_card` says whether it may be. Raises DiskError."""
    missing = [
        name
        for name, told in (("the recipe", recipe), ("the training data", data), ("metrics", metrics))
        if told is None
    ]
    missing += [
        f"the licence of {name}" for name, (header, _) in done.networks.items() if header.licence == UNKNOWN
    ]
    lines = [
        *_front_matter(done, layout),
        f"# {_title(out, recipe)}",
        "",
        _introduction(done, layout, recipe),
        "",
        *_networks(done),
        *_usage(out, layout, recipe),
        *_data(done, recipe, data),
        *_metrics(metrics),
        *_licences(done),
        *_recipe(recipe),
    ]
    path = out / "README.md"
    write_text(path, sealed("\n".join(lines), comment="<!-- {} -->"), overwrite=True)
    return Card(path, tuple(missing))


def _title(out: Path, recipe: Recipe | None) -> str:
    return recipe.name if recipe is not None else out.absolute().name


def _headers(done: Exported) -> list[WeightsHeader]:
    return [header for header, _ in done.networks.values()]


def _front_matter(done: Exported, layout: str) -> list[str]:
    licences = list(dict.fromkeys(header.licence for header in _headers(done)))
    one = HUB.get(licences[0]) if len(licences) == 1 else None
    return [
        "---",
        f"license: {one or 'other'}",
        *([] if one else [f"license_name: {json.dumps('; '.join(licences))}"]),
        f"library_name: {'diffusers' if layout == 'diffusers' else 'mavcli'}",
        f"pipeline_tag: {'text-to-image' if layout == 'diffusers' else 'text-to-video'}",
        "tags: [make-a-video, unclip]",
        "---",
        "",
    ]


def _introduction(done: Exported, layout: str, recipe: Recipe | None) -> str:
    names = ", ".join(f"`{name}`" for name in done.networks)
    text = f"Networks of a Make-A-Video cascade (arXiv 2209.14792): {names}."
    if recipe is not None and recipe.description:
        text += f" Recipe `{recipe.name}`: {recipe.description}."
    untrained = [
        name
        for name, (header, _) in done.networks.items()
        if header.inflation and not header.inflation.trained
    ]
    if untrained:
        text += f" **The temporal layers of {', '.join(f'`{n}`' for n in untrained)} are untrained**: frames do not cohere."
    if layout == "diffusers":
        text += " In the layout of diffusers' unCLIP pipelines."
    for line in done.left_out:
        text += f" Left out: {line}."
    return text


def _networks(done: Exported) -> Iterator[str]:
    yield from ("## Networks", "")
    yield "| name | what | parameters | trained | from | SHA-256 of the tensors |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, (header, source) in done.networks.items():
        parameters = sum(info.parameters for info in read_index(source).values())
        trained = (
            f"{header.step} steps, {header.samples_seen} samples" if header.step else header.importer or "-"
        )
        parents = ", ".join(f"{p.role} ({p.content_sha256[:12]})" for p in header.parents)
        origin = (
            parents or ", ".join(f"{f.name} ({f.sha256[:12]})" for f in header.imported_from) or "scratch"
        )
        sha = header.content_sha256[:16]
        yield f"| `{name}` | {_TITLES.get(header.role, header.role)} | {parameters / 1e6:.1f} M | {trained} | {origin} | `{sha}` |"
    yield ""
    for name, (header, _) in done.networks.items():
        told = json.dumps(header.spec.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
        kind = (
            "U-Net" if isinstance(header.spec, UNetSpec) else type(header.spec).__name__.removesuffix("Spec")
        )
        yield f"- `{name}`, {kind}: `{told}`"
        if header.inflation is not None:
            inflation = header.inflation
            yield (
                f"  inflated: {inflation.added / 1e6:.1f} M of {inflation.parameters / 1e6:.1f} M parameters added, max "
                f"|difference| per frame from the image network {max(inflation.difference):g}"
            )
    yield ""


def _usage(out: Path, layout: str, recipe: Recipe | None) -> Iterator[str]:
    yield from ("## Use", "")
    if layout == "diffusers":
        yield "Each folder loads with `from_pretrained(FOLDER)` of the class that its `config.json` names."
    else:
        name = f"{recipe.name}" if recipe is not None else "RECIPE"
        yield from (
            "```",
            "pip install mavcli",
            f'mav generate "a prompt" --recipe {name} --set weights.dir=./',
            "```",
        )
        yield "Run it in this folder; each file's header says what it is: `mav weights show FILE`."
    yield ""


def _data(done: Exported, recipe: Recipe | None, data: str | None) -> Iterator[str]:
    yield from ("## Training data", "")
    yield data or (
        "Not stated. Whoever publishes these weights says here what the pictures and clips were, where they come from and by "
        "what right they were used."
    )
    captions = [h.role for h in _headers(done) if h.role in ("clip", "prior")]
    video = [h.role for h in _headers(done) if h.role in ("decoder_t", "interp", "sr_lt")]
    yield ""
    if captions:
        yield f"Captions were seen by {', '.join(f'`{r}`' for r in captions)} alone (Make-A-Video, section 3.1)."
    if video:
        yield f"{', '.join(f'`{r}`' for r in video)} learned from clips without any words (section 3.2)."
    if recipe is not None:
        trained = recipe.train.data
        sources = trained.model_dump(exclude_defaults=True)
        for kind in ("image", "pairs", "video"):  # no path of the publisher's
            names = [Path(folder.folder).name for folder in trained.folders(kind)]
            if isinstance(sources.get(kind), str):
                sources[kind] = names[0]
            elif names:
                weights = [folder.weight for folder in trained.folders(kind)]
                sources[kind] = dict(zip(names, weights, strict=True))
        yield f"The recipe's data: `{json.dumps(sources)}`."
    yield ""


def _metrics(metrics: Mapping[str, Any] | None) -> Iterator[str]:
    yield from ("## Metrics", "")
    if metrics is None:
        yield from ("None were measured, or none were given to this card.", "")
        return
    rows = list(_flat(metrics))
    yield from ("| measure | value |", "| --- | --- |")
    for name, value in rows:
        yield f"| {name} | {value:.6g} |" if isinstance(value, float) else f"| {name} | {value} |"
    yield ""


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and short texts of a nested object, by dotted name."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")
        elif isinstance(item, int | float) or (isinstance(item, str) and len(item) <= 80 and "|" not in item):
            yield f"{prefix}{name}", item


def _licences(done: Exported) -> Iterator[str]:
    yield from ("## Licence", "")
    groups: dict[str, list[str]] = {}
    for name, (header, _) in done.networks.items():
        groups.setdefault(header.licence, []).append(f"`{name}`")
    for licence, names in groups.items():
        yield f"- {licence}: {', '.join(names)}"
    if any("RAIL" in licence for licence in groups):
        yield ""
        yield "A RAIL licence has use restrictions that go on to everything made from the weights; publish its text beside them."
    yield ""


def _recipe(recipe: Recipe | None) -> Iterator[str]:
    yield from ("## Recipe", "")
    if recipe is None:
        yield "Not given."
        return
    # Where the publisher's files lie is nobody's business, and does not work elsewhere.
    shown = recipe.model_copy(
        update={
            "weights": recipe.weights.model_copy(update={"dir": "./"}),
            "train": recipe.train.model_copy(update={"data": type(recipe.train.data)(), "out": "runs"}),
        }
    )
    yield "```yaml"
    for depth, _, line in as_yaml(shown):
        yield "  " * depth + line
    yield "```"
