"""What the frozen towers say of pictures and captions, made once for each and kept on disk by content.

The files of a folder are drawn again and again, and a frozen tower says the same of them each time. What it said is found by
what it was shown, the pixels and the words themselves, and by all else that decides its bits: weights, form, arithmetic,
device, versions. A name, a date or a rule of cropping has no part in it, so a changed file is another picture.

Every picture goes through the tower alone. In a batch its last bits may depend on how many others there are, and a training
would depend on what happens to be kept; so nothing but time does.

b batch, d embedding, n tokens, w width of the text tower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mavcli.engine.backend import Backend
from mavcli.media.frames import to_float
from mavcli.models.clip import ClipReader, TextFeatures
from mavcli.training.kept import KEY_BYTES, KeptRows

FORMAT = 1
"""Of keys and rows; another number, and everything is made again."""


class Embeddings:
    """CLIP's frozen towers, with a memory in `folder` of at most `limit` bytes; with a limit of 0, without one."""

    def __init__(self, clip: ClipReader, backend: Backend, *, sha256: str, folder: Path, limit: int) -> None:
        """`sha256` is of the towers' tensors. Callers hold `backend.autocast()` whenever they ask."""
        self.clip, self.device = clip, backend.device
        self.length, self.width = clip.towers.positional_embedding.shape
        self.size = clip.towers.text_projection.shape[1]
        facts = {**_facts(backend), "towers": sha256, "spec": clip.spec.model_dump(mode="json")}
        text = self.size + self.length * self.width + self.length
        self._pictures = KeptRows(folder, {**facts, "tower": "image"}, self.size, limit=limit)
        self._captions = KeptRows(folder, {**facts, "tower": "text"}, text, limit=limit)

    def of_pictures(self, pixels: Tensor) -> Tensor:
        """(b, h, w, 3) uint8 on the CPU -> (b, d) on the towers' device, as `ClipReader.encode_image` has it."""
        return torch.cat([self._of_picture(picture[None].contiguous()) for picture in pixels])

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """As `ClipReader.encode_text`, which see."""
        rows = torch.cat([self._of_caption(text) for text in texts])
        embedding, states, mask = rows.split((self.size, self.length * self.width, self.length), dim=1)
        return TextFeatures(embedding, states.unflatten(1, (self.length, self.width)), mask > 0)

    def flush(self) -> None:
        """Write what is new, and see what other processes have written."""
        self._pictures.flush()
        self._captions.flush()

    @property
    def counts(self) -> tuple[int, int]:
        """Embeddings that were kept already, and embeddings that were made."""
        kinds = (self._pictures, self._captions)
        return sum(kind.found for kind in kinds), sum(kind.made for kind in kinds)

    @property
    def note(self) -> str | None:
        """Why nothing new is kept any more."""
        return self._pictures.note or self._captions.note

    def _of_picture(self, picture: Tensor) -> Tensor:
        key = _key(repr(tuple(picture.shape)).encode(), picture.numpy().data)
        return self._row(
            self._pictures, key, lambda: self.clip.encode_image(to_float(picture).to(self.device))
        )

    def _of_caption(self, text: str) -> Tensor:
        def make() -> Tensor:
            told = self.clip.encode_text([text])
            return torch.cat([told.embedding, told.states.flatten(1), told.mask.float()], dim=1)

        return self._row(self._captions, _key(text.encode()), make)

    def _row(self, kept: KeptRows, key: bytes, make: Callable[[], Tensor]) -> Tensor:
        """(1, width) from the disk, or made and kept."""
        row = kept.get(key)
        if row is None:
            with torch.no_grad():
                row = make().float().cpu().numpy()[0]
            kept.put(key, row)
        return torch.from_numpy(row[None]).to(self.device)


def _facts(backend: Backend) -> dict[str, Any]:
    return {"format": FORMAT, "arithmetic": backend.facts(), "open_clip": version("open_clip_torch")}


def _key(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()
