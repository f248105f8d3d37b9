"""The CLIP towers: words, unknown words, and open_clip's own arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mavcli.models.clip import MEAN, STD, Clip, WordTokenizer
from mavcli.models.clip_towers import ClipTowers, has_own_towers
from mavcli.specs import ClipSpec

WORDS = ("a", "bear", "cat", "dog", "elephant", "sea", "skateboard", "surfing", "the")


RESNET = ClipSpec(
    embed_dim=16,
    image_size=64,
    vision_layers=(1, 2, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    text_context=6,
    text_width=16,
    text_heads=2,
    text_layers=2,
    vocabulary=WORDS,
)


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(
        ClipSpec(
            embed_dim=16,
            image_size=16,
            vision_layers=1,
            vision_width=64,
            vision_patch_size=8,
            text_context=6,
            text_width=16,
            text_heads=2,
            text_layers=2,
            vocabulary=WORDS,
        )
    ).eval()


def test_words_become_ids_between_start_and_end():
    tokens = WordTokenizer(WORDS, 6)
    assert len(tokens) == 12
    assert tokens(["A cat, the DOG!"]).tolist() == [[10, 1, 3, 9, 4, 11]]
    assert tokens(["", "cat"]).tolist() == [[10, 11, 0, 0, 0, 0], [10, 3, 11, 0, 0, 0]]


def test_unknown_words_are_left_out_and_long_captions_are_cut_before_the_end_token():
    tokens = WordTokenizer(WORDS, 6)
    assert tokens(["a purple cat"]).tolist() == tokens(["a cat"]).tolist()
    assert tokens(["cat dog cat dog cat dog"]).tolist() == [[10, 3, 4, 3, 4, 11]]


def test_unknown_words_are_named_once_with_the_nearest_known_ones(clip):
    unknown = clip.unknown_words("A Skateborad, a skateborad and the sea: xyzzy")
    assert [u.word for u in unknown] == ["skateborad", "and", "xyzzy"]
    assert unknown[0].nearest[0] == "skateboard" and unknown[2].nearest == ()
    assert clip.unknown_words("the elephant surfing") == []


@torch.no_grad()
def test_text_embeddings_are_open_clips(clip):
    texts = ["a cat", "the dog surfing a sea", ""]
    features = clip.encode_text(texts)
    wanted = clip.towers.encode_text(clip.tokenize(texts), normalize=True)
    torch.testing.assert_close(features.embedding, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.embedding.norm(dim=-1), torch.ones(3))
    assert features.states.shape == (3, 6, 16)
    assert features.mask.sum(1).tolist() == [4, 6, 2], "start, words and end"
    assert torch.pdist(features.embedding).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_towers_without_open_clip_say_the_same_to_the_bit(quick_gelu, dtype):
    spec = RESNET.model_copy(update={"quick_gelu": quick_gelu})
    torch.manual_seed(1)
    whole = Clip(spec).eval()
    for p in whole.parameters():  # biases and gains start where they change nothing
        p.add_(0.1 * torch.randn_like(p))
    for name, buffer in whole.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))
        if name.endswith("running_var"):
            buffer.mul_(1 + torch.rand_like(buffer))
    own = ClipTowers(spec).eval()
    own.load_state_dict(whole.state_dict())
    texts, pictures = ["a cat", "the dog surfing a sea", ""], torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        wanted, got = whole.encode_text(texts), own.encode_text(texts)
        seen, looked = whole.encode_image(pictures), own.encode_image(pictures)
    assert got.embedding.dtype == looked.dtype == torch.float32
    assert torch.equal(got.embedding, wanted.embedding)
    assert torch.equal(got.states, wanted.states) and torch.equal(got.mask, wanted.mask)
    assert torch.equal(looked, seen) and torch.pdist(looked).min() > 1e-3


@pytest.mark.parametrize(
    "spec",
    [
        ClipSpec(),
        ClipSpec(vocabulary=WORDS),
        ClipSpec(vision_layers=(1, 1, 1, 1), vision_patch_size=None),
        ClipSpec(pretrained="ViT-L-14-quickgelu"),
    ],
    ids=["byte pairs", "a vision transformer", "byte pairs and a ResNet", "published"],
)
def test_other_towers_are_open_clips(spec):
    assert not has_own_towers(spec)
    with pytest.raises(ValueError, match="open_clip"):
        ClipTowers(spec)


@torch.no_grad()
def test_token_states_do_not_depend_on_the_padding_behind_them(clip):
    ids = clip.tokenize(["a cat"])
    other = ids.clone()
    other[0, 4:] = 5
    one, two = clip.encode_tokens(ids), clip.encode_tokens(other)
    torch.testing.assert_close(one.states[one.mask], two.states[one.mask])
    torch.testing.assert_close(one.embedding, two.embedding)


@torch.no_grad()
def test_pictures_are_normalised_as_clip_wants_them(clip):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    wanted = F.normalize(clip.towers.visual(((x + 1) / 2 - mean) / std), dim=-1)
    torch.testing.assert_close(clip.encode_image(x), wanted)
    large = F.interpolate(x, (64, 48), mode="nearest")
    assert clip.encode_image(large).shape == (2, 16)
    same = clip.encode_image(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert (same * clip.encode_image(x)).sum(-1).min() > 0.9


def test_the_default_towers_are_clips_with_its_own_vocabulary():
    spec = ClipSpec(vision_layers=1, text_layers=1, text_width=64, text_heads=1, vision_width=64)
    clip = Clip(spec)
    assert clip.unknown_words("any wrod at all") == []
    tokens = clip.tokenize(["a cat"])
    assert tokens.shape == (1, 77) and tokens.max() == 49407
    assert clip.encode_text(["a cat"]).mask.sum() == 4
