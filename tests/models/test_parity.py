"""Random tiny networks of the published families give what the original repositories gave (invariant 11)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.models.embeddings import Condition
from mavcli.models.prior import Prior, PriorCondition
from mavcli.models.unet import UNet
from mavcli.specs import PriorSpec, UNetSpec

BASE = {
    "image_size": 32,
    "model_channels": 32,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": 2,
    "attention_resolutions": (16, 8),
    "num_head_channels": 16,
}
SR = {
    **BASE,
    "attention_resolutions": (),
    "mid_attention": False,
    "low_res_channels": 3,
    "use_scale_shift_norm": False,
}
GLIDE = {
    **BASE,
    "out_channels": 6,
    "context_dim": 64,
    "text": "glide",
    "text_context": 12,
    "text_layers": 2,
    "text_heads": 4,
    "text_vocabulary": 100,
}
Get = Callable[[str], Tensor]


def enlarged(get: Get) -> Tensor:
    """The upsamplers of ADM and GLIDE resize what they are given themselves; ours are given the resized picture."""
    return F.interpolate(get("low_res"), (32, 32), mode="bilinear", align_corners=False)[:, None]


def inpainted(get: Get) -> Tensor:
    mask = get("inpaint_mask")
    return torch.cat([get("inpaint_image") * mask, mask], dim=1)[:, None]


def words(get: Get) -> dict[str, Tensor]:
    return {"text_tokens": get("tokens").long(), "text_mask": get("mask").bool()}


@dataclass(frozen=True)
class Case:
    spec: UNetSpec
    condition: Callable[[Get], Condition]
    data: str
    prefix: str = ""
    head_interleaved: bool = True
    """Whether qkv's rows are grouped by head, as everywhere but in ADM's `new attention order`."""


CASES = {
    "adm64": Case(
        UNetSpec(**BASE, out_channels=6, num_classes=10),
        lambda get: Condition(class_labels=get("y").long()),
        "adm64_tiny",
        head_interleaved=False,
    ),
    "adm plain": Case(
        UNetSpec(
            **{**BASE, "num_head_channels": None},
            num_heads=4,
            use_scale_shift_norm=False,
            resblock_updown=False,
        ),
        lambda get: Condition(),
        "adm_plain_tiny",
    ),
    "adm upsampler": Case(
        UNetSpec(
            **{**BASE, "num_head_channels": None},
            num_heads=4,
            out_channels=6,
            num_classes=10,
            low_res_channels=3,
        ),
        lambda get: Condition(class_labels=get("y").long(), low_res=enlarged(get)),
        "adm_upsampler_tiny",
    ),
    "karlo decoder": Case(
        UNetSpec(
            **BASE, out_channels=6, clip_dim=24, context_dim=48, text="clip", text_dim=24, text_context=12
        ),
        lambda get: Condition(
            image_embedding=get("y"),
            text_states=get("txt_feat_seq"),
            text_embedding=get("txt_feat"),
            text_mask=get("mask").bool(),
        ),
        "karlo_decoder_tiny",
        prefix="model.",
    ),
    "karlo sr first steps": Case(
        UNetSpec(**SR),
        lambda get: Condition(low_res=get("low_res")[:, None]),
        "karlo_sr_tiny",
        "model_first_steps.",
    ),
    "karlo sr last step": Case(
        UNetSpec(**SR),
        lambda get: Condition(low_res=get("low_res")[:, None]),
        "karlo_sr_tiny",
        "model_last_step.",
    ),
    "glide base": Case(UNetSpec(**GLIDE), lambda get: Condition(**words(get)), "glide_base_tiny"),
    "glide inpaint": Case(
        UNetSpec(**GLIDE, mask_channels=4),
        lambda get: Condition(**words(get), masked_video=inpainted(get)),
        "glide_inpaint_tiny",
    ),
    "glide upsample": Case(
        UNetSpec(**GLIDE, low_res_channels=3),
        lambda get: Condition(**words(get), low_res=enlarged(get)),
        "glide_upsample_tiny",
    ),
    "glide upsample inpaint": Case(
        UNetSpec(**GLIDE, low_res_channels=3, mask_channels=4),
        lambda get: Condition(**words(get), low_res=enlarged(get), masked_video=inpainted(get)),
        "glide_upsample_inpaint_tiny",
    ),
}
# Names of the reference's outputs that are not those of a module of ours.
ELSEWHERE = {
    "input_blocks.3_down": "input_blocks.3",
    "input_blocks.4_attn": "input_blocks.4",
    "mid_attn": "middle_block.1",
}


@pytest.fixture(scope="module")
def references(shared_data: Path) -> Path:
    return shared_data / "backbone_references"


@pytest.fixture(scope="module")
def tensor_for(references: Path) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    found = importlib.util.spec_from_file_location("reference_recipe", references / "recipe.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.tensor_for


def canonical(key: str, value: Tensor, spec: UNetSpec) -> Tensor:
    """Rows of qkv and encoder_kv from per head to all of q, then k, then v."""
    parts = 3 if ".qkv." in key else 2
    channels = len(value) // parts
    heads = channels // spec.num_head_channels if spec.num_head_channels else spec.num_heads
    return value.reshape(heads, parts, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)


def weights_of(references, tensor_for, name: str, prefix: str) -> dict[str, Tensor]:
    layout = json.loads((references / f"{name}.layout.json").read_text())["layout"]
    return {
        key.removeprefix(prefix): torch.as_tensor(tensor_for(key, tuple(shape))).float()
        for key, shape in layout.items()
        if key.startswith(prefix)
    }


def recorded(network: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """A dictionary that the outputs of the named modules are put into when the network runs."""
    outputs: dict[str, Tensor] = {}
    for name in names:
        network.get_submodule(ELSEWHERE.get(name, name)).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
    return outputs


def assert_equal(ours: Tensor, theirs: np.ndarray, name: str) -> None:
    reference = torch.as_tensor(theirs)
    error = (ours - reference).abs().max() / reference.abs().max()
    assert error < 1e-4, f"{name} differs by {error:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_a_unet_of_a_published_family_equals_the_original(name, references, tensor_for):
    case = CASES[name]
    state = weights_of(references, tensor_for, case.data, case.prefix)
    if case.head_interleaved:
        state = {
            k: canonical(k, v, case.spec) if ".qkv." in k or ".encoder_kv." in k else v
            for k, v in state.items()
        }
    network = UNet(case.spec).eval()
    network.load_state_dict(state)
    inputs = np.load(references / f"{case.data}.inputs.npz")
    wanted = {
        key.removeprefix(case.prefix if "first" in case.prefix or "last" in case.prefix else ""): value
        for key, value in np.load(references / f"{case.data}.outputs.npz").items()
        if "model_" not in key or key.startswith(case.prefix)
    }
    modules = [key for key in wanted if key.startswith(("input_", "middle_", "output_", "mid_", "time_"))]
    outputs = recorded(network, modules)

    def get(key: str) -> Tensor:
        return torch.as_tensor(inputs[key])

    with torch.no_grad():
        y = network(get("x")[:, None], get("t"), case.condition(get))[:, 0]
    assert_equal(y, wanted["output"], "the output")
    for module in modules:
        assert_equal(outputs[module], wanted[module], module)


def test_the_prior_equals_karlos(references, tensor_for):
    prior = Prior(
        PriorSpec(clip_dim=24, text_dim=24, text_context=12, width=64, layers=3, num_heads=4)
    ).eval()
    inputs = {k: torch.as_tensor(v) for k, v in np.load(references / "karlo_prior_tiny.inputs.npz").items()}
    state = weights_of(references, tensor_for, "karlo_prior_tiny", "model.")
    prior.load_state_dict(state | {"clip_mean": inputs["clip_mean"], "clip_std": inputs["clip_std"]})
    mask = inputs["mask"].bool()
    assert not mask.all(), "the reference has padded tokens"
    outputs = recorded(prior, ["time_embed", "text_enc_proj", "transformer.resblocks.0", "transformer"])
    with torch.no_grad():
        x0 = prior(inputs["x"], inputs["t"], PriorCondition(inputs["text_emb"], inputs["text_enc"], mask))
    wanted = np.load(references / "karlo_prior_tiny.outputs.npz")
    assert_equal(x0, wanted["output_x0"], "x0")
    assert_equal(outputs["time_embed"], wanted["time_embed"], "time_embed")
    assert_equal(outputs["text_enc_proj"], wanted["text_enc_proj"], "text_enc_proj")
    seen = torch.cat([mask, mask.new_ones(2, 4)], dim=1)  # what a padded token holds is read by nobody
    assert_equal(outputs["transformer.resblocks.0"][seen], wanted["block0"][seen.numpy()], "block 0")
    assert_equal(outputs["transformer"][seen], wanted["transformer"][seen.numpy()], "transformer")
