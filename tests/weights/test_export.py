"""What goes out: diffusers loads it and computes the same, single files are what they were, the card makes nothing up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_karlo import CLIP, DECODER, PRIOR, SR, random_state

from mavcli.cli.app import run
from mavcli.engine.assemble import load_network
from mavcli.errors import DiskError, WeightsError
from mavcli.models.embeddings import Condition
from mavcli.models.prior import PriorCondition
from mavcli.specs import ClipSpec, PriorSpec, ScheduleSpec, UNetSpec
from mavcli.weights.export import export_diffusers, export_single_files
from mavcli.weights.importing import plan_import, run_import
from mavcli.weights.inflation import inflate_file
from mavcli.weights.provenance import WeightsHeader, load_weights, read_header, save_weights, weight_files

LICENCE = "CreativeML Open RAIL-M"
COSINE = {
    "prior": ScheduleSpec(prediction="x0"),
    "decoder": ScheduleSpec(variance="learned_range"),
    "sr_l": ScheduleSpec(),
}


def save_family(folder: Path) -> Path:
    parts: dict[str, tuple[str, ClipSpec | PriorSpec | UNetSpec]] = {
        "clip": ("clip", CLIP),
        "prior": ("prior", PRIOR),
        "decoder": ("decoder", DECODER),
        "sr_l": ("sr_l", SR),
        "sr_l_last": ("sr_l", SR),
    }
    for seed, (name, (role, spec)) in enumerate(parts.items()):
        header = WeightsHeader(role=role, spec=spec, schedule=COSINE.get(role), licence=LICENCE)
        save_weights(
            folder / f"{name}.safetensors", random_state(spec, seed), header, max_shard_bytes=200_000
        )
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family"))


def sources(folder: Path, *names: str) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in names]


@pytest.fixture(scope="module")
def exported(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diffusers")
    export_diffusers(sources(family, "prior", "decoder", "sr_l", "sr_l_last"), out)
    return out


def network(family: Path, name: str) -> torch.nn.Module:
    path = family / f"{name}.safetensors"
    header = read_header(path)
    return load_network(header.spec, path, role=header.role)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def test_diffusers_loads_the_prior_and_computes_the_same(family: Path, exported: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.PriorTransformer.from_pretrained(exported / "prior").eval()
    ours = network(family, "prior")
    x, embedding, states = normal(2, 64), normal(2, 64) + 1, normal(2, 8, 64)
    mask = torch.tensor([[True] * 3 + [False] * 5, [True] * 8])
    t = torch.tensor([17, 911])
    wanted = ours(x, t, PriorCondition(embedding, states, mask))
    found = theirs(
        x, timestep=t, proj_embedding=embedding, encoder_hidden_states=states, attention_mask=mask
    ).predicted_image_embedding
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.post_process_latents(x), ours.unscale(x))  # type: ignore[operator]


@torch.no_grad()
def test_diffusers_loads_the_decoder_and_computes_the_same(family: Path, exported: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    unet = diffusers.UNet2DConditionModel.from_pretrained(exported / "decoder").eval()
    proj = UnCLIPTextProjModel.from_pretrained(exported / "text_proj").eval()
    ours = network(family, "decoder")
    x, image, text, states = normal(2, 3, 16, 16), normal(2, 64), normal(2, 64) + 1, normal(2, 8, 64)
    mask = torch.tensor([[True] * 2 + [False] * 6, [True] * 8])
    t = torch.tensor([17, 911])
    wanted = ours(
        x[:, None],
        t,
        Condition(image_embedding=image, text_states=states, text_embedding=text, text_mask=mask),
    )
    tokens, added = proj(
        image_embeddings=image,
        prompt_embeds=text,
        text_encoder_hidden_states=states,
        do_classifier_free_guidance=False,
    )
    seen = torch.nn.functional.pad(mask, (4, 0), value=True)
    found = unet(x, t, encoder_hidden_states=tokens, class_labels=added, attention_mask=seen).sample
    torch.testing.assert_close(found[:, None], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "folder"), [("sr_l", "super_res_first"), ("sr_l_last", "super_res_last")])
@torch.no_grad()
def test_diffusers_loads_super_resolution_and_computes_the_same(
    family: Path, exported: Path, name: str, folder: str
) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel.from_pretrained(exported / folder).eval()
    x, low, t = normal(2, 3, 32, 32), normal(2, 3, 32, 32) + 1, torch.tensor([17, 911])
    wanted = network(family, name)(x[:, None], t, Condition(low_res=low[:, None]))
    found = theirs(torch.cat([x, low], dim=1), t).sample
    torch.testing.assert_close(found[:, None], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_exported_and_imported_again_is_what_it_was(
    family: Path, exported: Path, tmp_path: Path
) -> None:
    plans = plan_import(exported, layout="unclip-diffusers")
    done = {d.plan.name: d.header for d in run_import(plans, tmp_path, layout="unclip-diffusers")}
    assert set(done) == {"prior", "decoder", "sr_l", "sr_l_last"}
    for name, header in done.items():
        before = read_header(family / f"{name}.safetensors")
        assert header.content_sha256 == before.content_sha256, name
        assert (header.spec, header.schedule) == (before.spec, before.schedule), name


def test_what_has_no_form_in_diffusers_is_left_out_by_name(family: Path, tmp_path: Path) -> None:
    inflate_file(family / "decoder.safetensors", tmp_path)
    done = export_diffusers(
        [*sources(family, "clip", "sr_l"), tmp_path / "decoder_t.safetensors"], tmp_path / "out"
    )
    assert list(done.networks) == ["super_res_first"]
    assert done.left_out[0].startswith("clip: the pipeline reads CLIP")
    assert done.left_out[1].startswith("decoder_t: video networks have temporal layers")
    odd = UNetSpec.model_validate(SR.model_dump() | {"patch": 2, "noise_level": True})
    save_weights(tmp_path / "odd.safetensors", {"x": torch.zeros(1)}, WeightsHeader(role="sr_l", spec=odd))
    with pytest.raises(WeightsError, match="`patch` is 2, `noise_level` is True") as caught:
        export_diffusers([tmp_path / "odd.safetensors"], tmp_path / "none")
    assert caught.value.hint == "--to single-file" and not (tmp_path / "none").exists()


def test_single_files_are_the_same_weights_without_shards(family: Path, tmp_path: Path) -> None:
    assert len(weight_files(family / "decoder.safetensors")) > 1
    done = export_single_files(sources(family, "decoder", "prior"), tmp_path)
    assert done.files == [tmp_path / "decoder.safetensors", tmp_path / "prior.safetensors"]
    assert read_header(done.files[0]) == read_header(family / "decoder.safetensors")
    assert load_weights(done.files[0]).keys() == load_weights(family / "decoder.safetensors").keys()
    before = done.files[0].stat().st_mtime_ns
    assert export_single_files(sources(family, "decoder"), tmp_path).files == done.files[:1]
    assert done.files[0].stat().st_mtime_ns == before, "the same export again has its result already"
    done.files[0].write_bytes(done.files[1].read_bytes())
    with pytest.raises(DiskError, match="exists"):
        export_single_files(sources(family, "decoder"), tmp_path)
    with pytest.raises(DiskError, match="is the source itself"):
        export_single_files(sources(family, "decoder"), family, force=True)


def test_the_command_writes_the_files_and_a_card_that_says_what_nobody_has_told(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["weights", "export", str(family), "--to", "diffusers", "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert f"{tmp_path}/out/decoder/diffusion_pytorch_model.safetensors" in shown.out.splitlines()
    assert shown.out.splitlines()[-1] == f"{tmp_path}/out/README.md"
    assert "clip is left out" in shown.err and "says nothing of the training data" in shown.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: creativeml-openrail-m\nlibrary_name: diffusers\n")
    assert "Not stated. Whoever publishes" in card and "None were measured" in card
    assert "use restrictions" in card and "| `decoder` | D, a picture |" in card


def test_the_card_tells_what_it_is_given_and_no_path_of_the_publisher(
    family: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"fvd": {"value": 123.456789, "clips": 2048}, "list": [1]}))
    inflate_file(family / "decoder.safetensors", tmp_path)
    told = (
        "--recipe",
        tiny,
        "--set",
        "train.data.video=/home/me/secret clips",
        "--set",
        "train.data.image=[{folder: /home/me/secret pictures, weight: 2}]",
        "--metrics",
        tmp_path / "m.json",
    )
    more = (
        "--data",
        "4,211 clips of my own, CC BY 4.0",
        "--to",
        "single-file",
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert run([str(a) for a in ("weights", "export", tmp_path / "decoder_t.safetensors", *told, *more)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["missing"] == [] and result["files"] == [str(tmp_path / "out" / "decoder_t.safetensors")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4,211 clips of my own" in card and "| fvd.value | 123.457 |" in card
    assert "/home/me" not in card and str(tiny.parent) not in card and "secret clips" in card
    assert '"image": {"secret pictures": 2.0}' in card
    assert "`decoder_t` are untrained" in card and "per frame from the image network 0" in card
    assert "learned from clips without any words" in card
    lines = card.splitlines()
    (tmp_path / "again.yaml").write_text(
        "\n".join(lines[lines.index("```yaml") + 1 : lines.index("```", lines.index("```yaml"))])
    )
    assert run(["recipe", "check", str(tmp_path / "again.yaml")]) == 0
    assert (
        run(["weights", "export", str(family), "--to", "diffusers", "-o", "x", "--metrics", "none.json"]) == 2
    )
