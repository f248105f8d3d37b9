"""docs/open-words.md, command by command, on a tiny prior of Kandinsky's in the published layout; and the recipes at full size."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_hub import Hub, serving
from huggingface_hub import constants
from PIL import Image
from tiny_kandinsky import CLIPS, PRIOR, write_kandinsky

from mavcli.cli.app import run
from mavcli.media.image import read_image
from mavcli.media.video import probe, write_video
from mavcli.recipe import load
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.specs import Spec
from mavcli.weights import manifest
from mavcli.weights.locate import is_imported
from mavcli.weights.manifest import load_manifest
from mavcli.weights.provenance import compare_specs, read_header

ROOT = Path(__file__).parent.parent
ID = "kandinsky-2-1-prior"
UNET: dict[str, Any] = {
    "model_channels": 8, "channel_mult": [1, 1], "num_res_blocks": 1, "num_head_channels": 4, "norm_groups": 4,
}  # fmt: skip


def commands() -> dict[str, list[str]]:
    """The commands of each section of the document."""
    found: dict[str, list[str]] = {}
    text = (ROOT / "docs" / "open-words.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        found[section.splitlines()[0]] = [line for block in blocks for line in block.splitlines()]
    return found


@pytest.mark.parametrize(
    ("name", "published"), [("open-words", ID), ("open-words-2-2", "kandinsky-2-2-prior")]
)
def test_the_recipes_are_the_published_p_and_clip_and_name_no_captions(name: str, published: str) -> None:
    recipe = load_recipe(name).recipe
    networks = {n.stage: n.spec for n in load_manifest().published[published].networks}
    assert compare_specs(networks["clip"], recipe.cascade.clip.network) == []
    assert compare_specs(networks["prior"], recipe.cascade.prior.network) == []
    assert recipe.cascade.decoder.network.clip_dim == recipe.cascade.prior.network.clip_dim
    sampler = recipe.cascade.prior.sampler
    assert (sampler.name, sampler.steps, sampler.spacing, sampler.guidance_scale, sampler.clip_x0) == (
        "ddpm", 25, "linspace", 4.0, 10.0,
    )  # fmt: skip
    data = recipe.train.data
    assert not data.world and not data.folders("pairs") and data.folders("image") and data.folders("video")
    assert is_imported(recipe, "clip") and is_imported(recipe, "prior") and not is_imported(recipe, "decoder")


def told(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True)


def tiny_recipe(path: Path) -> Path:
    """The shipped recipe with tiny networks, few steps, and nothing else changed."""
    recipe = yaml.safe_load((ROOT / "recipes" / "open-words.yaml").read_text())
    parts = recipe["cascade"]
    parts["clip"]["network"] |= told(CLIPS["2-1"])
    parts["prior"]["network"] |= told(PRIOR)
    parts["prior"]["sampler"]["steps"] = 2
    parts["decoder"] = {
        "frames": 4,  # so that 16 -> 76 becomes 4 -> 16
        "network": UNET | {"image_size": 8, "attention_resolutions": [4], "clip_dim": PRIOR.clip_dim, "context_dim": 8},
        "sampler": {"steps": 2},
    }  # fmt: skip
    parts["interp"] = {"sampler": {"steps": 2}}
    sr = {"image_size": 16, "patch": 1}
    parts["sr_l"] = {"size": 16, "network": UNET | sr, "sampler": {"steps": 2}}
    recipe["train"]["defaults"] = {"warmup": 1, "save_every": 1000, "sample_every": 1000}
    stages = recipe["train"]["stages"]
    for name in ("decoder", "sr_l", "decoder_t", "interp", "sr_lt"):
        stages[name] = stages.get(name, {}) | {"steps": 2, "batch_size": 2, "frames": 4}
    for name in ("sr_l", "sr_lt"):
        stages[name]["crop"] = 8
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    (folder / "clips").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (24 + i, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    for i in range(2):
        frames = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        write_video(folder / "clips" / f"{i}.mp4", frames, fps=30)


def tiny_manifest(path: Path) -> None:
    """The shipped one; the sizes and digests of the published files are those of other files."""
    shipped = yaml.safe_load((ROOT / "weights" / "manifest.yaml").read_text())
    for file in shipped["published"][ID]["files"]:
        file.pop("size", None)
        file.pop("sha256", None)
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(shipped))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("data", "cache"):
        monkeypatch.setenv(f"MAV_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    tiny_manifest(tmp_path / "share" / "manifest.yaml")
    monkeypatch.setattr(manifest, "share_dir", lambda name: tmp_path / "share")
    recipes = {**list_recipes(), "open-words": tiny_recipe(tmp_path / "open-words.yaml")}
    monkeypatch.setattr(load, "list_recipes", lambda: recipes)
    folder = tmp_path / "work"
    write_data(folder / "data")
    monkeypatch.chdir(folder)
    source = write_kandinsky(tmp_path / "hub", "2-1")
    files = {
        file.relative_to(source).as_posix(): file.read_bytes() for file in source.rglob("*") if file.is_file()
    }
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(Hub(files, repo=f"kandinsky-community/{ID}")) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield folder


def test_every_command_of_the_tutorial_does_what_it_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}
    for section, lines in commands().items():
        for line in lines:
            words = shlex.split(line)
            assert words[0] == "mav", line
            code = run(words[1:])
            shown = capsys.readouterr()
            assert code == 0, f"{section}: {line}: {shown.err}"
            said[line] = shown.out + shown.err
    assert len(said) >= 16

    family = here / "runs" / "open-words" / "weights"
    assert {f.stem for f in family.glob("*.safetensors")} == {
        "clip", "prior", "decoder", "sr_l", "decoder_t", "interp", "sr_lt"
    }  # fmt: skip
    clip, prior = (read_header(family / f"{name}.safetensors") for name in ("clip", "prior"))
    assert (clip.spec, prior.spec, clip.step, prior.step) == (CLIPS["2-1"], PRIOR, 0, 0), (
        "both stayed as they came"
    )
    assert clip.licence == prior.licence == "Apache-2.0"
    decoder = read_header(family / "decoder.safetensors")
    assert [parent.content_sha256 for parent in decoder.parents] == [clip.content_sha256]
    assert "Apache-2.0" in said[f"mav weights pull {ID} --yes"]
    imported = said[f"mav weights import {ID} --out runs/open-words/weights"]
    assert "next: mav recipe cp open-words mine.yaml" in imported
    assert read_image(here / "outputs" / "a-dog-surfing-0.png").shape == (16, 16, 3)
    drawn = probe(here / "mine.mp4")
    assert (drawn.frames, float(drawn.rate)) == (16, 24)
    assert "COHERE" not in said['mav generate "a dog surfing" --recipe mine.yaml -o mine.mp4']
    assert json.loads((here / "mine.json").read_text())["frames_sha256"]


def test_neither_p_nor_clip_can_be_trained_over_by_mistake(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recipe", "cp", "open-words", "mine.yaml"]) == 0
    for stage in ("decoder", "prior"):
        assert run(["train-stage", stage, "mine.yaml"]) == 3
        told = capsys.readouterr().err
        assert re.search(r"hint: mav weights import SOURCE --out \S*runs/open-words/weights\n", told), told
    assert run(["weights", "pull", ID, "--yes"]) == 0
    assert run(["weights", "import", ID, "--out", "runs/open-words/weights"]) == 0
    before = (here / "runs/open-words/weights/prior.safetensors").read_bytes()
    for stage in ("clip", "prior"):
        capsys.readouterr()
        assert run(["train-stage", stage, "mine.yaml"]) == 2
        assert "train.data.pairs" in capsys.readouterr().err
    assert (here / "runs/open-words/weights/prior.safetensors").read_bytes() == before
