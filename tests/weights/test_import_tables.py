"""Key tables: every key of the published layouts has its place, to the parameter, and what does not fit is named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import Backbones, backbones, write_schedulers
from torch import Tensor

from mavcli.errors import UsageError, WeightsError
from mavcli.specs import PriorSpec, UNetSpec
from mavcli.weights import adm, karlo, unclip
from mavcli.weights.importing import count
from mavcli.weights.keymap import (
    Constant,
    Entry,
    KeyTable,
    LeadingOne,
    PerHead,
    Same,
    Stacked,
    Transposed,
)
from mavcli.weights.source import Checkpoint, Plan, shapes_of, unwrapped_names


@pytest.fixture(scope="module")
def references(shared_data: Path) -> Backbones:
    return backbones(shared_data / "backbone_references")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, tuple[int, ...]]]:
    """Checkpoints without their tensors: file name -> layout. A billion parameters then cost nothing."""
    layouts: dict[str, dict[str, tuple[int, ...]]] = {}

    def add(self: Checkpoint, path: Path) -> None:
        self.files += (path,)
        name = path.stem if path.parent.name == "" or path.stem in layouts else path.parent.name
        self.shapes.update(layouts[name])

    monkeypatch.setattr(Checkpoint, "add", add)
    return layouts


def layout_of(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in model["layout"].items()}


def assert_maps(plan: Plan, parameters: int) -> None:
    plan.table.check(plan.found, shapes_of(plan.spec), source=plan.name, what=plan.what)
    assert count(plan) == parameters


def test_the_published_karlo_maps_to_the_parameter(references: Backbones, published: dict[str, Any]) -> None:
    models = references.json("karlo_full_original")["models"]
    published |= {name: layout_of(model) for name, model in models.items()}
    published["prior"] |= {"clip_mean": (768,), "clip_std": (768,)}
    (prior,) = karlo.plans(Path("prior"), [], roles=())
    # the statistics are no parameters of the original
    assert_maps(prior, models["prior"]["total_parameters"] + 2 * 768)
    assert prior.spec == PriorSpec(layers=20, null_text="empty")
    (decoder,) = karlo.plans(Path("decoder"), [], roles=())
    assert_maps(decoder, 893_318_086)
    assert decoder.spec == UNetSpec(
        out_channels=6, clip_dim=768, context_dim=1536, text="clip", num_res_blocks=3
    )
    first, last = karlo.plans(Path("sr"), [], roles=())
    assert count(first) == count(last) == 691_579_523
    assert count(first) + count(last) == models["sr"]["total_parameters"]
    assert [plan.name for plan in (first, last)] == ["sr_l", "sr_l_last"]
    for plan in (first, last):
        assert_maps(plan, 691_579_523)
    assert first.spec == UNetSpec(
        image_size=256,
        low_res_channels=3,
        attention_resolutions=(),
        mid_attention=False,
        use_scale_shift_norm=False,
    )


def test_the_configurations_of_karlo_describe_the_same_networks(
    references: Backbones, published: dict[str, Any]
) -> None:
    models = references.json("karlo_full_original")["models"]
    published |= {name: layout_of(model) for name, model in models.items()}
    published["prior"] |= {"clip_mean": (768,), "clip_std": (768,)}
    flags = [adm.flat_flags(model["config"]) for model in models.values()]
    for name in models:
        told, known = (karlo.plans(Path(name), f, roles=()) for f in (flags, []))
        assert [(plan.spec, plan.schedule) for plan in told] == [(plan.spec, plan.schedule) for plan in known]


def test_the_published_karlo_of_diffusers_maps_to_the_parameter(
    references: Backbones, published: dict[str, Any], tmp_path: Path
) -> None:
    models = references.json("karlo_full_diffusers")["models"]
    for name, model in models.items():
        published[name] = layout_of(model)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(model["config"]))
        (tmp_path / name / "diffusion_pytorch_model.safetensors").touch()
    write_schedulers(tmp_path)
    plans = {plan.name: plan for plan in unclip.plans(tmp_path, roles=())}
    wanted = {name: model["total_parameters"] for name, model in models.items()}
    assert_maps(plans["prior"], wanted["prior"])
    assert_maps(plans["decoder"], wanted["decoder"] + wanted["text_proj"])
    assert wanted["decoder"] == 885_439_686 and wanted["prior"] == 1_022_030_080
    assert_maps(plans["sr_l"], wanted["super_res_first"])
    assert_maps(plans["sr_l_last"], 691_579_523)
    originals = references.json("karlo_full_original")["models"]
    published |= {name: layout_of(model) for name, model in originals.items() if name != "prior"}
    published["original_prior"] = layout_of(originals["prior"]) | {"clip_mean": (768,), "clip_std": (768,)}
    published["original_decoder"] = layout_of(originals["decoder"])
    for name in ("decoder", "prior"):
        (original,) = karlo.plans(Path(f"original_{name}"), [], roles=())
        assert original.spec == plans[name].spec, "both layouts are one network"


def test_the_unconditional_adm_maps_to_the_parameter(
    references: Backbones, published: dict[str, Any]
) -> None:
    model = references.json("adm_full_original")["models"]["adm_256_uncond"]
    published["adm_256_uncond"] = layout_of(model)
    (plan,) = adm.plans(Path("adm_256_uncond"), None)
    assert_maps(plan, model["total_parameters"])
    (told,) = adm.plans(Path("adm_256_uncond"), model["config"])
    assert told.spec == plan.spec and plan.schedule is not None and plan.schedule.name == "linear"
    assert {type(entry.conversion) for entry in plan.table.entries if ".qkv." in entry.target} == {PerHead}


@pytest.mark.parametrize(
    ("family", "name", "told_by"),
    [
        *(("adm", name, "is class-conditional (1000 classes)") for name in ("adm_64", "adm_128", "adm_256")),
        ("adm", "upsampler_64_256", "is class-conditional (1000 classes)"),
        *(
            ("glide", name, "reads captions with a text transformer of its own")
            for name in ("base", "upsample")
        ),
    ],
)
def test_a_network_that_the_chain_cannot_tell_what_to_draw_is_refused_by_name(
    family: str, name: str, told_by: str, references: Backbones, published: dict[str, Any]
) -> None:
    """Two prompts would give one picture (GLIDE), or none (ADM by class)."""
    published[name] = layout_of(references.json(f"{family}_full_original")["models"][name])
    with pytest.raises(WeightsError, match=re.escape(told_by)):
        adm.plans(Path(name), None)


def test_our_table_of_diffusers_is_that_of_the_reference(references: Backbones) -> None:
    """The reference tells for each of diffusers' keys which rows of which original key it is."""
    maps = references.json("karlo_tiny_key_map_original_to_diffusers")["maps"]
    layouts = {
        name: references.json(f"{name}.layout")["layout"]
        for name in ("karlo_decoder_tiny", "karlo_sr_tiny", "karlo_prior_tiny")
    }
    models = references.json("karlo_diffusers_tiny.layout")["models"]
    decoder = UNetSpec(
        image_size=32, model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=2, num_head_channels=16,
        attention_resolutions=(16, 8), out_channels=6, clip_dim=24, context_dim=48, text="clip", text_dim=24,
        text_context=12,
    )  # fmt: skip
    sr = UNetSpec(
        image_size=32, model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=2, attention_resolutions=(),
        mid_attention=False, low_res_channels=3, use_scale_shift_norm=False,
    )  # fmt: skip
    prior = PriorSpec(clip_dim=24, text_dim=24, text_context=12, width=64, layers=3, num_heads=4)

    def numbered(layout: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """Every number of the original is its own place, so that one that lands elsewhere is seen."""
        place, found = 0, {}
        for name, shape in layout.items():
            if name.startswith(prefix):
                size = math.prod(shape)
                found[name] = torch.arange(place, place + size, dtype=torch.float64).reshape(shape)
                place += size
        return found

    cases = [
        ("karlo_decoder_tiny", "model.", adm.adm_table(decoder, legacy=True, prefix="model."),
         unclip.unet_table(decoder), ["decoder", "text_proj"]),
        ("karlo_sr_tiny", "model_first_steps.", adm.adm_table(sr, legacy=True, prefix="model_first_steps."),
         unclip.unet_table(sr), ["super_res_first"]),
        ("karlo_prior_tiny", "model.", None, unclip.prior_table(prior), ["prior"]),
    ]  # fmt: skip
    for name, prefix, original, table, parts in cases:
        theirs = numbered(layouts[name], prefix)
        if original is None:
            own = {k.removeprefix(prefix): v for k, v in theirs.items()}
            own |= {"clip_mean": torch.arange(24.0), "clip_std": torch.arange(24.0) + 1}
            theirs |= {key: own[key] for key in ("clip_mean", "clip_std")}
        else:
            own = dict(original.convert(theirs))
        inverted = dict(table.invert(own))
        assert inverted.keys() == {key for part in parts for key in models[part]["layout"]}
        for part in parts:
            for key, told in maps[part].items():
                if isinstance(told, str):
                    wanted = theirs[told]
                else:
                    wanted = torch.cat([theirs[told["key"]][a:b] for a, b in told["rows"]])
                made = inverted[key]
                assert list(made.shape) == models[part]["layout"][key], key
                assert torch.equal(made.reshape(-1), wanted.reshape(-1)), key


CONVERSIONS = {
    "same": (Same(), [(6, 2)]),
    "by head": (PerHead(3, 4), [(24, 2, 1)]),
    "stacked": (Stacked(3, trailing=1), [(4, 4)] * 3),
    "stacked by head": (Stacked(3, heads=2), [(4, 4)] * 3),
    "stacked biases": (Stacked(2, trailing=1), [(4,)] * 2),
    "transposed": (Transposed(), [(3, 5)]),
    "one row": (LeadingOne(), [(1, 7)]),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_goes_back_to_where_it_came_from(name: str) -> None:
    conversion, shapes = CONVERSIONS[name]
    theirs = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)
    ]
    back = conversion.theirs(conversion.ours(theirs))
    assert len(back) == len(theirs) and all(torch.equal(a, b) for a, b in zip(back, theirs, strict=True))


TABLE = KeyTable(
    (Entry("a", ("x",)), Entry("qkv", ("q", "k", "v"), Stacked(3)), Entry("c", (), Constant(2.0))),
    {"steps": "a counter"},
)
FOUND = {"x": (2,), "q": (3, 4), "k": (3, 4), "v": (3, 4), "steps": ()}
WANTED = {"a": (2,), "qkv": (9, 4), "c": ()}


def test_a_table_takes_what_is_used_dropped_and_known() -> None:
    TABLE.check(FOUND, WANTED, source="f", what="a net")
    made = TABLE.convert({name: torch.ones(shape) for name, shape in FOUND.items()})
    assert {name: tuple(made[name].shape) for name in made} == WANTED and made["c"] == 2.0


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        ({**FOUND, "extra": (1,)}, WANTED, r"1 tensor is left over \(`extra`\)"),
        ({k: v for k, v in FOUND.items() if k not in "qk"}, WANTED, r"2 tensors are missing \(`q`, `k`\)"),
        (FOUND, {**WANTED, "b": (1,)}, r"1 tensor of ours is not filled \(`b`\)"),
        (FOUND, {"a": (2,), "c": ()}, r"1 tensor has no place in ours \(`qkv`\)"),
        ({**FOUND, "x": (3,)}, WANTED, r"wrong shapes: `x` \[3\] does not make \[2\]"),
        ({**FOUND, "k": (3, 5)}, WANTED, r"`k` \[3, 5\], `v` \[3, 4\] does not make \[9, 4\]"),
    ],
)
def test_what_does_not_fit_is_named(found: dict[str, Any], wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        TABLE.check(found, wanted, source="f", what="a net")


def test_all_that_is_amiss_is_told_at_once() -> None:
    with pytest.raises(WeightsError) as caught:
        TABLE.check({"x": (3,), "y": ()}, WANTED, source="f", what="a net")
    assert all(part in caught.value.message for part in ("missing", "left over", "wrong shapes"))


def test_a_network_that_nobody_published_needs_its_configuration(
    references: Backbones, published: dict[str, Any]
) -> None:
    told = references.json("adm_plain_tiny.layout")
    published["mine"] = layout_of(told)
    with pytest.raises(WeightsError, match="none of the U-Nets that guided-diffusion published") as caught:
        adm.plans(Path("mine"), None)
    assert caught.value.hint is not None and "--config" in caught.value.hint
    with pytest.raises(UsageError, match="`model_channels` is 64 there, the tensors show 32"):
        adm.plans(Path("mine"), {**told["config"], "model_channels": 64})
    (plan,) = adm.plans(Path("mine"), told["config"])
    assert plan.spec.num_heads == 4 and plan.spec.num_head_channels is None


@pytest.mark.parametrize(
    ("stored", "names", "notes"),
    [
        (["a.b", "a.c"], {"a.b": "a.b", "a.c": "a.c"}, []),
        (["module.a.b", "module.a.c"], {"a.b": "module.a.b", "a.c": "module.a.c"}, ["`module.` (data parallel) is taken off the names"]),
        (["_orig_mod.module.x.1", "_orig_mod.module.y.2"], {"x.1": "_orig_mod.module.x.1", "y.2": "_orig_mod.module.y.2"},
         ["`_orig_mod.` (torch.compile) is taken off the names", "`module.` (data parallel) is taken off the names"]),
        (["model.a._orig_mod.w", "model.b"], {"model.a.w": "model.a._orig_mod.w", "model.b": "model.b"},
         ["`_orig_mod.` (torch.compile) is taken off the names"]),
        (["module.a.w", "module.b", "n_averaged"], {"a.w": "module.a.w", "b": "module.b"},
         ["`n_averaged` is dropped, the counter of an averaged model", "`module.` (data parallel) is taken off the names"]),
        (["model.a", "model.b", "ema.a", "ema.b"], {"model.a": "ema.a", "model.b": "ema.b"},
         ["`ema.*` is taken, the moving average of the weights, not `model.*`"]),
        (["module.a", "other.b"], {"module.a": "module.a", "other.b": "other.b"}, []),
        (["model.a", "ema.a", "ema.b"], {"model.a": "model.a", "ema.a": "ema.a", "ema.b": "ema.b"}, []),
    ],
)  # fmt: skip
def test_what_wrapped_a_network_in_training_is_taken_off_its_names(
    stored: list[str], names: dict[str, str], notes: list[str]
) -> None:
    assert unwrapped_names(stored, Path("x.pt")) == (names, notes)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(WeightsError, match="holds two tensors of one name"):
        unwrapped_names(["a._orig_mod.w", "a.w"], Path("x.pt"))
