"""What is imported from the published layouts computes what the original repositories computed (invariant 11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from backbones import Backbones, assert_near, backbones, recorded
from torch import Tensor

from mavcli.diffusion.guidance import guided
from mavcli.diffusion.samplers import sample
from mavcli.diffusion.schedule import Schedule
from mavcli.engine.assemble import load_network
from mavcli.models.embeddings import Condition
from mavcli.models.prior import PriorCondition
from mavcli.weights.importing import Imported, Layout, plan_import, run_import

Get = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def references(shared_data: Path) -> Backbones:
    return backbones(shared_data / "backbone_references")


def imported(
    source: Path, layout: Layout, out: Path, *, roles: tuple[str, ...] = (), config: Path | None = None
) -> dict[str, Imported]:
    plans = plan_import(source, layout=layout, roles=roles, configs=[] if config is None else [config])
    return {done.plan.name: done for done in run_import(plans, out, layout=layout)}


def loaded(done: Imported) -> torch.nn.Module:
    """Through the loading that `mav generate` does."""
    return load_network(done.header.spec, done.files[0], role=done.header.role)


def karlo_text(get: Get) -> Condition:
    return Condition(
        image_embedding=get("y"),
        text_states=get("txt_feat_seq"),
        text_embedding=get("txt_feat"),
        text_mask=get("mask").bool(),
    )


@dataclass(frozen=True)
class Case:
    layout: Layout
    condition: Callable[[Get], Condition]
    name: str = "decoder"
    role: str = "decoder"
    variance: str = "learned_range"
    prefix: str = ""


CASES = {
    "adm_plain_tiny": Case("adm", lambda get: Condition(), variance="fixed_small"),
    "karlo_decoder_tiny": Case("karlo", karlo_text),
    "karlo_sr_tiny": Case(
        "karlo", lambda get: Condition(low_res=get("low_res")[:, None]), "sr_l", "sr_l", "fixed_small",
        prefix="model_first_steps.",
    ),
    "karlo_sr_tiny last": Case(
        "karlo", lambda get: Condition(low_res=get("low_res")[:, None]), "sr_l_last", "sr_l", "fixed_small",
        prefix="model_last_step.",
    ),
}  # fmt: skip
# Names of the reference's outputs that are not those of a module of ours.
ELSEWHERE = {
    "input_blocks.3_down": "input_blocks.3",
    "input_blocks.4_attn": "input_blocks.4",
    "mid_attn": "middle_block.1",
}


@pytest.mark.parametrize("name", CASES)
def test_an_imported_unet_equals_the_original(name: str, references: Backbones, tmp_path: Path) -> None:
    case, data = CASES[name], name.split()[0]
    source = references.write(data, tmp_path / "theirs.safetensors")
    done = imported(source, case.layout, tmp_path / "ours", config=source.with_suffix(".json"))[case.name]
    assert done.header.role == case.role and done.header.schedule is not None
    assert done.header.schedule.variance == case.variance
    network = loaded(done)
    inputs, everything = references.npz(f"{data}.inputs"), references.npz(f"{data}.outputs")
    wanted = {
        key.removeprefix(case.prefix): value
        for key, value in everything.items()
        if key.startswith(case.prefix) and not key.startswith(("guided5", "sample7"))
    }
    modules = {key: ELSEWHERE.get(key, key) for key in wanted if key != "output"}
    assert len(modules) >= 1, "the reference has intermediate outputs"
    outputs = recorded(network, modules)
    with torch.no_grad():
        y = network(inputs["x"][:, None], inputs["t"], case.condition(inputs.__getitem__))[:, 0]
    assert_near(y, wanted["output"], "the output")
    for module in modules:
        ours = outputs[module].transpose(1, 2) if module.endswith("_NCL") else outputs[module]
        assert_near(ours, wanted[module], module)


@pytest.fixture(scope="module")
def prior_source(references: Backbones, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Karlo's prior as a pickle, with the pair of statistics beside it, as they were published."""
    folder = tmp_path_factory.mktemp("karlo")
    inputs = references.npz("karlo_prior_tiny.inputs")
    told = references.json("karlo_prior_tiny.layout")
    torch.save(
        {"state_dict": references.weights(told["layout"]), "global_step": 7},
        folder / "prior-ckpt-step=01000000-of-01000000.ckpt",
    )
    torch.save((inputs["clip_mean"], inputs["clip_std"]), folder / "ViT-L-14_stats.th")
    (folder / "configs").mkdir()
    config = told["config"]
    text = "model:\n  type: prior\n  hparams: {}\ndiffusion: {}\n".format(
        *("{" + ", ".join(f"{k}: {str(v).lower()}" for k, v in part.items() if v != "") + "}"
          for part in (config["hparams"], config["diffusion"]))
    )  # fmt: skip
    (folder / "configs" / "prior_1B_vit_l.yaml").write_text(text)
    return folder


def test_karlos_prior_is_imported_with_its_statistics(
    references: Backbones, prior_source: Path, tmp_path: Path
) -> None:
    done = imported(prior_source, "karlo", tmp_path, roles=("prior",))["prior"]
    assert [file.name for file in done.header.imported_from] == [
        "prior-ckpt-step=01000000-of-01000000.ckpt", "ViT-L-14_stats.th",
    ]  # fmt: skip
    assert done.header.schedule is not None and done.header.schedule.prediction == "x0"
    prior = loaded(done)
    inputs, wanted = (references.npz(f"karlo_prior_tiny.{part}") for part in ("inputs", "outputs"))
    mask = inputs["mask"].bool()
    assert not mask.all(), "the reference has padded tokens"
    modules = {
        "time_embed": "time_embed",
        "text_enc_proj": "text_enc_proj",
        "block0": "transformer.resblocks.0",
        "transformer": "transformer",
    }
    outputs = recorded(prior, modules)
    with torch.no_grad():
        x0 = prior(inputs["x"], inputs["t"], PriorCondition(inputs["text_emb"], inputs["text_enc"], mask))
    assert_near(x0, wanted["output_x0"], "x0")
    seen = torch.cat([mask, mask.new_ones(2, 4)], dim=1)  # what a padded token holds is read by nobody
    for name in modules:
        ours, theirs = outputs[name], wanted[name]
        if ours.ndim == 3 and ours.shape[1] == seen.shape[1]:
            ours, theirs = ours[seen], theirs[seen]
        assert_near(ours, theirs, name)

    # the whole sampling, guided against the second row's text
    text, none = (
        PriorCondition(inputs["text_emb"][[row]], inputs["text_enc"][[row]], mask[[row]]) for row in (0, 1)
    )
    noise = inputs["guided5_noise"][:, :1]
    schedule = Schedule.from_spec(done.header.schedule)
    sampler = done.plan.sampler.model_copy(
        update={"steps": 5, "guidance_scale": inputs["guided5_scale"].item()}
    )
    denoise = guided(
        prior,
        PriorCondition(text.text_embedding, text.text_states, text.text_mask, null=none),
        sampler,
        schedule=schedule,
        channel_dim=1,
    )
    with torch.no_grad():
        x0 = sample(sampler, denoise, x_T=noise[0], schedule=schedule, noise=lambda step: noise[step + 1])
        embedding = prior.unscale(x0)
    assert_near(embedding, wanted["guided5_image_embedding"], "the sampled image embedding")


@dataclass(frozen=True)
class Rows:
    """A condition whose unconditional half has another text, as Karlo's pipeline has it and our chain never does."""

    given: Condition
    other: Condition | None = None

    def without_conditioning(self) -> Rows:
        assert self.other is not None
        return Rows(self.other)

    @classmethod
    def cat(cls, rows: list[Rows]) -> Rows:
        return cls(Condition.cat([row.given for row in rows]))


def test_karlos_guided_decoder_samples_the_original_picture(references: Backbones, tmp_path: Path) -> None:
    source = references.write("karlo_decoder_tiny", tmp_path / "decoder.safetensors")
    done = imported(source, "karlo", tmp_path / "ours", config=source.with_suffix(".json"))["decoder"]
    # float64: guidance makes float32's own rounding 2e-4 by the last step, twice what the reference is off by
    decoder = loaded(done).double()
    stored, wanted = (references.npz(f"karlo_decoder_tiny.{part}") for part in ("inputs", "outputs"))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in stored.items()}

    def row(number: int, keep: bool) -> Condition:
        return Condition(
            image_embedding=inputs["guided5_img_feat"],
            keep_embedding=torch.tensor([keep]),
            text_states=inputs["txt_feat_seq"][[number]],
            text_embedding=inputs["txt_feat"][[number]],
            text_mask=inputs["mask"][[number]].bool(),
        )

    noise = inputs["guided5_noise"][:, :1, None]
    seen = []

    def network(x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        seen.append(x[:1, 0])
        return decoder(x, t, rows.given)

    schedule = Schedule.from_spec(done.header.schedule)
    sampler = done.plan.sampler.model_copy(
        update={"steps": 5, "guidance_scale": inputs["guided5_scale"].item()}
    )
    denoise = guided(network, Rows(row(0, True), row(1, False)), sampler, schedule=schedule)
    with torch.no_grad():
        x0 = sample(sampler, denoise, x_T=noise[0], schedule=schedule, noise=lambda step: noise[step + 1])
    for step, (ours, theirs) in enumerate(zip([*seen[1:], x0[:, 0]], wanted["guided5_samples"], strict=True)):
        assert_near(ours, theirs, f"step {step}")


def test_karlos_seven_steps_enlarge_as_the_original_did(references: Backbones, tmp_path: Path) -> None:
    source = references.write("karlo_sr_tiny", tmp_path / "sr.safetensors")
    done = imported(source, "karlo", tmp_path / "ours", config=source.with_suffix(".json"))
    first, last = loaded(done["sr_l"]), loaded(done["sr_l_last"])
    inputs, wanted = (references.npz(f"karlo_sr_tiny.{part}") for part in ("inputs", "outputs"))
    noise = inputs["sample7_noise"][:, :1, None]
    seen = []

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        seen.append(x[:, 0])
        return (last if t[0] == 0 else first)(x, t, condition)

    schedule, sampler = Schedule.from_spec(done["sr_l"].header.schedule), done["sr_l"].plan.sampler
    condition = Condition(low_res=inputs["low_res"][:1, None])
    denoise = guided(network, condition, sampler, schedule=schedule)
    with torch.no_grad():
        x0 = sample(sampler, denoise, x_T=noise[0], schedule=schedule, noise=lambda step: noise[step + 1])
    for step, (ours, theirs) in enumerate(zip([*seen[1:], x0[:, 0]], wanted["sample7"], strict=True)):
        assert_near(ours, theirs, f"step {step}")


def test_the_tiny_karlo_of_diffusers_equals_its_reference(references: Backbones, tmp_path: Path) -> None:
    source = references.write_diffusers(tmp_path / "karlo")
    done = imported(source, "unclip-diffusers", tmp_path / "ours")
    assert list(done) == ["prior", "decoder", "sr_l", "sr_l_last"]
    wanted = references.npz("karlo_diffusers_tiny.outputs")

    inputs = references.npz("karlo_decoder_tiny.inputs")
    decoder = loaded(done["decoder"])
    names = {
        "decoder.time_embedding": "time_embed",
        "decoder.conv_in": "input_blocks.0",
        "decoder.mid_block": "middle_block",
    }
    outputs = recorded(decoder, names)
    with torch.no_grad():
        y = decoder(inputs["x"][:, None], inputs["t"], karlo_text(inputs.__getitem__))[:, 0]
    assert_near(y, wanted["decoder"], "the decoder")
    for name in names:
        assert_near(outputs[name], wanted[name], name)

    inputs = references.npz("karlo_sr_tiny.inputs")
    for ours, theirs in (("sr_l", "super_res_first"), ("sr_l_last", "super_res_last")):
        network = loaded(done[ours])
        outputs = recorded(network, {"middle": "middle_block"})
        condition = Condition(low_res=inputs["low_res"][:, None])
        with torch.no_grad():
            y = network(inputs["x"][:, None], inputs["t"], condition)[:, 0]
        assert_near(y, wanted[theirs], theirs)
        if f"{theirs}.mid_block" in wanted:
            assert_near(outputs["middle"], wanted[f"{theirs}.mid_block"], f"{theirs}.mid_block")

    inputs = references.npz("karlo_prior_tiny.inputs")
    prior = loaded(done["prior"])
    condition = PriorCondition(inputs["text_emb"], inputs["text_enc"], inputs["mask"].bool())
    with torch.no_grad():
        assert_near(prior(inputs["x"], inputs["t"], condition), wanted["prior"], "the prior")
