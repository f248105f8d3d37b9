"""Kandinsky's priors as they are published: what diffusers' own pipelines make of a prompt, and what the import makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import assert_near
from tiny_kandinsky import (
    CLIPS,
    PRIOR,
    WIDTH,
    Version,
    write_json,
    write_kandinsky,
    write_tokenizer,
)
from torch import Tensor

from mavcli.cli.app import run
from mavcli.diffusion.guidance import guided
from mavcli.diffusion.samplers import sample
from mavcli.diffusion.schedule import Schedule
from mavcli.engine.assemble import load_network
from mavcli.engine.words import embed_words
from mavcli.errors import UsageError, WeightsError
from mavcli.models.clip import Clip
from mavcli.models.prior import Prior, PriorCondition
from mavcli.recipe.load import load_recipe
from mavcli.weights.importing import Imported, plan_import, run_import
from mavcli.weights.licences import UNKNOWN, stated_licence
from mavcli.weights.provenance import read_header

PROMPTS = [
    "a dog surfing",
    "Two cats' dinner, by the sea -- at night, 1950!",
]  # the second is longer than the context
VERSIONS: tuple[Version, ...] = ("2-1", "2-2")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.fixture(scope="module")
def source(version: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kandinsky(tmp_path_factory.mktemp("kandinsky") / f"kandinsky-{version}-prior", version)


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imported]:
    plans = plan_import(source, layout="unclip-diffusers")
    made = run_import(plans, tmp_path_factory.mktemp("ours"), layout="unclip-diffusers")
    return {one.plan.name: one for one in made}


def loaded(done: dict[str, Imported], name: str) -> Any:
    return load_network(done[name].header.spec, done[name].files[0], role=name)


def test_the_networks_their_licence_and_their_clamp_are_what_the_folder_says(
    version: Version, done: dict[str, Imported]
) -> None:
    assert {name: one.header.spec for name, one in done.items()} == {"clip": CLIPS[version], "prior": PRIOR}
    assert {one.header.licence for one in done.values()} == {"Apache-2.0"}
    schedule, sampler = done["prior"].plan.schedule, done["prior"].plan.sampler
    assert schedule is not None and (schedule.prediction, schedule.timesteps) == ("x0", 1000)
    assert sampler is not None and sampler == done["prior"].header.sampler
    assert (sampler.name, sampler.steps, sampler.guidance_scale, sampler.clip_x0) == ("ddpm", 25, 4.0, 10.0)


def ours(done: dict[str, Imported], latents: Tensor, generator: torch.Generator, *, steps: int) -> Tensor:
    """Image embeddings of PROMPTS as `mav generate` makes them, from the pipeline's own noise."""
    plan = done["prior"].plan
    clip, prior = loaded(done, "clip"), loaded(done, "prior")
    assert isinstance(clip, Clip) and isinstance(prior, Prior) and plan.schedule and plan.sampler
    schedule, spec = Schedule.from_spec(plan.schedule), plan.sampler.model_copy(update={"steps": steps})

    def sampled(condition: PriorCondition) -> Tensor:
        denoise = guided(prior, condition, spec, schedule=schedule, channel_dim=1)
        drawn = {step: torch.randn(latents.shape, generator=generator) for step in range(steps - 1)}
        return sample(spec, denoise, x_T=latents, schedule=schedule, noise=drawn.__getitem__)

    with torch.no_grad():
        return embed_words(prior, clip, PROMPTS, samples=1, sampled=sampled)


def test_the_embedding_of_a_prompt_is_that_of_the_published_pipeline(
    version: Version, source: Path, done: dict[str, Imported]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    write_tokenizer(source, version)
    kind = diffusers.KandinskyPriorPipeline if version == "2-1" else diffusers.KandinskyV22PriorPipeline
    pipeline = kind.from_pretrained(source, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.clip_sample_range == 10.0
    # diffusers keeps its tables in float32, which would hide smaller errors
    scheduler, exact = pipeline.scheduler, Schedule.from_spec(done["prior"].plan.schedule)  # type: ignore[arg-type]
    assert torch.allclose(scheduler.betas.double(), exact.betas, atol=1e-6)
    scheduler.betas, scheduler.alphas = exact.betas, 1 - exact.betas
    scheduler.alphas_cumprod, scheduler.one = exact.alphas_cumprod, torch.ones((), dtype=torch.float64)

    latents = torch.randn(len(PROMPTS), WIDTH, generator=torch.Generator().manual_seed(1))
    wanted = pipeline(
        PROMPTS, latents=latents, num_inference_steps=25, generator=torch.Generator().manual_seed(2)
    ).image_embeds
    made = ours(done, latents, torch.Generator().manual_seed(2), steps=25)
    x0 = (wanted - pipeline.prior.clip_mean) / pipeline.prior.clip_std
    assert 9.99 < x0.abs().max() < 10.01, "the clamp has something to do"
    assert (made - wanted).abs().max() < 1e-4

    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    seen = pipeline.image_processor(images=list(picture), do_rescale=False, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = pipeline.image_encoder(seen).image_embeds
        assert_near(loaded(done, "clip").encode_image(2 * picture - 1), theirs, "a picture's embedding")


def copied(source: Path, folder: Path, *without: str) -> Path:
    """`source` file by file, links but for what a test changes."""
    for file in source.rglob("*"):
        place = folder / file.relative_to(source)
        if file.is_file() and place.relative_to(folder).as_posix() not in without:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return folder


CARDS = {
    "hub": ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
    "several": ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "MIT and Apache-2.0"),
    "other": ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
    "none": ("---\ntags: [x]\n---\n", "unknown"),
    "unfinished": ("---\nlicense: mit\n", "unknown"),
    "no YAML": ("---\nlicense: [mit\n---\n", "unknown"),
    "no mapping": ("---\n- mit\n---\n", "unknown"),
    "prose": ("# Model\n\nlicense: mit\n", "unknown"),
    "hostile": ('---\nlicense: "a\\e[31m\\nb"\n---\n', "a\\x1b[31m b"),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_licence_is_what_the_model_card_states_or_unknown(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARDS[card][0])
    assert (stated_licence(tmp_path) or UNKNOWN) == CARDS[card][1]


def test_where_no_card_states_a_licence_it_is_said_and_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_kandinsky(tmp_path / "theirs", "2-1", licence=None), tmp_path / "ours"
    command = ["weights", "import", str(source), "--as", "unclip-diffusers", "--out", str(out)]
    assert run(command) == 0
    shown = capsys.readouterr().err
    assert "states the licence of `clip`, `prior`: it is recorded as unknown" in shown
    assert "next: mav recipe cp open-words mine.yaml" in shown
    assert {read_header(out / f"{name}.safetensors").licence for name in ("clip", "prior")} == {"unknown"}
    recipe = load_recipe(out / "recipe.yaml").recipe
    assert recipe.cascade.prior.sampler.clip_x0 == 10.0 and recipe.cascade.clip.network == CLIPS["2-1"]
    assert (
        run(
            [
                "weights",
                "export",
                str(out / "prior.safetensors"),
                "--to",
                "single-file",
                "-o",
                str(tmp_path / "card"),
            ]
        )
        == 0
    )
    assert "the card says nothing of the licence of prior" in capsys.readouterr().err

    write_json(source / "model_index.json", {"license": "mit"})
    assert run([*command, "--force", "-q"]) == 0
    assert read_header(out / "prior.safetensors").licence == "MIT"
    assert run([*command, "--force", "-q", "--licence", "my own"]) == 0
    assert read_header(out / "prior.safetensors").licence == "my own"


def test_a_prior_without_its_scheduler_is_refused(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path, "scheduler/scheduler_config.json")
    with pytest.raises(WeightsError, match="scheduler/scheduler_config.json is missing"):
        plan_import(folder, layout="unclip-diffusers")


def test_going_back_keeps_the_clamp(done: dict[str, Imported], tmp_path: Path) -> None:
    file = done["prior"].files[0]
    assert run(["weights", "export", str(file), "--to", "diffusers", "-o", str(tmp_path / "back"), "-q"]) == 0
    told = json.loads((tmp_path / "back" / "prior_scheduler" / "scheduler_config.json").read_text())
    assert told["clip_sample"] and told["clip_sample_range"] == 10.0


@pytest.mark.parametrize(
    ("tower", "key", "value", "message"),
    [
        ("text_encoder", "hidden_act", "relu", "`hidden_act` is 'relu', only 'quick_gelu' and 'gelu'"),
        ("image_encoder", "layer_norm_eps", 1e-6, "`layer_norm_eps` is 1e-06, only 1e-05"),
        ("image_encoder", "hidden_act", "other", "CLIP's towers share one"),
    ],
)
def test_towers_of_another_kind_are_refused(
    tower: str, key: str, value: object, message: str, source: Path, tmp_path: Path
) -> None:
    folder = copied(source, tmp_path, f"{tower}/config.json")
    config = json.loads((source / tower / "config.json").read_text())
    if value == "other":
        value = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[config[key]]
    write_json(folder / tower / "config.json", config | {key: value})
    with pytest.raises(UsageError, match=message):
        plan_import(folder, layout="unclip-diffusers")
