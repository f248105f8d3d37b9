"""docs/karlo.md, command by command, on a tiny Karlo in the layout of the release; and the recipe at its full size."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_karlo import CLIP, DECODER, PRIOR, SR, write_karlo

from mavcli.cli.app import run
from mavcli.media.image import read_image
from mavcli.media.video import probe, write_video
from mavcli.recipe import load
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.specs import PriorSpec, Spec, UNetSpec
from mavcli.weights.manifest import load_manifest
from mavcli.weights.provenance import compare_specs, read_header
from mavcli.weights.source import shapes_of

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "karlo.md"


def commands() -> dict[str, list[str]]:
    """The commands of each section of the document."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        found[section.splitlines()[0]] = [line for block in blocks for line in block.splitlines()]
    return found


def parameters(spec: PriorSpec | UNetSpec) -> int:
    return sum(math.prod(shape) for shape in shapes_of(spec).values())


def test_the_shipped_recipe_is_the_published_karlo_to_the_parameter() -> None:
    parts = load_recipe("karlo").recipe.cascade
    image = {"temporal": "none", "fps": False}
    decoder, sr = (part.network.model_copy(update=image) for part in (parts.decoder, parts.sr_l))
    # the statistics of CLIP's embeddings are a file of their own in the release
    assert parameters(parts.prior.network) - 2 * 768 == 1_022_028_544
    assert (parameters(decoder), 2 * parameters(sr)) == (893_318_086, 1_383_159_046)
    published = {n.stage: n.spec for n in load_manifest().published["karlo"].networks}
    assert compare_specs(published["decoder"], decoder) == [] == compare_specs(published["sr_l"], sr)
    # 74 temporal convolutions of 175.5 M and 22 temporal attentions of 89.8 M; the rest hears the frame rate
    silent = parts.decoder.network.model_copy(update={"fps": False})
    assert abs(parameters(silent) - parameters(decoder) - 265.3e6) < 0.1e6
    for stage in ("decoder_t", "interp", "sr_lt"):
        assert load_recipe("karlo").recipe.stage(stage).train == "temporal"


def told(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True)


def tiny_karlo_recipe(path: Path) -> Path:
    """The shipped recipe with tiny networks, few steps, and nothing else changed."""
    recipe = yaml.safe_load((ROOT / "recipes" / "karlo.yaml").read_text())
    parts = recipe["cascade"]
    parts["clip"]["network"] = told(CLIP)
    parts["prior"]["network"] = told(PRIOR)
    parts["decoder"]["network"] = {**told(DECODER), "temporal": "p3d", "fps": True}
    parts["sr_l"]["network"] = {**told(SR), "temporal": "p3d"}
    parts["sr_l"]["size"] = SR.image_size
    parts["decoder"]["frames"] = 4  # so that 16 -> 76 becomes 4 -> 16
    for part in ("prior", "decoder", "interp", "sr_l"):
        parts[part]["sampler"]["steps"] = 2
    for stage in recipe["train"]["stages"].values():
        stage |= {"steps": 2, "batch_size": 2, "frames": 4}
    recipe["train"]["stages"]["sr_lt"]["crop"] = 16
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_clips(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(2):
        frames = rng.integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=30)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipes = {**list_recipes(), "karlo": tiny_karlo_recipe(tmp_path / "karlo.yaml")}
    monkeypatch.setattr(load, "list_recipes", lambda: recipes)
    write_karlo(tmp_path / "karlo", pickles=True)
    folder = tmp_path / "work"
    write_clips(folder / "data" / "clips")
    monkeypatch.chdir(folder)
    return folder


def test_every_command_of_the_tutorial_does_what_it_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}
    for section, lines in commands().items():
        for line in lines:
            words = shlex.split(line)
            assert words[0] == "mav", line
            code = run([str(Path(w).expanduser()) if w.startswith("~") else w for w in words[1:]])
            shown = capsys.readouterr()
            assert code == 0, f"{section}: {line}: {shown.err}"
            said[line] = shown.out + shown.err
    assert len(said) == len({*said}) and len(said) >= 16

    family = here.parent / "data" / "weights" / "karlo"
    assert {f.stem for f in family.glob("*.safetensors")} == {
        "clip", "prior", "decoder", "sr_l", "sr_l_last", "decoder_t", "interp", "sr_lt"
    }  # fmt: skip
    assert read_image(here / "outputs" / "a-dog-surfing-0.png").shape == (32, 32, 3)
    apart = said['mav generate "a dog surfing" --recipe karlo -o apart.mp4']
    assert "WILL NOT COHERE" in apart and "mav train-stage decoder_t" in apart and "--still" in apart
    assert "SR_h is left out" in apart
    found = probe(here / "apart.mp4")
    assert (found.frames, float(found.rate)) == (4, pytest.approx(4.8))
    first, second = (json.loads((here / f"{name}.json").read_text()) for name in ("apart", "likened"))
    assert first["frames_sha256"] != second["frames_sha256"]
    assert "max |difference| per frame 0, 0, 0, 0" in said["mav inflate karlo/decoder --out inflated"]
    header = read_header(family / "decoder_t.safetensors")
    assert header.step == 2 and header.inflation is None
    mine = said['mav generate "a dog surfing" --recipe mine.yaml -o mine.mp4']
    assert "COHERE" not in mine and probe(here / "mine.mp4").frames == 16
    assert "CC BY 4.0" in (here / "publish" / "README.md").read_text()
    assert (here / "karlo-diffusers" / "text_proj" / "config.json").is_file()
