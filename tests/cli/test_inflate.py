"""`mav inflate`, through the front door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_unets import SPECS, Family

from mavcli.cli.app import run
from mavcli.weights.provenance import WeightsHeader, read_header, save_weights


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAV_DATA", str(tmp_path / "data"))
    path = tmp_path / "data" / "weights" / "mine" / "decoder.safetensors"
    network = Family("", SPECS["pocket decoder"]).image_network()
    save_weights(path, network.state_dict(), WeightsHeader(role="decoder", spec=network.spec))
    return path


def test_it_prints_the_proof_and_the_path(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inflate", "mine/decoder", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/out/decoder_t.safetensors\n"
    assert "max |difference| per frame 0, 0, 0, 0" in shown.err
    assert "added" in shown.err and "M parameters, " in shown.err and " -> " in shown.err
    header = read_header(tmp_path / "out" / "decoder_t.safetensors")
    assert header.source == "mav inflate decoder.safetensors"

    assert run(["inflate", str(decoder), "--widen", "mask", "--json"]) == 0  # beside its source
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(decoder.with_name("interp.safetensors"))] and told["role"] == "interp"
    assert (
        told["difference"] == [0.0] * 4
        and 0 < told["share"] < 1
        and told["bytes_after"] > told["bytes_before"]
    )


def test_what_cannot_be_inflated_is_one_error(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inflate", "mine/decoder"]) == 0
    assert run(["inflate", "mine/decoder"]) == 6
    assert run(["inflate", "mine"]) == 2
    assert run(["inflate", "mine/decoder_t"]) == 3
    assert run(["inflate", "nothing/there"]) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert "decoder_t.safetensors exists" in errors[0] and "one is wanted: name its file" in errors[1]
    assert "have temporal layers already" in errors[2]
