"""`mav weights pull|add|check|rm|show`, through the front door."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import Hub, serving
from huggingface_hub import constants

from mavcli.cli import weights as command
from mavcli.cli.app import run
from mavcli.models.unet import UNet
from mavcli.recipe.load import load_recipe
from mavcli.specs import UNetSpec
from mavcli.weights import manifest
from mavcli.weights.locate import family_dir
from mavcli.weights.provenance import WeightsHeader, save_weights

SPEC = UNetSpec(
    image_size=8, model_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4,
    mid_attention=False,
)  # fmt: skip
FILES = {
    "prior/config.json": b"{}",
    "prior/model.safetensors": bytes(50_000),
    "decoder/model.safetensors": bytes(9),
}
MANIFEST = """
families:
  pocket: {title: the default, licence: Apache-2.0, source: here, get: mav train-stage STAGE pocket, files: {sr_l: sr_l.safetensors}}
published:
  tiny:
    title: a tiny unCLIP
    licence: CreativeML Open RAIL-M
    source: https://huggingface.co/someone/weights
    notice: with use restrictions
    importer: unclip-diffusers
    hub: someone/weights
    files:
      - {stage: prior, path: prior/config.json}
      - {stage: prior, path: prior/model.safetensors, size: 50000}
      - {stage: decoder, path: decoder/model.safetensors}
    networks:
      - {stage: prior, parameters: 12, spec: {width: 64, layers: 2}}
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "share" / "pocket").mkdir(parents=True)
    (tmp_path / "share" / "manifest.yaml").write_text(MANIFEST)
    monkeypatch.setattr(manifest, "share_dir", lambda name: tmp_path / "share")
    monkeypatch.setenv("MAV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MAV_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with serving(Hub(dict(FILES))) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


def trained(path: Path, role: str = "sr_l", spec: UNetSpec = SPEC, step: int = 5) -> Path:
    torch.manual_seed(step)
    save_weights(path, UNet(spec).state_dict(), WeightsHeader(role=role, spec=spec, step=step))
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert run(list(arguments)) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_pull_shows_the_licence_and_the_size_first_and_wants_a_yes(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = shown(capsys, "weights", "pull", "tiny", code=2)
    assert not out and not (tmp_path / "cache").exists()
    for part in ("CreativeML Open RAIL-M", "with use restrictions", "3 files to fetch, 50.0 kB", "free"):
        assert part in err
    assert "error: nothing was done: there is nobody to ask\nhint: mav weights pull tiny --yes" in err

    folder = tmp_path / "cache" / "published" / "tiny"
    out, err = shown(capsys, "weights", "pull", "tiny", "--yes")
    assert out == f"{folder}\n" and "next: mav weights import tiny" in err
    assert all((folder / name).read_bytes() == content for name, content in FILES.items())

    out, err = shown(capsys, "weights", "pull", "tiny", "--offline", "-q")
    assert out == f"{folder}\n" and not err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2)])
def test_pull_asks_on_a_terminal(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    stream = io.StringIO(answer)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stream)
    out, err = shown(capsys, "weights", "pull", "tiny", code=code)
    assert "get 3 files under this licence?" in err and bool(out) == (code == 0)


def test_pull_tells_its_plan_and_its_result_as_json(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(shown(capsys, "weights", "pull", "tiny", "--dry-run", "--json")[0])
    assert plan["dry_run"] and [file["bytes"] for file in plan["files"]] == [2, 50_000, 9]
    assert not Path(plan["folder"]).exists()
    told = json.loads(shown(capsys, "weights", "pull", "tiny", "--stage", "decoder", "--yes", "--json")[0])
    assert [file["fetched"] for file in told["files"]] == [True]
    listed = json.loads(shown(capsys, "weights", "ls", "--json")[0])
    assert [(entry["id"], entry["files"], entry["pulled"]) for entry in listed["published"]] == [
        ("tiny", 3, 1)
    ]
    assert "1 of 3 files here" in shown(capsys, "weights", "ls")[0]


def test_published_weights_are_shown_with_licence_stages_files_and_networks(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = shown(capsys, "weights", "show", "tiny")
    for part in ("CreativeML Open RAIL-M", "stages prior, decoder", "  prior/model.safetensors", "50.0 kB",
                 "network prior", "  width: 64", "no, mav weights pull tiny", "mav weights import tiny"):  # fmt: skip
        assert part in out
    told = json.loads(shown(capsys, "weights", "show", "tiny", "--json")[0])
    assert told["published"]["id"] == "tiny" and not hub.asked


def test_pulled_files_are_checked_and_removed(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(capsys, "weights", "pull", "tiny", "--yes")
    folder = tmp_path / "cache" / "published" / "tiny"
    assert shown(capsys, "weights", "check", "tiny")[0].count("ok  ") == 3
    (folder / "prior/model.safetensors").write_bytes(bytes(49_999) + b"1")
    out, err = shown(capsys, "weights", "check", code=3)
    assert "FAULT" in out and "prior/model.safetensors is damaged: its SHA-256 is" in out
    assert "error: 1 of 3 have a fault" in err
    assert shown(capsys, "weights", "rm", "tiny", code=2)[1].endswith("hint: mav weights rm tiny --yes\n")
    assert shown(capsys, "weights", "rm", "tiny", "--yes")[0] == f"{folder}\n" and not folder.exists()
    assert "nothing of `tiny` is here" in shown(capsys, "weights", "rm", "tiny", "--yes", code=3)[1]


def test_weights_that_are_added_are_found_by_a_recipe(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained(tmp_path / "runs" / "weights" / "sr_l.safetensors")
    target = tmp_path / "data" / "weights" / "mine" / "sr_l.safetensors"
    out, err = shown(capsys, "weights", "add", str(source.parent), "--as", "sr_l")
    assert out == f"{target}\n" and "next: --set weights.dir=mine" in err
    assert target.read_bytes() == source.read_bytes()
    assert family_dir(load_recipe("pocket", sets=["weights.dir=mine"]).recipe) == target.parent
    assert "stage sr_l" in shown(capsys, "weights", "show", "mine/sr_l")[0]
    listed = shown(capsys, "weights", "ls")[0]
    assert "mine  yours, " in listed and "  sr_l  " in listed and "not of a known family" not in listed
    assert shown(capsys, "weights", "ls", "-q")[0] == f"{target}\n"
    assert shown(capsys, "weights", "check", "mine")[0] == f"ok    {target}\n"
    assert "exists\nhint: --force overwrites it" in shown(capsys, "weights", "add", str(source), code=6)[1]
    shown(capsys, "weights", "add", str(trained(source, step=6)), "--force")
    assert target.read_bytes() == source.read_bytes()
    assert (
        shown(capsys, "weights", "rm", "mine", "--yes")[0] == f"{target.parent}\n"
        and not target.parent.exists()
    )


def test_shards_are_added_and_removed_together(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    files = save_weights(
        path, UNet(SPEC).state_dict(), WeightsHeader(role="interp", spec=SPEC), max_shard_bytes=6000
    )
    out, _ = shown(capsys, "weights", "add", str(tmp_path), "--as", "decoder_t", "--family", "two")
    assert len(files) > 1
    assert [Path(line).name for line in out.splitlines()] == [
        f.name.replace("x-", "decoder_t-", 1) for f in files
    ]
    assert shown(capsys, "weights", "check", "two/decoder_t")[0].startswith("ok  ")
    # once more as one file: nothing of the old form is left
    save_weights(path, UNet(SPEC).state_dict(), WeightsHeader(role="interp", spec=SPEC))
    shown(capsys, "weights", "add", str(path), "--as", "decoder_t", "--family", "two", "--force")
    assert [f.name for f in (tmp_path / "data/weights/two").iterdir()] == ["decoder_t.safetensors"]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--as", "prior"], 3, "holds `sr_l` weights, which serve `sr_l` and not `prior`"),
        (["--as", "srl"], 2, "there is no stage `srl`"),
        (["--family", "pocket"], 2, "the family `pocket` belongs to this installation"),
        (["--family", "../x"], 2, "`../x` is no name for a family"),
    ],
)
def test_weights_are_not_added_where_they_do_not_belong(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, told: str
) -> None:
    source = trained(tmp_path / "sr_l.safetensors")
    assert told in shown(capsys, "weights", "add", str(source), *options, code=code)[1]
    assert not (tmp_path / "data").exists()


def test_check_tells_each_fault_and_fails(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained(tmp_path / "good.safetensors")
    changed = trained(tmp_path / "changed.safetensors")
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    other = UNetSpec(**{**SPEC.model_dump(), "model_channels": 16})
    misfit = tmp_path / "misfit.safetensors"
    save_weights(misfit, UNet(SPEC).state_dict(), WeightsHeader(role="sr_l", spec=other))
    out, err = shown(capsys, "weights", "check", str(good), str(changed), str(misfit), code=3)
    lines = out.splitlines()
    assert (
        lines[0] == f"ok    {good}"
        and "changed.safetensors is damaged: its tensors are not those" in lines[1]
    )
    assert "misfit.safetensors does not fit its own description" in lines[2] and len(lines) == 3
    assert "2 of 3 have a fault" in err
    told = json.loads(shown(capsys, "weights", "check", str(good), "--json")[0])
    assert told["checked"] == [{"what": str(good), "ok": True, "fault": None}]


def test_weights_of_the_installation_are_not_removed(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("pocket", "pocket/sr_l"):
        assert (
            "belongs to this installation, it stays"
            in shown(capsys, "weights", "rm", what, "--yes", code=2)[1]
        )
    for what in ("../share", "mine", "tinny"):
        assert "nothing of" in shown(capsys, "weights", "rm", what, "--yes", code=3)[1]


def test_foreign_weights_are_to_be_imported_first(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert (
        "has no `mav` header" in shown(capsys, "weights", "add", str(tmp_path / "x.safetensors"), code=3)[1]
    )


def test_deepen_tells_the_sizes_and_what_a_recipe_has_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = trained(tmp_path / "sr_l.safetensors"), tmp_path / "deep"
    arguments = ("weights", "deepen", str(source), "-o", str(out))
    told, said = shown(capsys, *arguments, "--blocks", "3")
    assert told.strip() == str(out / "sr_l.safetensors")
    assert "M now; a recipe says it with num_res_blocks: [3]" in said
    assert json.loads(shown(capsys, *arguments, "--blocks", "2", "--force", "--json")[0])["role"] == "sr_l"
    shown_again = shown(capsys, "weights", "show", str(out / "sr_l.safetensors"))[0]
    assert "mav weights deepen sr_l.safetensors --blocks 2" in shown_again
    assert (
        "`--blocks 2,x` is no list of whole numbers"
        in shown(capsys, *arguments, "--blocks", "2,x", code=2)[1]
    )
    assert "1 levels, and 2 numbers" in shown(capsys, *arguments, "--blocks", "2,2", code=3)[1]
    assert "exists" in shown(capsys, *arguments, "--blocks", "2", code=6)[1]


def test_the_command_group_lists_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "weights", "--help")
    assert all(f"  {name} " in out for name in ("ls", "show", "pull", "add", "check", "rm", "mean", "deepen"))
    assert command.app.info.help and "Traceback" not in out


def test_pulled_files_and_a_family_may_have_the_same_name(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained(tmp_path / "sr_l.safetensors")
    shown(capsys, "weights", "add", str(source), "--family", "tiny")
    shown(capsys, "weights", "pull", "tiny", "--yes")
    told = json.loads(shown(capsys, "weights", "show", "tiny", "--json")[0])
    assert len(told["pulled"]) == 3 and [entry["header"]["role"] for entry in told["weights"]] == ["sr_l"]
    assert shown(capsys, "weights", "check", "tiny")[0].count("ok  ") == 4
    assert "is both" in shown(capsys, "weights", "rm", "tiny", "--yes", code=2)[1]
    shown(capsys, "weights", "rm", "tiny", "--pulled", "--yes")
    assert not (tmp_path / "cache" / "published" / "tiny").exists()
    assert (tmp_path / "data" / "weights" / "tiny" / "sr_l.safetensors").is_file()
    assert "nothing of `tiny`" in shown(capsys, "weights", "rm", "tiny", "--pulled", "--yes", code=3)[1]
    (tmp_path / "data" / "weights" / "tiny" / "recipe.yaml").write_text("")
    shown(capsys, "weights", "rm", "tiny", "--yes")
    assert not (tmp_path / "data" / "weights" / "tiny").exists()
