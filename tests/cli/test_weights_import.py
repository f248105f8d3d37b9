"""`mav weights import`: a release on disk becomes a family, and what cannot is said before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_karlo import CLIP, CONFIGS, DECODER, PRIOR, SR, save, write_karlo

from mavcli.cli.app import run
from mavcli.files import file_sha256
from mavcli.recipe.load import load_recipe
from mavcli.weights.provenance import load_weights, read_header, read_index


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_karlo(tmp_path_factory.mktemp("karlo") / "v1.0.alpha")


def test_a_release_of_karlo_becomes_a_family_with_a_recipe(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "family"
    assert run(["weights", "import", str(release), "--as", "karlo", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    names = ["clip", "prior", "decoder", "sr_l", "sr_l_last"]
    assert shown.out.splitlines() == [
        *(str(out / f"{name}.safetensors") for name in names),
        str(out / "recipe.yaml"),
    ]
    assert "next: mav generate PROMPT --still --recipe" in shown.err
    recipe = load_recipe(out / "recipe.yaml").recipe
    parts = recipe.cascade
    assert (parts.clip.network, parts.prior.network) == (CLIP, PRIOR)
    assert parts.decoder.network == DECODER.model_copy(update={"temporal": "p3d", "fps": True})
    assert (
        parts.sr_l.network == SR.model_copy(update={"temporal": "p3d"})
        and parts.sr_l.last_step
        and parts.sr_l.enlarge == "bicubic-antialias"
    )
    assert (parts.prior.sampler.steps, parts.prior.sampler.clip_x0, parts.prior.samples) == (25, 10.0, 1)
    assert (parts.decoder.sampler.name, parts.decoder.sampler.guidance_scale) == ("ddpm", 8.0)
    assert parts.sr_l.size == 32 and parts.sr_l.sampler.steps == 7 and parts.sr_h.kind == "none"
    for name in names:
        header = read_header(out / f"{name}.safetensors")
        assert header.importer == "mav weights import --as karlo" and header.parents == ()
        assert header.licence == ("MIT" if name == "clip" else "CreativeML Open RAIL-M")
        file = header.imported_from[0]
        assert file.sha256 == file_sha256(release / file.name)
        load_weights(out / f"{name}.safetensors")  # raises where the bytes are not what the header names
    told = load_weights(out / "prior.safetensors", expect_role="prior", expect_spec=PRIOR)
    assert torch.allclose(told["clip_mean"], torch.tensor(0.1), atol=0.3) and told["clip_std"].min() > 0
    assert [f.name for f in read_header(out / "prior.safetensors").imported_from][
        1
    ] == "ViT-L-14_stats.safetensors"


def test_one_network_is_imported_in_another_type_and_the_rest_later(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["weights", "import", str(release), "--as", "karlo", "--out", str(tmp_path), "-q"]
    assert run([*base, "--role", "prior", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().err == ""
    index = read_index(tmp_path / "prior.safetensors")
    kinds = {name: info.dtype for name, info in index.items()}
    assert kinds["out_proj.weight"] == "BF16" and kinds["clip_mean"] == kinds["clip_std"] == "F32"
    recipe = tmp_path / "recipe.yaml"
    assert run([*base, "--role", "decoder"]) == 0
    parts = load_recipe(recipe).recipe.cascade
    assert parts.decoder.network.text == "clip" and parts.sr_l.kind == "none"
    before = (tmp_path / "decoder.safetensors").stat().st_mtime_ns
    assert run([*base, "--role", "decoder"]) == 0, "the same import again has its result already"
    assert (tmp_path / "decoder.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run([*base, "--role", "decoder", "--dtype", "bfloat16"]) == 6
    assert "decoder.safetensors exists\nhint: --force overwrites it" in capsys.readouterr().err
    assert run([*base, "--role", "decoder", "--force"]) == 0


def test_a_recipe_that_somebody_wrote_or_changed_stays_as_it_is(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["weights", "import", str(release), "--as", "karlo", "--out", str(tmp_path), "-q"]
    assert run([*base, "--role", "prior"]) == 0
    recipe = tmp_path / "recipe.yaml"
    mine = "# my notes\n" + recipe.read_text().replace("steps: 25", "steps: 12")
    recipe.write_text(mine)
    capsys.readouterr()
    assert run([*base, "--role", "decoder"]) == 0
    assert recipe.read_text() == mine and "stays as it is: --force rewrites it" in capsys.readouterr().err
    assert run([*base, "--role", "decoder", "--force"]) == 0
    parts = load_recipe(recipe).recipe.cascade
    assert parts.prior.sampler.steps == 12 and parts.decoder.network.text == "clip"


def test_an_import_that_was_killed_between_two_networks_goes_on_with_the_second(
    release: Path, tmp_path: Path
) -> None:
    base = ["weights", "import", str(release), "--as", "karlo", "--out"]
    assert run([*base, str(tmp_path / "whole"), "-q"]) == 0
    assert run([*base, str(tmp_path / "killed"), "-q", "--role", "clip", "--role", "prior"]) == 0
    (tmp_path / "killed" / "recipe.yaml").unlink()
    assert run([*base, str(tmp_path / "killed"), "-q"]) == 0
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_a_card_that_somebody_wrote_is_not_overwritten(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["weights", "import", str(release), "--as", "karlo", "--out", str(tmp_path / "family"), "-q"]
    assert run([*base, "--role", "prior"]) == 0
    export = ["weights", "export", str(tmp_path / "family" / "prior.safetensors"), "--to", "single-file"]
    export += ["-q", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    card = tmp_path / "out" / "README.md"
    card.write_text("# by hand\n")
    assert run(export) == 6 and card.read_text() == "# by hand\n"
    assert "README.md exists and is no card as mav wrote it" in capsys.readouterr().err
    assert [path.name for path in card.parent.iterdir()] == ["README.md"], "said before anything is written"
    assert run([*export, "--force"]) == 0 and run(export) == 0, "its own card is rewritten"
    card.write_text(card.read_text() + "one more line\n")
    assert run(export) == 6 and card.read_text().endswith("one more line\n")


def test_a_dry_run_checks_every_key_and_writes_nothing(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["weights", "import", str(release), "--as", "karlo", "--out", str(out), "--dry-run"]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert "sr_l_last.safetensors  Karlo's super-resolution (last step)" in shown.out and not out.exists()
    assert "every tensor has its place" in shown.err
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["role"] for entry in told["weights"]] == ["clip", "prior", "decoder", "sr_l", "sr_l"]


def test_what_is_left_over_or_missing_is_named_and_nothing_is_written(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next(release.glob("decoder*"))
    tensors = dict(load_raw(source))
    tensors["model.surprise"] = torch.zeros(1)
    del tensors["model.cf_param"], tensors["model.out.2.bias"]
    tensors["model.cf_param"] = torch.zeros(64)
    save(tensors, tmp_path / "decoder.safetensors")
    (tmp_path / "configs").symlink_to(release / "configs")
    out = tmp_path / "out"
    assert run(["weights", "import", str(tmp_path), "--as", "karlo", "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert "1 tensor is missing (`model.out.2.bias`); 1 tensor is left over (`model.surprise`)" in error
    assert not out.exists()


def test_a_checkpoint_as_a_training_left_it_is_imported_and_what_was_chosen_is_said(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data parallel and compiled, with its moving average beside it."""
    plain = load_raw(next(release.glob("decoder*")))
    own = {f"module._orig_mod.{name}": torch.zeros_like(value) for name, value in plain.items()}
    averaged = {f"module._orig_mod.{name}": value for name, value in plain.items()}
    torch.save({"model": own, "ema": averaged, "optimizer": {}}, tmp_path / "decoder.ckpt")
    config = next((release / "configs").glob("decoder*"))
    for source, out in ((tmp_path / "decoder.ckpt", "a"), (next(release.glob("decoder*")), "b")):
        command = ["weights", "import", str(source), "--as", "karlo", "--config", str(config), "--json"]
        assert run([*command, "--out", str(tmp_path / out)]) == 0
        shown = capsys.readouterr()
        notes = json.loads(shown.out)["weights"][0]["notes"]
        if out == "a":
            assert notes == [
                "decoder.ckpt: `ema` is taken, the moving average of the weights, not `model`",
                "decoder.ckpt: `_orig_mod.` (torch.compile) is taken off the names",
                "decoder.ckpt: `module.` (data parallel) is taken off the names",
            ]
            assert all(note in shown.err for note in notes)
        else:
            assert notes == []
    ours, theirs = (load_weights(tmp_path / out / "decoder.safetensors") for out in "ab")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_head_channels", "many", "cannot be used"),
        ("image_size", 0, "cannot be used"),
        ("num_heads_upsample", [], "used"),
        ("num_channels", 64, "`model_channels` is 64 there, the tensors show 32"),
        ("noise_schedule", "sqrt", "`sqrt` is not known"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    key: str, value: object, message: str, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = [c for name, c in CONFIGS.items() if name.startswith("decoder")]
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**config["model"]["hparams"], **config["diffusion"], key: value}))
    source = str(next(release.glob("decoder*")))
    assert run(["weights", "import", source, "--as", "karlo", "--config", str(file), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def load_raw(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.pt", "--as", "adm"], 3, "nowhere.pt does not exist"),
        (["{release}"], 2, "nothing says whose layout it is"),
        (["{release}", "--as", "karlo", "--role", "decoderr"], 2, "there is no stage `decoderr`"),
        (["{release}", "--as", "unclip-diffusers"], 3, "holds no networks of an unCLIP pipeline"),
        (["{release}", "--as", "karlo", "--config", "no.yaml"], 2, "no.yaml does not exist"),
        (["{decoder}", "--as", "karlo", "--role", "prior"], 2, "Karlo's decoder cannot serve as `prior`"),
        (["{decoder}", "--as", "adm"], 3, "is no U-Net of guided-diffusion"),
        (["karlo"], 3, "the published weights `karlo` are not on this disk"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_error(
    arguments: list[str], code: int, message: str, release: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"release": str(release), "decoder": str(next(release.glob("decoder*")))}
    given = [argument.format(**places) for argument in arguments]
    assert run(["weights", "import", *given]) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
