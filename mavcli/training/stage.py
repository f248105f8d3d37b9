"""What a training stage is: a frozen declaration that one loop runs (design, section 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mavcli.data.clips import Redrawn
from mavcli.diffusion.schedule import Schedule
from mavcli.models.clip import ClipReader, pixels_read
from mavcli.models.prior import Prior
from mavcli.models.unet import UNet
from mavcli.recipe.schema import Recipe, StageTraining
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.training.distributed import Group
from mavcli.training.draws import Draws
from mavcli.training.embeddings import Embeddings


@dataclass(frozen=True)
class Batch:
    """One step's samples. pixels (b, f, h, w, 3) uint8, f = 1 for pictures; fps (b,) and known (b, f) for video.

    Clips have captions where those tell them (`told_by: caption`), and what is told by its first frame has an empty one.
    `first` is the number that the first row has in the whole step, over all processes; `redrawn` says how often its clips
    were drawn again, `sources` which of a mix's sources each row is from, `keys` (b, 2) those of `pair_keys` where captions are
    compared, and `lost` the name of each file that was drawn and could not be read, with the reason. `seen` (b, s, s, 3) uint8 is
    what CLIP is shown of each row (see `pictures`) at CLIP's own size; None where that is the network's too.
    """

    pixels: Tensor
    captions: tuple[str, ...] = ()
    fps: Tensor | None = None
    known: Tensor | None = None
    first: int = 0
    redrawn: Redrawn = field(default=Redrawn())
    sources: tuple[str, ...] = ()
    keys: Tensor | None = None
    lost: tuple[tuple[str, str], ...] = ()
    seen: Tensor | None = None
    beside: Batch | None = None
    """Pictures that the same step learns from, with numbers of their own (`pictures_beside`)."""

    def rows(self, start: int, stop: int) -> Batch:
        """The rows [start, stop)."""
        return Batch(
            self.pixels[start:stop],
            self.captions[start:stop],
            None if self.fps is None else self.fps[start:stop],
            None if self.known is None else self.known[start:stop],
            self.first + start,
            sources=self.sources[start:stop],
            keys=None if self.keys is None else self.keys[start:stop],
            seen=None if self.seen is None else self.seen[start:stop],
        )

    @property
    def pictures(self) -> Tensor:
        """What CLIP is shown, uint8 (b, s, s, 3), at CLIP's size where it is drawn at that: the first frames.

        Of a clip whose first frame ↑F is not given, the first that it is: sampling has no other (`Cascade._fill`).
        """
        if self.seen is not None:
            return self.seen
        if self.known is None:
            return self.pixels[:, 0]
        first = self.known.to(torch.uint8).argmax(
            dim=1
        )  # 0 where nothing is known: the clip's own first frame
        return self.pixels[torch.arange(len(first)), first]


def pair_keys(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """(b, 2) int64: a key of each row's pixels and one of its caption, equal where these are."""
    rows = zip(pixels, captions, strict=True)
    return torch.tensor([[_key(p.contiguous().numpy().data), _key(c.encode())] for p, c in rows])


def _key(data: bytes | memoryview) -> int:
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@dataclass(frozen=True)
class Task:
    """What a loss needs beside the batch; built once for a run.

    `group` are the processes that train together; `kept` is the memory of the frozen towers `clip`, where the data come from
    files and so come again; `prior` is P, frozen, where captions tell clips; `sr_l` is SR_l, frozen, where SR_h sees its pictures.
    """

    stage: str
    recipe: Recipe
    config: StageTraining
    network: nn.Module
    device: torch.device
    schedule: Schedule | None = None
    clip: ClipReader | None = None
    kept: Embeddings | None = None
    prior: Prior | None = None
    group: Group = field(default_factory=Group)
    sr_l: UNet | None = None


@dataclass(frozen=True)
class Stage:
    """One of the eight stages.

    `parents` are the stages whose weights it starts from, the first that exists; `parent_needed` forbids scratch.
    `needs_clip` says that the frozen towers take part, `fewest` how many samples the loss compares at least.
    `loss(task, batch, draws)` takes all its randomness from `draws` and returns the loss of each row (b,); where it compares
    rows, `comparable(task, batch)` (b,) says which of them it can say something of.
    """

    name: str
    title: str
    source: str
    data: Literal["image", "pairs", "video"]
    network: Callable[[Recipe], ClipSpec | PriorSpec | UNetSpec]
    loss: Callable[[Task, Batch, Draws], Tensor]
    size: Callable[[Recipe], int]
    comparable: Callable[[Task, Batch], Tensor] | None = None
    preview: Callable[[Task, Batch, torch.Generator], Tensor] | None = None
    parents: tuple[str, ...] = ()
    parent_needed: bool = False
    needs_clip: bool = False
    masks: bool = False
    fewest: int = 1
    schedule: Callable[[Recipe], Schedule] | None = None
    prepare: Callable[[Task, Callable[[int], Batch]], None] = field(default=lambda task, batch_of: None)

    def look(self, recipe: Recipe) -> int | None:
        """Pixels a side at which frozen CLIP is shown a sample's first frame; None where the network draws at that size.

        P learns embeddings of whole pictures as CLIP reads them, so those that tell D, D^t and ↑F what to draw are of no
        others (unCLIP, section 2.1; Make-A-Video, section 3.2).
        """
        size = pixels_read(recipe.cascade.clip.network)
        return size if self.needs_clip and size != self.size(recipe) else None

    def told_by_captions(self, recipe: Recipe) -> bool:
        """Whether captions tell this stage what its clips show, which Make-A-Video does without (section 3.2)."""
        return self.data == "video" and self.needs_clip and recipe.stage(self.name).told_by == "caption"

    def frozen(self, recipe: Recipe) -> tuple[Literal["clip", "prior", "sr_l"], ...]:
        """The networks that take part and do not train: CLIP's towers, P where captions tell clips, SR_l where SR_h sees its
        pictures."""
        if self.name == "sr_h" and recipe.stage(self.name).degradation.made_probability > 0:
            return ("sr_l",)
        if not self.needs_clip:
            return ()
        return ("clip", "prior") if self.told_by_captions(recipe) else ("clip",)
