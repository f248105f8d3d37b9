"""CLIPSIM: the cosine between a video's frames and its text in CLIP's space, mean over frames, then over videos.

Wu et al. 2021 (GODIVA); the paper's table 1. Networks, tokens and preprocessing are open_clip's, weights OpenAI's: ViT-B/32
(LaVie and later) or ViT-L/14. Which one the paper used it does not say, and the numbers of the two are not comparable.

n pictures or texts, d features, h w pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mavcli.errors import UsageError, WeightsError
from mavcli.evaluation.weight_files import read_weights
from mavcli.media.frames import Frames

NAMES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-L/14": "ViT-L-14-quickgelu"}
"""OpenAI's names -> open_clip's, whose plain `ViT-B-32` has another activation than these weights want."""
_SPECIAL = tuple(
    (re.compile(re.escape(openai), re.IGNORECASE), ours)
    for openai, ours in (("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>"))
)
"""OpenAI's and open_clip's words for the two special tokens, should a text hold them."""
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}


class ClipJudge:
    """Both towers of a published CLIP, float32."""

    def __init__(self, name: str, tensors: dict[str, Tensor], *, source: Path) -> None:
        """`name` is OpenAI's or open_clip's. Raises UsageError for an unknown one, WeightsError for other weights."""
        import open_clip  # five seconds: only when a network is built
        from open_clip.model import CLIP
        from open_clip.transform import image_transform

        model = NAMES.get(name, name)
        config = dict(open_clip.get_model_config(model) or {})
        if not config or config.get("custom_text") or "hf_model_name" in config["text_cfg"]:
            what = "has another kind of text tower than CLIP's" if config else "is unknown to open_clip"
            raise UsageError(f"the network `{name}` {what}", hint="--network ViT-B/32")
        self.name = name
        self.network = CLIP(**config)
        tensors = {key: value for key, value in tensors.items() if key not in _NOT_WEIGHTS}
        try:
            self.network.load_state_dict(tensors)
        except RuntimeError as error:
            first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
            raise WeightsError(f"{source} is no `{name}`: {first[:200]}") from error
        self.network.eval().requires_grad_(False)
        size = self.network.visual.image_size
        self._transform = image_transform(size[0] if isinstance(size, tuple) else size, is_train=False)
        self._tokens = open_clip.get_tokenizer(model)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(n, 77) token ids: start, tokens, end, zeros; what is longer is cut and keeps its end token."""
        for pattern, ours in _SPECIAL:
            texts = [pattern.sub(ours, text) for text in texts]
        tokens: Tensor = self._tokens(list(texts))
        return tokens

    def prepare(self, frames: Frames) -> Tensor:
        """frames uint8 (n, h, w, 3) -> (n, 3, 224, 224): Pillow's bicubic, centre crop, CLIP's mean and deviation."""
        return torch.stack([self._transform(Image.fromarray(frame)) for frame in frames])

    @torch.inference_mode()
    def encode_image(self, x: Tensor) -> Tensor:
        """x (n, 3, 224, 224) from `prepare` -> (n, d), of any length."""
        features: Tensor = self.network.encode_image(x)
        return features

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, d), of any length."""
        device = self.network.logit_scale.device
        features: Tensor = self.network.encode_text(self.tokenize(texts).to(device))
        return features


def load_clip(name: str, path: Path) -> ClipJudge:
    """The network `name` with the weights of `path`."""
    return ClipJudge(name, read_weights(path), source=path)


def frame_text_cosines(images: Tensor, text: Tensor) -> Tensor:
    """images (f, d), text (d,) -> (f,) cosines, float64."""
    return F.normalize(images.double(), dim=-1) @ F.normalize(text.double(), dim=-1)
