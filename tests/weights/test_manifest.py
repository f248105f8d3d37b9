"""The shipped manifest holds together, and its networks are those that were counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mavcli.engine.assemble import build_network
from mavcli.errors import WeightsError
from mavcli.recipe.schema import STAGES
from mavcli.weights import manifest
from mavcli.weights.manifest import Network, family_folder, load_manifest, published

KNOWN = load_manifest()
NETWORKS = [(name, network) for name, entry in KNOWN.published.items() for network in entry.networks]


@pytest.mark.parametrize(("name", "network"), NETWORKS, ids=[f"{n}-{net.stage}" for n, net in NETWORKS])
def test_a_published_network_has_the_parameters_that_were_counted(name: str, network: Network) -> None:
    with torch.device("meta"):
        built = build_network(network.spec)
    assert sum(value.numel() for value in built.parameters()) == network.parameters


@pytest.mark.parametrize("name", KNOWN.published)
def test_published_weights_can_be_reached_and_name_their_licence(name: str) -> None:
    entry = published(name)
    assert set(entry.stages) <= set(STAGES) and {network.stage for network in entry.networks} <= set(
        entry.stages
    )
    assert entry.licence and entry.source.startswith("https://")
    assert all(file.url or entry.hub for file in entry.files)
    assert len({file.path for file in entry.files}) == len(entry.files)
    # a hub's branch moves, its commit does not
    assert entry.hub is None or len(entry.revision) == 40


def test_an_address_that_states_its_sha256_agrees_with_the_manifest() -> None:
    (file,) = published("clip-vit-l-14").files
    assert file.sha256 is not None and file.sha256 in file.url


def test_an_unknown_id_names_the_nearest_and_a_family_how_it_is_made() -> None:
    with pytest.raises(WeightsError, match="no published weights `karlos`, did you mean `karlo`"):
        published("karlos")
    with pytest.raises(WeightsError, match="the family `pocket` is not published elsewhere") as caught:
        published("pocket")
    assert caught.value.hint == "mav train-stage STAGE pocket"


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("{stage: clip, path: ../x.pt}", "is no path within a folder"),
        ("{stage: clip, path: /etc/passwd}", "is no path within a folder"),
        ("{stage: clip, path: x.pt, sha256: abc}", "is no SHA-256"),
        ('{stage: clip, path: x.pt, url: "http://example.org/x.pt"}', "is not https"),
        ("{stage: clip, path: x.pt}", "has neither a hub nor a url"),
        ("{stage: clip, path: x.pt, md5: abc}", "files.0.md5"),
    ],
    ids=["up", "absolute", "digest", "http", "nowhere", "field"],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path, file: str, told: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(
        "families: {}\npublished:\n  x:\n    title: t\n    licence: MIT\n    source: s\n    importer: karlo\n"
        f"    files:\n      - {file}\n"
    )
    with pytest.raises(WeightsError, match=told):
        load_manifest(path)


def test_a_family_of_the_user_is_found_behind_those_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAV_DATA", str(tmp_path))
    assert family_folder("pocket") == manifest.share_dir("weights") / "pocket"
    assert family_folder("mine") == tmp_path / "weights" / "mine"
