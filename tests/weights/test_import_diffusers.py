"""Random tiny networks of diffusers, saved by diffusers itself, imported, and sampled from as its UnCLIPPipeline does.

The pipeline's own class needs `transformers`; its loop is written out here over diffusers' networks and schedulers.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import assert_near
from torch import Tensor
from torch.nn import functional as F

from mavcli.diffusion.guidance import guided
from mavcli.diffusion.samplers import sample
from mavcli.diffusion.schedule import Schedule
from mavcli.engine.assemble import load_network
from mavcli.errors import UsageError, WeightsError
from mavcli.models.embeddings import Condition
from mavcli.models.prior import PriorCondition
from mavcli.weights import unclip
from mavcli.weights.importing import plan_import, run_import
from mavcli.weights.keymap import KeyTable

diffusers = pytest.importorskip("diffusers")
CLIP, WIDTH, TOKENS, SIZE = 16, 24, 6, 16


def networks() -> dict[str, Any]:
    """Karlo's five networks, tiny, no layer of them zero or the identity."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    def super_res() -> Any:
        return diffusers.UNet2DModel(
            sample_size=2 * SIZE, layers_per_block=1, down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2, block_out_channels=(32, 64), in_channels=6,
            out_channels=3, add_attention=False,
        )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = {
            "prior": diffusers.PriorTransformer(
                num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=CLIP, num_embeddings=TOKENS
            ),
            "text_proj": UnCLIPTextProjModel(
                clip_extra_context_tokens=4, clip_embeddings_dim=CLIP, time_embed_dim=128, cross_attention_dim=WIDTH
            ),
            "decoder": diffusers.UNet2DConditionModel(
                sample_size=SIZE, layers_per_block=1, in_channels=3, out_channels=6, block_out_channels=(32, 64),
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=WIDTH,
                class_embed_type="identity", attention_head_dim=16, resnet_time_scale_shift="scale_shift",
            ),
            "super_res_first": super_res(),
            "super_res_last": super_res(),
        }  # fmt: skip
        for network in found.values():
            for parameter in network.parameters():
                parameter.data.add_(0.03 * torch.randn(parameter.shape))
        found["prior"].clip_std.data.abs_().add_(0.5)
    return {name: network.eval().requires_grad_(False) for name, network in found.items()}


def schedulers() -> dict[str, Any]:
    kind = diffusers.UnCLIPScheduler
    return {
        "prior_scheduler": kind(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        "decoder_scheduler": kind(variance_type="learned_range", prediction_type="epsilon"),
        "super_res_scheduler": kind(variance_type="fixed_small_log", prediction_type="epsilon"),
    }


def networks_of(theirs: dict[str, Any]) -> list[str]:
    return [name for name in theirs if "scheduler" not in name]


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return networks() | schedulers()


@pytest.fixture(scope="module")
def folder(theirs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    for name, part in theirs.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name -> (plan, network), loaded as `mav generate` loads."""
    plans = plan_import(folder, layout="unclip-diffusers")
    done = run_import(plans, tmp_path_factory.mktemp("ours"), layout="unclip-diffusers")
    assert [d.plan.name for d in done] == ["prior", "decoder", "sr_l", "sr_l_last"]
    return {d.plan.name: (d.plan, load_network(d.header.spec, d.files[0], role=d.header.role)) for d in done}


@pytest.fixture(scope="module")
def text() -> dict[str, Tensor]:
    """Row 0 the prompt, row 1 the empty one."""
    generator = torch.Generator().manual_seed(5)
    float64 = {"generator": generator, "dtype": torch.float64}
    mask = torch.arange(TOKENS)[None] < torch.tensor([[4], [2]])
    return {
        "embedding": torch.randn(2, CLIP, **float64),
        "states": torch.randn(2, TOKENS, CLIP, **float64),
        "mask": mask,
    }


def test_schedules_and_samplers_come_along(ours: dict[str, Any]) -> None:
    told = {name: (plan.schedule, plan.sampler) for name, (plan, _) in ours.items()}
    kinds = {name: (schedule.prediction, schedule.variance) for name, (schedule, _) in told.items()}
    assert kinds == {
        "prior": ("x0", "fixed_small"),
        "decoder": ("epsilon", "learned_range"),
        "sr_l": ("epsilon", "fixed_small"),
        "sr_l_last": ("epsilon", "fixed_small"),
    }
    steps = {
        name: (sampler.steps, sampler.guidance_scale, sampler.clip_x0) for name, (_, sampler) in told.items()
    }
    assert steps["prior"] == (25, 4.0, 5.0) and steps["decoder"] == (50, 8.0, 1.0)
    assert steps["sr_l"] == (7, 1.0, 1.0)


def with_our_tables(scheduler: Any, schedule: Schedule, steps: int) -> Any:
    """diffusers keeps its tables in float32, which moves x by up to 7e-4 and would hide smaller errors."""
    scheduler.betas, scheduler.alphas = schedule.betas, 1 - schedule.betas
    scheduler.alphas_cumprod, scheduler.one = schedule.alphas_cumprod, torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def their_loop(scheduler: Any, predict: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Each step of the pipeline: it says which step comes next, and the last one is told none."""
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        previous = timesteps[i + 1] if i + 1 < len(timesteps) else None
        x = scheduler.step(predict(x, t, i), t, x, generator=generator, prev_timestep=previous).prev_sample
    return x


def our_loop(
    plan: Any, network: Any, condition: Any, x: Tensor, steps: int, seed: int, channel_dim: int
) -> Tensor:
    schedule, generator = Schedule.from_spec(plan.schedule), torch.Generator().manual_seed(seed)
    sampler = plan.sampler.model_copy(update={"steps": steps})
    denoise = guided(network, condition, sampler, schedule=schedule, channel_dim=channel_dim)
    like = x if channel_dim == 1 else x[:, 0]

    def noise(step: int) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).reshape(x.shape)

    return sample(sampler, denoise, x_T=x, schedule=schedule, noise=noise)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A condition whose unconditional half has another text, as the pipeline has it."""

    given: Condition
    other: Condition | None = None

    def without_conditioning(self) -> Rows:
        assert self.other is not None
        return Rows(self.other)

    @classmethod
    def cat(cls, rows: list[Rows]) -> Rows:
        return cls(Condition.cat([row.given for row in rows]))


def test_a_whole_guided_run_is_that_of_the_pipeline(
    theirs: dict[str, Any], ours: dict[str, Any], text: dict[str, Tensor]
) -> None:
    # float64 on both sides: at the first step the cosine process makes float32's rounding 20,000 times larger
    for part in (*(theirs[name] for name in networks_of(theirs)), *(network for _, network in ours.values())):
        part.double()
    steps = {"prior": 5, "decoder": 4, "sr_l": 3}
    float64 = {"generator": torch.Generator().manual_seed(11), "dtype": torch.float64}
    x_prior = torch.randn(1, CLIP, **float64)
    x_decoder = torch.randn(1, 3, SIZE, SIZE, **float64)
    x_sr = torch.randn(1, 3, 2 * SIZE, 2 * SIZE, **float64)

    # theirs: rows are [empty prompt, prompt]
    flipped = {name: value.flip(0) for name, value in text.items()}
    schedule = Schedule.from_spec(ours["prior"][0].schedule)

    def predict_embedding(x: Tensor, t: Tensor, _step: int) -> Tensor:
        both = theirs["prior"](
            torch.cat([x, x]), timestep=t, proj_embedding=flipped["embedding"],
            encoder_hidden_states=flipped["states"], attention_mask=flipped["mask"],
        ).predicted_image_embedding  # fmt: skip
        none, given = both.chunk(2)
        return none + 4.0 * (given - none)

    scheduler = with_our_tables(theirs["prior_scheduler"], schedule, steps["prior"])
    latent = their_loop(scheduler, predict_embedding, x_prior, torch.Generator().manual_seed(1))
    embedding = theirs["prior"].post_process_latents(latent)

    context, additive = theirs["text_proj"](
        image_embeddings=embedding, prompt_embeds=flipped["embedding"],
        text_encoder_hidden_states=flipped["states"], do_classifier_free_guidance=True,
    )  # fmt: skip
    mask = F.pad(flipped["mask"], (4, 0), value=True)

    def predict_noise(x: Tensor, t: Tensor, _step: int) -> Tensor:
        both = theirs["decoder"](
            torch.cat([x, x]), t, encoder_hidden_states=context, class_labels=additive, attention_mask=mask
        ).sample
        none, given = both.chunk(2)
        value = none[:, :3] + 8.0 * (given[:, :3] - none[:, :3])
        return torch.cat([value, given[:, 3:]], dim=1)

    scheduler = with_our_tables(theirs["decoder_scheduler"], schedule, steps["decoder"])
    small = their_loop(scheduler, predict_noise, x_decoder, torch.Generator().manual_seed(2)).clamp(-1, 1)
    low = F.interpolate(small, (2 * SIZE,) * 2, mode="bicubic", align_corners=False, antialias=True)

    def predict_detail(x: Tensor, t: Tensor, step: int) -> Tensor:
        last = step == steps["sr_l"] - 1
        return theirs["super_res_last" if last else "super_res_first"](torch.cat([x, low], dim=1), t).sample

    scheduler = with_our_tables(theirs["super_res_scheduler"], schedule, steps["sr_l"])
    large = their_loop(scheduler, predict_detail, x_sr, torch.Generator().manual_seed(3))

    # ours
    rows = [
        PriorCondition(*(text[name][[row]] for name in ("embedding", "states", "mask"))) for row in (0, 1)
    ]
    told = dataclasses.replace(rows[0], null=rows[1])
    plan, prior = ours["prior"]
    with torch.no_grad():
        mine = prior.unscale(our_loop(plan, prior, told, x_prior, steps["prior"], 1, 1))
    assert_near(mine, embedding, "the image embedding")

    def told_of(row: int, keep: bool) -> Condition:
        return Condition(
            image_embedding=mine, keep_embedding=torch.tensor([keep]), text_states=text["states"][[row]],
            text_embedding=text["embedding"][[row]], text_mask=text["mask"][[row]],
        )  # fmt: skip

    plan, decoder = ours["decoder"]
    with torch.no_grad():
        drawn = our_loop(
            plan, lambda x, t, rows: decoder(x, t, rows.given), Rows(told_of(0, True), told_of(1, False)),
            x_decoder[:, None], steps["decoder"], 2, 2,
        )  # fmt: skip
    assert_near(drawn[:, 0], small, "the small picture")

    (plan, first), (_, last) = ours["sr_l"], ours["sr_l_last"]
    with torch.no_grad():
        enlarged = our_loop(
            plan, lambda x, t, condition: (last if t[0] == 0 else first)(x, t, condition),
            Condition(low_res=low[:, None]), x_sr[:, None], steps["sr_l"], 3, 2,
        )  # fmt: skip
    assert_near(enlarged[:, 0], large, "the large picture")


def test_going_back_gives_files_that_diffusers_saved(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    tables: dict[str, KeyTable] = {
        "prior": unclip.prior_table(ours["prior"][0].spec),
        "decoder": unclip.unet_table(ours["decoder"][0].spec),
        "sr_l_last": unclip.unet_table(ours["sr_l_last"][0].spec),
    }
    saved = {
        "prior": theirs["prior"].state_dict(),
        "decoder": theirs["decoder"].state_dict() | theirs["text_proj"].state_dict(),
        "sr_l_last": theirs["super_res_last"].state_dict(),
    }
    for name, table in tables.items():
        back = dict(table.invert(ours[name][1].state_dict()))
        assert back.keys() == saved[name].keys()
        assert all(torch.equal(back[key].float(), saved[name][key].float()) for key in back), name


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("decoder", "act_fn", "gelu", "`act_fn` is 'gelu', only 'silu' is supported"),
        ("decoder", "class_embed_type", None, "`class_embed_type` is None, only 'identity'"),
        ("decoder", "down_block_types", ["DownBlock2D"] * 2, "a `DownBlock2D`, only ResnetDownsampleBlock2D"),
        ("prior", "additional_embeddings", 3, "`additional_embeddings` is 3, only 4 is supported"),
        ("prior", "time_embed_dim", 7, "`time_embed_dim` is 7, only 32 is supported"),
        ("text_proj", "cross_attention_dim", 8, "`cross_attention_dim` is 8, the decoder's is 24"),
        ("decoder_scheduler", "_class_name", "DDIMScheduler", "a DDIMScheduler of `squaredcos_cap_v2`"),
        ("prior_scheduler", "beta_schedule", "linear", "an? UnCLIPScheduler of `linear` with variance"),
        ("super_res_first", "add_attention", True, "`add_attention` is True, only False is supported"),
    ],
)
def test_another_network_is_refused_by_name(
    part: str, key: str, value: Any, message: str, folder: Path, tmp_path: Path
) -> None:
    for place in folder.iterdir():
        (tmp_path / place.name).mkdir()
        for file in place.iterdir():
            (tmp_path / place.name / file.name).symlink_to(file)
    file = tmp_path / part / ("scheduler_config.json" if "scheduler" in part else "config.json")
    config = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(config | {key: value}))
    with pytest.raises(UsageError, match=message):
        plan_import(tmp_path, layout="unclip-diffusers")


def test_a_decoder_needs_its_text_projection(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "decoder").symlink_to(folder / "decoder")
    with pytest.raises(WeightsError, match="a decoder and no `text_proj`"):
        plan_import(tmp_path, layout="unclip-diffusers")


def test_a_text_tower_alone_is_no_clip(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "prior").symlink_to(folder / "prior")
    (tmp_path / "prior_scheduler").symlink_to(folder / "prior_scheduler")
    with pytest.raises(WeightsError, match="no `image_encoder`, and CLIP needs both of its towers"):
        plan_import(tmp_path, layout="unclip-diffusers", roles=["clip"])
    (plan,) = plan_import(tmp_path, layout="unclip-diffusers")
    assert plan.name == "prior"
