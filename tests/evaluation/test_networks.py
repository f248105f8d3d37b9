"""The published networks, on stand-in weights, give what third-party codes gave; their files are read without running code."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from standin_networks import off_after_centring, references, standin_tensors
from torch import nn

from mavcli.errors import InputError, WeightsError
from mavcli.evaluation.c3d import C3D, load_c3d, mean_clip
from mavcli.evaluation.i3d import I3D, default_eps, load_i3d, square
from mavcli.evaluation.networks import C3DLogits, I3DFeatures
from mavcli.evaluation.weight_files import find_weights, is_published
from mavcli.weights.torchscript import is_torchscript, read_torchscript


@pytest.fixture(scope="module")
def i3d_file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(standin_tensors(shared_data, "i3d_400"), path)
    return path


def logits(network: I3DFeatures, videos: np.ndarray) -> np.ndarray:
    return torch.cat([network.features(network.prepare(video)) for video in videos]).numpy()


def test_i3d_gives_the_reference_features_squashed_and_cut(shared_data: Path, i3d_file: Path) -> None:
    inputs, wanted = references(shared_data, "inputs"), references(shared_data, "i3d")
    network = I3DFeatures(i3d_file)
    found = logits(network, inputs["videos64"][:1])
    stated = wanted["logits_eps1e5"]
    assert off_after_centring(found, stated[:1], centre=stated.mean(0)) < 1e-4
    wide = references(shared_data, "i3d_128x228")
    centre = wide["logits_shorter_side_center_crop"].mean(0)
    network._squaring = "crop"
    cut = logits(network, inputs["videos_128x228"][:1])
    assert off_after_centring(cut, wide["logits_shorter_side_center_crop"][:1], centre=centre) < 1e-4
    assert off_after_centring(cut, wide["logits_squash"][:1], centre=centre) > 1e-2


@pytest.mark.slow
def test_i3d_gives_every_reference_feature(shared_data: Path, tmp_path: Path) -> None:
    i3d_file = tmp_path / "i3d_pretrained_400.pt"
    torch.save(standin_tensors(shared_data, "i3d_400"), i3d_file)
    inputs, wanted = references(shared_data, "inputs"), references(shared_data, "i3d")
    wide = references(shared_data, "i3d_128x228")
    for eps, name in ((1e-5, "logits_eps1e5"), (1e-3, "logits_eps1e3_mean")):
        found = logits(I3DFeatures(i3d_file, eps=eps), inputs["videos64"])
        assert off_after_centring(found, wanted[name]) < 1e-4
    pooled = logits(I3DFeatures(i3d_file, layer="avgpool"), inputs["videos64"][:4])
    assert off_after_centring(pooled, wanted["avgpool_eps1e5_first4"][..., 0, 0, 0]) < 1e-4
    for squaring, name in (("crop", "logits_shorter_side_center_crop"), ("squash", "logits_squash")):
        found = logits(I3DFeatures(i3d_file, squaring=squaring), inputs["videos_128x228"])
        assert off_after_centring(found, wide[name]) < 1e-4


@pytest.mark.slow
def test_inception_gives_every_reference_feature(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    from mavcli.evaluation.networks import InceptionFeatures

    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(standin_tensors(shared_data, "inception_pytorch_fid"), path)
    inputs = references(shared_data, "inputs")
    frames = {
        "": inputs["videos64"][:, ::4].reshape(-1, 64, 64, 3),
        "_128x228": inputs["videos_128x228"][:, ::4].reshape(-1, 128, 228, 3),
    }
    layers = {"pool3": "pool3", "logits_unbiased": "logits_unbiased", "logits": "logits_with_bias"}
    for resizing in ("pytorch-fid", "torch-fidelity"):
        wanted = references(shared_data, f"inception_{resizing.replace('-', '_')}")
        for layer, name in layers.items():
            network = InceptionFeatures(path, resizing=resizing, layer=layer)
            for suffix, pictures in frames.items():
                if f"{name}{suffix}" in wanted:
                    found = network.features(network.prepare(pictures)).numpy()
                    assert off_after_centring(found, wanted[f"{name}{suffix}"]) < 1e-4


def test_inception_gives_the_reference_features_of_a_frame(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    from mavcli.evaluation.networks import InceptionFeatures

    path = tmp_path / "inception.safetensors"
    # The published file may lack the counters of training steps.
    tensors = standin_tensors(shared_data, "inception_pytorch_fid")
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, path)
    frame = references(shared_data, "inputs")["videos64"][0, :1]
    network = InceptionFeatures(path, resizing="torch-fidelity")
    found = network.features(network.prepare(frame)).numpy()
    wanted = references(shared_data, "inception_torch_fidelity")["pool3"]
    assert off_after_centring(found, wanted[:1], centre=wanted.mean(0)) < 1e-4


def test_the_three_ways_to_299_pixels_are_those_of_their_codes(shared_data: Path) -> None:
    pytest.importorskip("torch_fidelity")
    from PIL import Image

    from mavcli.evaluation.inception import to_input

    frame = references(shared_data, "inputs")["videos_128x228"][0, 0]
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    clean = np.stack(
        [
            np.asarray(
                Image.fromarray(frame[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
            ).clip(0, 255)
            for c in range(3)
        ]
    )
    assert np.abs(to_input(x, resizing="clean-fid")[0].numpy() - (clean - 128) / 128).max() < 1e-4
    ways = [to_input(x, resizing=way) for way in ("pytorch-fid", "torch-fidelity", "clean-fid")]
    assert all((a - b).abs().max() > 1e-3 for a, b in ((ways[0], ways[1]), (ways[0], ways[2])))


def test_torchmetrics_resizes_antialiased_by_default_and_else_as_torch_fidelity(
    shared_data: Path, tmp_path: Path
) -> None:
    """What `inception.py` says of another code is tested against that code: every feature, on stand-in weights."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    from mavcli.evaluation.networks import InceptionFeatures

    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(standin_tensors(shared_data, "inception_pytorch_fid"), path)
    # larger than 299 pixels: enlarging, there is nothing to antialias
    frame = np.random.default_rng(0).integers(0, 256, (1, 360, 480, 3), dtype=np.uint8)
    picture = torch.from_numpy(frame).permute(0, 3, 1, 2)
    wanted = {}
    for ours, antialias in (("torchmetrics", {}), ("torch-fidelity", {"antialias": False})):
        theirs = fid.NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path), **antialias
        )
        with torch.no_grad():
            wanted[ours] = theirs(picture).numpy()
        network = InceptionFeatures(path, resizing=ours)
        found = network.features(network.prepare(frame)).numpy()
        assert np.abs(found - wanted[ours]).max() < 1e-4 * np.abs(wanted[ours]).max()
    apart = np.abs(wanted["torchmetrics"] - wanted["torch-fidelity"]).max()
    assert apart > 1e-3 * np.abs(wanted["torch-fidelity"]).max(), "the default is not torch-fidelity's"


def test_clip_tokens_are_openai_s(shared_data: Path) -> None:
    import open_clip

    from mavcli.evaluation.clip_sim import ClipJudge

    judge = ClipJudge.__new__(ClipJudge)
    judge._tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    stated = json.loads((shared_data / "metric_references" / "clip_tokens.json").read_text())
    tokens = judge.tokenize([entry["text"] for entry in stated]).tolist()
    for row, entry in zip(tokens, stated, strict=True):
        assert row == entry["ids"] + [0] * (77 - len(entry["ids"]))


@pytest.mark.slow
def test_clip_gives_every_reference_feature_and_clipsim(shared_data: Path, tmp_path: Path) -> None:
    from mavcli.evaluation.clip_sim import frame_text_cosines
    from mavcli.evaluation.networks import ClipFeatures

    path = tmp_path / "ViT-B-32.pt"
    torch.save(standin_tensors(shared_data, "openai_clip_vit_b32"), path)
    network = ClipFeatures("ViT-B/32", path)
    inputs, wanted = references(shared_data, "inputs"), references(shared_data, "clip_vit_b32")
    stated = json.loads((shared_data / "metric_references" / "clip_vit_b32.json").read_text())
    images = [network.features(network.prepare(video[::4])) for video in inputs["videos64"]]
    assert off_after_centring(torch.cat(images).numpy(), wanted["image"]) < 1e-4
    wide = inputs["videos_128x228"][:, ::4].reshape(-1, 128, 228, 3)
    found = network.features(network.prepare(wide)).numpy()
    assert off_after_centring(found, wanted["image_128x228"]) < 1e-4
    texts = network.judge.encode_text(stated["texts"])
    assert off_after_centring(texts.numpy(), wanted["text"]) < 1e-4
    values = [float(frame_text_cosines(i, t).mean()) for i, t in zip(images, texts, strict=True)]
    np.testing.assert_allclose(values, stated["clipsim_per_video"], atol=1e-6)
    assert np.mean(values) == pytest.approx(stated["clipsim"], abs=1e-6)


# -- files --------------------------------------------------------------------------------------------------------------------


class Foreign(nn.Module):
    """I3D's tensors under other names, without gains, as a TensorFlow export has them; `forward` must never run."""

    def __init__(self, source: I3D) -> None:
        super().__init__()
        for i, unit in enumerate(
            m for n, m in source.named_modules() if n != "logits" and hasattr(m, "conv3d")
        ):
            layer = nn.Module()
            layer.kernel = nn.Parameter(unit.conv3d.weight.detach().clone())
            layer.register_buffer("beta", unit.bn.bias.detach().clone())
            layer.register_buffer("moving_mean", unit.bn.running_mean.clone())
            layer.register_buffer("moving_variance", unit.bn.running_var.clone())
            self.add_module(f"layer{i}", layer)
        last = nn.Module()
        last.kernel = nn.Parameter(source.logits.conv3d.weight.detach().clone())
        last.register_buffer("bias", source.logits.conv3d.bias.detach().clone())
        self.add_module("last", last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the code of an archive was run")


def tiny_biases(network: I3D, *, seed: int) -> I3D:
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith((".bias", "running_mean")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


def test_a_torchscript_archive_of_other_names_is_the_same_network(tmp_path: Path) -> None:
    source = tiny_biases(I3D(eps=1e-3), seed=0).eval()
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Foreign(source)).save(str(path))
    assert is_torchscript(path) and default_eps(path) == 1e-3
    loaded = load_i3d(path)
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.Conv3d_1a_7x7.bn.eps == 1e-3


def test_eps_goes_by_the_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "x.pt")
    assert default_eps(tmp_path / "x.pt") == 1e-5
    assert default_eps(tmp_path / "rgb_imagenet.pt") == 1e-3


def test_a_torchscript_archive_that_wants_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = b"\x80\x02cos\nsystem\nX" + len(f"touch {marker}").to_bytes(4, "little")
    payload += f"touch {marker}".encode() + b"\x85R."
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", payload)
        archive.writestr("evil/constants.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError, match=r"wants `os.system`"):
        read_torchscript(path)
    assert not marker.exists()


def test_a_cut_archive_and_a_plain_checkpoint_are_no_archives(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[:-200])
    assert not is_torchscript(tmp_path / "cut.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "plain.pt")
    (tmp_path / "whole.pt").write_bytes(buffer.getvalue())
    assert sorted(read_torchscript(tmp_path / "whole.pt")) == ["bias", "weight"]


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(4, 3, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"no I3D of Kinetics-400: it has 1 convolution, 58 are wanted"):
        load_i3d(path)
    with pytest.raises(WeightsError, match="no weights of `i3d` are here") as caught:
        find_weights("i3d", None)
    assert caught.value.hint is not None and "i3d_torchscript.pt" in caught.value.hint


def test_another_network_s_weights_are_told_from_inception_s_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    from mavcli.evaluation.networks import InceptionFeatures

    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(4, 3, 3, 3)}, path)
    network = InceptionFeatures(path)
    with pytest.raises(WeightsError) as caught:
        network.features(network.prepare(np.zeros((1, 8, 8, 3), np.uint8)))
    assert re.fullmatch(
        rf'{re.escape(str(path))} is no Inception of pytorch-fid: missing key "[\w.]+" and \d+ more',
        caught.value.message,
    )


def test_a_file_under_a_published_name_is_told_from_the_published_file() -> None:
    name = Path("pt_inception-2015-12-05-6726825d.pth")
    assert is_published(name, "6726825d" + "0" * 56) is True
    assert is_published(name, "0" * 64) is False
    assert is_published(Path("mine.pth"), "0" * 64) is None


def test_i3d_refuses_clips_too_short_for_its_pooling() -> None:
    with pytest.raises(InputError, match="a clip of 8 frames, I3D needs at least 9"):
        I3DFeatures.__new__(I3DFeatures).prepare(np.zeros((8, 32, 32, 3), np.uint8))


def test_frames_are_cut_to_their_centre_with_the_longer_side_rounded_up() -> None:
    x = torch.arange(129 * 228.0).reshape(1, 1, 129, 228).expand(1, 3, -1, -1)
    assert square(x, rule="crop").shape == square(x, rule="squash").shape == (1, 3, 224, 224)
    flat = square(torch.full((1, 3, 50, 90), 7.0), rule="crop")
    assert torch.allclose(flat, torch.tensor(7.0))


def test_c3d_reads_tganv2_s_layout_and_takes_its_input_as_it_does(shared_data: Path, tmp_path: Path) -> None:
    shapes = json.loads((shared_data / "metric_references" / "layout_c3d_tgan2_chainer.json").read_text())[
        "shapes"
    ]
    own = {name.replace("/", ".").replace(".W", ".weight").replace(".b", ".bias") for name in shapes}
    with torch.device("meta"):
        network = C3D()
    state = network.state_dict()
    assert own | {"mean"} == set(state)
    assert all(
        list(state[n.replace("/", ".").replace(".W", ".weight").replace(".b", ".bias")].shape) == shape
        for n, shape in shapes.items()
    )
    assert network(torch.zeros(1, 3, 16, 64, 64, device="meta")).shape == (1, 101)
    (tmp_path / "c3d.npz").write_bytes(b"PK nothing")
    with pytest.raises(WeightsError, match="is no npz file"):
        load_c3d(tmp_path / "c3d.npz", tmp_path / "mean2.npz")
    np.savez(tmp_path / "c3d.npz", **{"conv1a/W": np.zeros((64, 3, 3, 3, 3), np.float32)})
    with pytest.raises(WeightsError, match="lacks `conv1a/b`"):
        load_c3d(tmp_path / "c3d.npz", tmp_path / "mean2.npz")


def c3d_of_standins(shared_data: Path, folder: Path) -> C3DLogits:
    """Stand-in weights in TGANv2's two files."""
    mean = (96 + 16 * np.random.RandomState(3).standard_normal((3, 16, 128, 171))).astype(np.float32)
    tensors = standin_tensors(shared_data, "c3d_tgan2_chainer")
    np.savez(folder / "c3d.npz", **{name: value.numpy() for name, value in tensors.items()})
    np.savez(folder / "mean2.npz", other=np.zeros(3), mean=mean)
    return C3DLogits(folder / "c3d.npz", folder / "mean2.npz")


@pytest.mark.parametrize("clips", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_c3d_gives_the_logits_of_tgan2_s_own_code(
    shared_data: Path, tmp_path: Path, clips: int | None
) -> None:
    """`c3d_tgan2.npz`: pfnet-research/tgan2 @d83018c `C3DVersion1UCF101` under Chainer 7.8.1, numpy 1.23.5, on the same weights."""
    network = c3d_of_standins(shared_data, tmp_path)
    inputs = references(shared_data, "inputs")
    with np.load(Path(__file__).with_name("c3d_tgan2.npz")) as wanted:
        for name in ("videos64", "videos_128x228"):
            centre = wanted[name].mean(axis=0)
            found = [network.features(network.prepare(video)).numpy()[0] for video in inputs[name][:clips]]
            assert off_after_centring(np.stack(found), wanted[name][:clips], centre=centre) < 1e-4


def test_a_mean_clip_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mean2.npz"
    for arrays, wanted in (
        ({"mean": np.zeros((3, 16, 100, 171))}, r"holds \(3, 16, 100, 171\), a mean clip"),
        ({"x": np.zeros((3, 16, 128, 171))}, "lacks `mean`"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(WeightsError, match=wanted):
            mean_clip(path)


def test_c3d_s_input_is_bgr_less_the_mean_clip() -> None:
    with torch.device("meta"):
        network = C3D()
    network.mean = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 16, 112, 112)
    clip = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 20, 30)
    found = network._prepared(clip)
    assert found.shape == (1, 3, 16, 112, 112)
    # red 1, green 0, blue -1: as BGR grey levels 0, 128, 256, less 0, 1, 2
    assert found[0, :, 5, 7, 7].tolist() == [0.0, 127.0, 254.0]


def test_a_measuring_network_whose_file_changed_since_it_was_digested_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features would be kept, and told, under the digest of the file that was there before."""
    path = tmp_path / "i3d.pt"
    path.write_bytes(b"as published")
    monkeypatch.setattr("mavcli.evaluation.networks.load_i3d", lambda path, eps: torch.nn.Identity())
    unchanged, network = I3DFeatures(path), I3DFeatures(path)
    assert unchanged._network is not None
    path.write_bytes(b"as exchanged")
    with pytest.raises(WeightsError, match=re.escape(f"{path} changed while it was read")):
        network.features(torch.zeros(1, 3, 9, 224, 224))
