"""OpenAI's CLIP: both layouts give the towers that open_clip makes of OpenAI's, and Karlo's tokens and mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import assert_near
from tiny_karlo import CLIP, random_state, save
from torch import Tensor, nn

from mavcli.engine.assemble import load_network
from mavcli.errors import WeightsError
from mavcli.models.clip import MEAN, STD, Clip
from mavcli.specs import ClipSpec
from mavcli.weights.importing import plan_import, run_import
from mavcli.weights.openai_clip import transformers_plan
from mavcli.weights.source import shapes_of


@pytest.fixture(scope="module")
def openai() -> dict[str, Tensor]:
    """A tiny release of OpenAI's: its names, numbers of half precision, and its sizes as tensors."""
    state = {k.removeprefix("towers."): v.half().float() for k, v in random_state(CLIP, 0).items()}
    sizes = {"input_resolution": 8, "context_length": 8, "vocab_size": 49408}
    return state | {name: torch.tensor(value) for name, value in sizes.items()}


@pytest.fixture(scope="module")
def clip(openai: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    save(openai, folder / "ViT-L-14.safetensors")
    plans = plan_import(folder / "ViT-L-14.safetensors", layout="karlo")
    (done,) = run_import(plans, folder / "ours", layout="karlo")
    assert done.header.spec == CLIP and done.header.licence == "MIT"
    network = load_network(done.header.spec, done.files[0], role="clip")
    assert isinstance(network, Clip)
    return network


def test_the_imported_towers_are_those_of_open_clip(clip: Clip, openai: dict[str, Tensor]) -> None:
    from open_clip.model import build_model_from_openai_state_dict

    sizes = ("input_resolution", "context_length", "vocab_size")
    theirs = build_model_from_openai_state_dict(dict(openai), cast_dtype=torch.float32).float()
    assert all(name not in theirs.state_dict() for name in sizes)
    generator = torch.Generator().manual_seed(0)
    tokens = clip.tokenize(["a dog", ""])
    picture = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    seen = ((picture + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        ours = clip.encode_tokens(tokens)
        assert_near(ours.embedding, theirs.encode_text(tokens), "the text embedding")
        assert_near(clip.encode_image(picture), theirs.encode_image(seen), "the image embedding")
    length = ours.embedding.norm(dim=-1)
    assert not torch.allclose(length, torch.ones(2)), "Karlo reads embeddings at their own length"


class Holder(nn.Module):
    """Nothing but parameters and other holders, by name."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for name, part in inner.items():
            self.add_module(name, Holder(part))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the archives outlive the function that makes them
def test_the_compiled_release_of_openai_is_read_without_running_it(
    clip: Clip, openai: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.trace(Holder(openai), torch.zeros(1)).save(str(path))
    (plan,) = plan_import(path, layout="karlo")
    made, wanted = plan.table.convert(plan.tensors), clip.state_dict()
    assert all(torch.equal(made[name], wanted[name]) for name in shapes_of(CLIP))


def test_tokens_are_padded_and_masked_as_karlos(clip: Clip) -> None:
    start, end = 49406, 49407
    tokens = clip.tokenize(["a dog", "", "a dog on a red surfboard on a big wave"])
    with torch.no_grad():
        mask = clip.encode_tokens(tokens).mask
    assert tokens[0].tolist() == [start, 320, 1929, end, 0, 0, 0, 0]  # 0 pads
    assert mask[0].tolist() == [True] * 4 + [False] * 4
    assert tokens[1].tolist() == [start, end, 0, 0, 0, 0, 0, 0] and mask[1].sum() == 2
    assert tokens[2, -1] == end and mask[2].all(), "a long prompt ends with the end token all the same"


def in_transformers(openai: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same numbers as `text_encoder` and `image_encoder` of a diffusers folder."""
    text: dict[str, Tensor] = {
        "text_model.embeddings.token_embedding.weight": openai["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": openai["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(8)[None],
        "text_model.final_layer_norm.weight": openai["ln_final.weight"],
        "text_model.final_layer_norm.bias": openai["ln_final.bias"],
        "text_projection.weight": openai["text_projection"].T,
    }
    image: dict[str, Tensor] = {
        "vision_model.embeddings.class_embedding": openai["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": openai["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": openai["visual.positional_embedding"],
        "visual_projection.weight": openai["visual.proj"].T,
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for kind in ("weight", "bias"):
            image[f"vision_model.{theirs}.{kind}"] = openai[f"visual.{ours}.{kind}"]
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for state, tower, prefix in ((text, "text", ""), (image, "vision", "visual.")):
        block, layer = f"{prefix}transformer.resblocks.0", f"{tower}_model.encoder.layers.0"
        for kind in ("weight", "bias"):
            for ours, theirs in names.items():
                state[f"{layer}.{theirs}.{kind}"] = openai[f"{block}.{ours}.{kind}"]
            for letter, part in zip("qkv", openai[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                state[f"{layer}.self_attn.{letter}_proj.{kind}"] = part
    return {"text_encoder": text, "image_encoder": image}


def test_both_layouts_are_one_network(clip: Clip, openai: dict[str, Tensor], tmp_path: Path) -> None:
    for name, state in in_transformers(openai).items():
        (tmp_path / name).mkdir()
        save(state, tmp_path / name / "model.safetensors")
        heads = {"num_attention_heads": 1} if name == "text_encoder" else {}
        config = {"hidden_act": "quick_gelu", **heads}
        (tmp_path / name / "config.json").write_text(str(config).replace("'", '"'))
    (plan,) = plan_import(tmp_path, layout="unclip-diffusers")
    assert plan.spec == CLIP
    made, wanted = plan.table.convert(plan.tensors), clip.state_dict()
    for name in shapes_of(CLIP):
        if name == "towers.logit_scale":
            assert made[name].exp().item() == pytest.approx(100), (
                "no encoder of diffusers holds the temperature"
            )
        else:
            assert torch.equal(made[name], wanted[name]), name


def test_the_published_towers_are_described_by_their_shapes() -> None:
    """ViT-L/14 itself, on tensors without memory."""
    spec = ClipSpec(
        embed_dim=768, image_size=224, vision_layers=24, vision_width=1024, vision_patch_size=14, text_context=77,
        text_width=768, text_heads=12, text_layers=12, quick_gelu=True, unit_norm=False,
    )  # fmt: skip
    from mavcli.weights.openai_clip import _spec_of_openai

    shapes = {name.removeprefix("towers."): shape for name, shape in shapes_of(spec).items()}
    assert _spec_of_openai(shapes, "ViT-L-14.pt") == spec


def test_another_vocabulary_is_no_clip_of_openai(openai: dict[str, Tensor], tmp_path: Path) -> None:
    cut = openai | {"token_embedding.weight": openai["token_embedding.weight"][:100]}
    save(cut, tmp_path / "ViT.safetensors")
    with pytest.raises(WeightsError, match="a vocabulary of 100 tokens"):
        plan_import(tmp_path / "ViT.safetensors", layout="karlo")
    with pytest.raises(WeightsError, match="holds no CLIP in the layout of transformers"):
        transformers_plan(tmp_path / "ViT.safetensors")
