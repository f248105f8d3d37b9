"""P at work: words become CLIP image embeddings (unCLIP, arXiv 2204.06125, section 2.2).

b prompts, s draws of each, d width of the CLIP space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mavcli.models.clip import ClipReader
from mavcli.models.prior import Prior, PriorCondition, text_condition


def embed_words(
    prior: Prior,
    text: ClipReader,
    prompts: Sequence[str],
    *,
    samples: int,
    sampled: Callable[[PriorCondition], Tensor],
) -> Tensor:
    """Prompts (b) -> image embeddings (b, d), of unit norm where CLIP's spec says so.

    `sampled` gives P's x0 (b s, d) for a condition, the draws of one prompt in a row; of its `samples` draws the one nearest
    to the text embedding is kept.
    """
    condition = text_condition(prior.spec, text, list(prompts)).repeated(samples)
    embedding = prior.unscale(sampled(condition)).float()
    if text.spec.unit_norm:
        embedding = F.normalize(embedding, dim=-1)
    drawn = rearrange(embedding, "(b s) d -> b s d", s=samples)
    likeness = F.cosine_similarity(embedding, condition.text_embedding.to(embedding.dtype), dim=-1)
    best = rearrange(likeness, "(b s) -> b s", s=samples).argmax(dim=1)
    return drawn[torch.arange(len(drawn)), best]
