"""How far the embeddings that P makes of prompts lie from those of pictures: whether words reach what a D was trained on.

    python benchmarks/words.py RECIPE PICTURES --prompts FILE      a prompt in each line
    python benchmarks/words.py --stand-ins DATA                    what can be had without published weights

Of the recipe only CLIP and P are needed, imported ones too (docs/open-words.md). All is cosines between CLIP image embeddings:

- own: a picture and the nearest other picture of the folder; what lies at home looks like. Copies of a picture, at 0.9999, are left out.
- asked: P's embedding of a prompt and the nearest picture of the folder.
- inside: the share of prompts whose nearest picture is at least as near as `own` is for 19 of 20 pictures.

Quantiles are 5, 50 and 95 %.

The stand-ins: pocket's CLIP and P know the whole rendered world, as a published P knows the world. Domains are parts of it: one place,
four actors; prompts ask within the part and beyond it. Then the same pictures in a look of their own, and photographs under pocket's CLIP,
which never met one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mavcli.data import world
from mavcli.engine.backend import open_backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.media.frames import to_float
from mavcli.media.image import read_image
from mavcli.recipe.load import load_recipe
from mavcli.recipe.resolve import probe_machine, resolve

PICTURES = 600
COPY = 0.9999


@dataclass(frozen=True)
class Distances:
    """Cosines: `own` (n,) of pictures to their nearest other, `asked` (p,) of prompts to their nearest picture."""

    own: Tensor
    asked: Tensor

    @property
    def inside(self) -> float:
        return float((self.asked >= self.own.quantile(0.05)).float().mean())

    def __str__(self) -> str:
        def spread(values: Tensor) -> str:
            return " ".join(f"{float(values.quantile(q)):.3f}" for q in (0.05, 0.5, 0.95))

        return f"{spread(self.own)} | {spread(self.asked)} | {self.inside:.0%}"


def distances(pictures: Tensor, prompts: Tensor) -> Distances:
    """Of embeddings (n, d) of pictures and (p, d) that P made."""
    pictures, prompts = F.normalize(pictures.float(), dim=-1), F.normalize(prompts.float(), dim=-1)
    among = pictures @ pictures.T
    among = among.masked_fill(among > COPY, -1.0).fill_diagonal_(-1.0)
    return Distances(among.amax(1), (prompts @ pictures.T).amax(1))


class Words:
    """CLIP and P of a recipe."""

    def __init__(self, recipe: str) -> None:
        self.recipe = load_recipe(recipe).recipe
        backend = open_backend(resolve(self.recipe, machine=probe_machine()))
        backend.apply()
        self.cascade = Cascade(self.recipe, find_family(self.recipe, ("clip", "prior")), backend)
        self.size = self.recipe.cascade.clip.network.image_size

    def of_pictures(self, pictures: Iterator[Tensor]) -> Tensor:
        """Pictures (3, h, w) in [-1, 1] of any size -> (n, d)."""
        made = []
        for several in _batched(pictures, 32):
            small = [
                F.interpolate(p[None], (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
                for p in several
            ]
            made.append(self.cascade.embed_frames(torch.cat(small)))
        return torch.cat(made)

    def of_prompts(self, prompts: Sequence[str]) -> Tensor:
        """What P makes of each prompt, one draw of it: (p, d)."""
        return torch.cat(
            [
                self.cascade.image_embedding(part, [Draw(seed) for seed in range(first, first + len(part))])
                for first in range(0, len(prompts), 64)
                for part in [prompts[first : first + 64]]
            ]
        )


def _batched(items: Iterator[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    while several := tuple(itertools.islice(items, size)):
        yield several


def files(folder: Path) -> Iterator[Tensor]:
    """Up to PICTURES pictures below a folder, evenly spread over it."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not found:
        sys.exit(f"{folder} holds no pictures")
    step = max(1, len(found) // PICTURES)
    for path in found[::step][:PICTURES]:
        yield to_float(torch.from_numpy(read_image(path))[None])[0]


def rendered(seed: int, **fixed: Sequence[str]) -> Iterator[Tensor]:
    """PICTURES pictures of the pocket world, with one of `fixed`'s values each: {actor: [...]}."""
    for i in range(PICTURES):
        values = {name: several[i % len(several)] for name, several in fixed.items()}
        scene = world.scene_for(seed, i, split="all", **values)  # type: ignore[arg-type]
        yield to_float(torch.from_numpy(world.render(scene, 1.0 + i % 7 / 3, 64))[None])[0]


def of_a_worse_camera(pictures: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same things in a look that no prompt names: without colours, and soft."""
    for picture in pictures:
        small = F.interpolate(picture.mean(0, keepdim=True)[None], scale_factor=0.5, mode="area")
        yield F.interpolate(small, picture.shape[-2:], mode="bilinear")[0].expand(3, -1, -1)


def stand_ins(data: Path) -> None:
    words = Words("pocket")
    few = world.ACTORS[:4]

    def prompts(actors: Sequence[str], places: Sequence[str]) -> list[str]:
        return [world.prompt(a, does, p) for a in actors for does in world.ACTIONS for p in places]

    beach, other = world.PLACES[:1], world.PLACES[1:]
    asked = {
        "within": words.of_prompts(prompts(few, beach)),
        "another place": words.of_prompts(prompts(few, other)),
        "another actor": words.of_prompts(prompts(world.ACTORS[4:], beach)),
        "both": words.of_prompts(prompts(world.ACTORS[4:], other)),
    }
    whole = words.of_pictures(rendered(11))
    small = words.of_pictures(rendered(12, actor=few, place=beach))
    show("rendered, the whole world", whole, torch.cat(list(asked.values())), "of all of it")
    for name, embeddings in asked.items():
        show(f"rendered, {len(few)} actors at the {beach[0]}", small, embeddings, name)
    grey = words.of_pictures(of_a_worse_camera(rendered(12, actor=few, place=beach)))
    show("the same, grey and soft", grey, asked["within"], "within")
    photographs = words.of_pictures(files(data / "pictures"))
    show("photographs", photographs, torch.cat(list(asked.values())), "of the rendered world")


def show(domain: str, pictures: Tensor, prompts: Tensor, asked: str) -> None:
    print(
        f"| {domain} ({len(pictures)}) | {asked} ({len(prompts)}) | {distances(pictures, prompts)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("pictures", nargs="?", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--stand-ins", type=Path, metavar="DATA")
    told = parser.parse_args()
    print("| pictures | prompts | own 5 50 95 % | asked 5 50 95 % | inside |\n|---|---|---|---|---|")
    if told.stand_ins:
        stand_ins(told.stand_ins)
        return
    if not (told.recipe and told.pictures and told.prompts):
        parser.error("RECIPE, PICTURES and --prompts FILE are needed, or --stand-ins DATA")
    words = Words(told.recipe)
    prompts = [line.strip() for line in told.prompts.read_text().splitlines() if line.strip()]
    show(
        str(told.pictures),
        words.of_pictures(files(told.pictures)),
        words.of_prompts(prompts),
        told.prompts.name,
    )


if __name__ == "__main__":
    main()
