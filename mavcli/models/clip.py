"""`C_x` and `C_y`: CLIP's text and image towers (arXiv 2103.00020), as open_clip builds them.

A family may have OpenAI's towers (`pretrained: ViT-L-14-quickgelu`), or small ones of its own with a vocabulary of whole
words, which makes the token table thousands of times smaller and lets an unknown word be named instead of guessed.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.specs import ClipSpec, UNetSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels_read(spec: ClipSpec) -> int:
    """Pixels a side that the image tower of `spec` reads; a published model (`pretrained`) has a size of its own."""
    if spec.pretrained is None:
        return spec.image_size
    import open_clip

    config = open_clip.get_model_config(spec.pretrained) or {}
    size = config.get("vision_cfg", {}).get("image_size", spec.image_size)
    return int(size if isinstance(size, int) else size[0])


@dataclass(frozen=True)
class TextFeatures:
    """embedding (b, d); states (b, n, w) after the last norm; mask (b, n) bool, True for real tokens."""

    embedding: Tensor
    states: Tensor
    mask: Tensor


class TextTower(Protocol):
    """Whatever says of texts what CLIP's text tower does."""

    def encode_text(self, texts: list[str]) -> TextFeatures: ...


@dataclass(frozen=True)
class UnknownWord:
    """A word of a prompt that the family never saw, with the known words that look most like it."""

    word: str
    nearest: tuple[str, ...]


class ClipReader(nn.Module):
    """What texts and pictures become, with the two towers that `towers` holds under open_clip's names."""

    towers: Any

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = (
            WordTokenizer(spec.vocabulary, spec.text_context) if spec.vocabulary is not None else None
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        """(b, n) token ids; the end token has the highest id."""
        assert self.tokens is not None
        return self.tokens(texts)

    def encode_text(self, texts: list[str]) -> TextFeatures:
        return self.encode_tokens(self.tokenize(texts).to(self.towers.positional_embedding.device))

    def encode_tokens(self, tokens: Tensor) -> TextFeatures:
        """tokens (b, n) ids -> features of the text tower."""
        towers = self.towers
        dtype = towers.text_projection.dtype
        h = towers.token_embedding(tokens).to(dtype) + towers.positional_embedding.to(dtype)
        h = towers.ln_final(towers.transformer(h, attn_mask=towers.attn_mask))
        end = tokens.argmax(dim=-1)
        embedding = h[torch.arange(len(h), device=h.device), end] @ towers.text_projection
        mask = torch.arange(tokens.shape[1], device=tokens.device)[None] <= end[:, None]
        return TextFeatures(self._scaled(embedding.float()), h.float(), mask)

    def encode_image(self, x: Tensor) -> Tensor:
        """x (b, 3, h, w) in [-1, 1], any size -> (b, d), of length 1 unless the spec says `unit_norm: false`."""
        size = self.spec.image_size if self.spec.pretrained is None else self.towers.visual.image_size
        size = size if isinstance(size, int) else size[0]
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(
                -1, 1
            )
        mean, std = x.new_tensor(MEAN)[:, None, None], x.new_tensor(STD)[:, None, None]
        x = ((x + 1) / 2 - mean) / std
        return self._scaled(self.towers.visual(x).float())

    def _scaled(self, embedding: Tensor) -> Tensor:
        return F.normalize(embedding, dim=-1) if self.spec.unit_norm else embedding

    def no_text(self, spec: UNetSpec, rows: int) -> dict[str, Tensor]:
        """The text fields of a Condition for a decoder that can read text, which this chain never shows it: the empty
        prompt, as Karlo's decoder saw it in 30 % of its training and sees it when it varies an image.
        """
        if spec.text != "clip":
            return {}
        empty = self.encode_text([""])
        return {
            "text_states": empty.states.expand(rows, -1, -1),
            "text_embedding": empty.embedding.expand(rows, -1),
            "text_mask": empty.mask.expand(rows, -1),
        }

    def unknown_words(self, prompt: str) -> list[UnknownWord]:
        """The words that the text tower cannot tell from silence; empty for a byte-pair vocabulary."""
        return self.tokens.unknown(prompt) if self.tokens else []


class Clip(ClipReader):
    """open_clip's towers and the temperature of the contrastive loss."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__(spec)
        import open_clip  # five seconds: only when a network is built
        from open_clip.model import CLIP

        length = spec.text_context if spec.pretrained is None else None  # a published model knows its own
        self._bpe = (
            None
            if self.tokens
            else open_clip.get_tokenizer(spec.pretrained or "ViT-B-32", context_length=length)
        )
        if spec.pretrained is not None:
            config = dict(open_clip.get_model_config(spec.pretrained) or {})
            config.pop("custom_text", None)
        else:
            config = _config(spec, len(self.tokens) if self.tokens else 49408)
        self.towers = CLIP(**config)

    @property
    def logit_scale(self) -> Tensor:
        return self.towers.logit_scale.exp()

    def tokenize(self, texts: list[str]) -> Tensor:
        """(b, n) token ids; the end token has the highest id."""
        return self._bpe(texts) if self.tokens is None else super().tokenize(texts)  # type: ignore[misc]


def _config(spec: ClipSpec, vocabulary: int) -> dict[str, Any]:
    layers = spec.vision_layers if isinstance(spec.vision_layers, int) else list(spec.vision_layers)
    vision: dict[str, Any] = {"image_size": spec.image_size, "layers": layers, "width": spec.vision_width}
    if spec.vision_patch_size is not None:
        vision |= {
            "patch_size": spec.vision_patch_size,
            "head_width": spec.vision_head_width,
            "mlp_ratio": spec.vision_mlp_ratio,
        }
    text = {
        "context_length": spec.text_context,
        "vocab_size": vocabulary,
        "width": spec.text_width,
        "heads": spec.text_heads,
        "layers": spec.text_layers,
    }
    return {
        "embed_dim": spec.embed_dim,
        "vision_cfg": vision,
        "text_cfg": text,
        "quick_gelu": spec.quick_gelu,
    }


class WordTokenizer:
    """Whole words of a fixed vocabulary: 0 pads, then the words, then start and end (the highest id)."""

    def __init__(self, vocabulary: tuple[str, ...], context: int) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.ids = {word: i + 1 for i, word in enumerate(vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary) + 3

    def __call__(self, texts: list[str]) -> Tensor:
        """(b, n) int64; words outside the vocabulary are left out, and what does not fit is cut."""
        start, end = len(self) - 2, len(self) - 1
        rows = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.ids[word] for word in words_of(text) if word in self.ids][: self.context - 2]
            row[: len(ids) + 2] = torch.tensor([start, *ids, end])
        return rows

    def unknown(self, text: str) -> list[UnknownWord]:
        seen = dict.fromkeys(word for word in words_of(text) if word not in self.ids)
        return [
            UnknownWord(w, tuple(difflib.get_close_matches(w, self.vocabulary, n=3, cutoff=0.6)))
            for w in seen
        ]


def words_of(text: str) -> list[str]:
    """Lower-case words; punctuation separates."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
