"""An image network becomes a video network, with proof (Make-A-Video, arXiv 2209.14792, section 3.2).

What inflation adds starts as the identity: temporal convolutions as a Dirac kernel, temporal attention behind a zero
projection, the frame rate behind zero layers, new input channels as zero columns. So the video network must say of every
frame what the image network says of it; this is measured on a random clip before anything is written.

Tensors are made and written one at a time, and the proof holds one stage of the U-Net at a time: a network of a billion
parameters is inflated on a machine that could not run it.

b batch, f frames, c channels, h w pixels; t is always the diffusion step, never time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mavcli.errors import WeightsError
from mavcli.report import Report, Silent
from mavcli.specs import UNetSpec
from mavcli.weights.importing import MAX_SHARD_BYTES
from mavcli.weights.locate import STEM, stem_columns
from mavcli.weights.provenance import (
    Inflation,
    StoredWeights,
    WeightsHeader,
    as_described,
    read_header,
    read_index,
    refuse_existing,
    save_weights,
    weight_files,
)
from mavcli.weights.safety import check_fit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mavcli.models.embeddings import Condition

Widen = Literal["none", "mask"]
_BECOMES = {"decoder": "decoder_t", "sr_l": "sr_lt"}
_VIDEO = ("decoder_t", "interp", "sr_lt")
_FRAMES = 4


@dataclass(frozen=True)
class Inflated:
    """What `inflate_file` wrote. `bytes_before` and `bytes_after` are the sizes of the networks in their stored type."""

    files: tuple[Path, ...]
    header: WeightsHeader
    bytes_before: int
    bytes_after: int

    @property
    def inflation(self) -> Inflation:
        assert self.header.inflation is not None
        return self.header.inflation


def inflated_spec(
    spec: UNetSpec, *, role: str, widen: Widen = "none", position: str | None = None, fps: bool | None = None
) -> UNetSpec:
    """The video network of the image network `spec`; a network that is one already keeps its temporal layers.

    Without `fps`, a decoder is told the frame rate and super-resolution is not. Raises WeightsError where nothing is added.
    """
    changes: dict[str, Any] = {}
    if spec.temporal == "none":
        changes |= {"temporal": "p3d", "fps": role == "decoder" if fps is None else fps}
        changes |= {} if position is None else {"temporal_position": position}
    if widen == "mask" and not spec.mask_channels:
        changes["mask_channels"] = 4
    if not changes:
        raise WeightsError(
            f"these `{role}` weights have {'both temporal layers and a mask' if widen == 'mask' else 'temporal layers'} already"
        )
    # validated again: `model_copy` alone would take anything
    return UNetSpec.model_validate(spec.model_dump() | changes)


def inflate_file(
    source: Path,
    out: Path,
    *,
    widen: Widen = "none",
    position: Literal["none", "rope", "relbias"] | None = None,
    fps: bool | None = None,
    seed: int = 0,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Report | None = None,
    command: str = "",
) -> Inflated:
    """Inflate the image weights `source` into the folder `out`, as `decoder_t`, `interp` (with a mask) or `sr_lt`.

    `widen="mask"` adds ↑F's four input channels (section 3.3). `seed` draws what hides behind the zeros. Raises WeightsError
    when the source is no U-Net's image weights or the proof fails; DiskError when the target exists and `force` is not given.
    """
    report = report or Silent()
    header = read_header(source)
    role = _target_role(source, header, widen)
    assert isinstance(header.spec, UNetSpec)
    spec = inflated_spec(header.spec, role=header.role, widen=widen, position=position, fps=fps)
    target = out / f"{role}.safetensors"
    refuse_existing(target, force=force)

    with as_described(source):
        own = _on_meta(header.spec).state_dict()
    check_fit(read_index(source), own, source)
    before = StoredWeights(source, sha256=header.content_sha256)
    after = InflatedWeights(before, spec, source=source, seed=seed)
    report.message(f"proof: {_FRAMES} frames of noise through both networks, in float32, one stage at a time")
    difference, size = prove(header.spec, before, spec, after)
    if max(difference) > 1e-4:
        raise WeightsError(
            f"the inflated network differs from {source} by {max(difference):g}, nothing was written",
            hint="this is a fault of mav or of this machine's arithmetic: `mav doctor`",
        )
    total = sum(value.numel() for value in after.shapes().values())
    added = total - sum(value.numel() for value in own.values())
    earlier = header.inflation.added if header.inflation else 0
    inflation = Inflation(
        parameters=total,
        added=added + earlier,
        difference=difference,
        size=size,
        trained=header.spec.temporal != "none" and (header.inflation is None or header.inflation.trained),
    )
    header = header.model_copy(
        update={
            "role": role,
            "spec": spec,
            "step": 0,
            "samples_seen": 0,
            "parents": (header.as_parent(),),
            "source": command or f"mav inflate {source.name}",
            "inflation": inflation,
            "met": header.met if role == header.role else None,
        }
    )
    files = save_weights(target, after, header, max_shard_bytes=max_shard_bytes)
    sizes = [sum(file.stat().st_size for file in group) for group in (weight_files(source), files)]
    return Inflated(tuple(files), read_header(target), *sizes)


def _target_role(source: Path, header: WeightsHeader, widen: Widen) -> str:
    if not isinstance(header.spec, UNetSpec) or header.role not in (*_BECOMES, *_VIDEO):
        raise WeightsError(
            f"{source} holds `{header.role}` weights, only `decoder` and `sr_l` become video networks",
            hint="mav weights ls",
        )
    if widen == "mask":
        if header.role not in ("decoder", "decoder_t"):
            raise WeightsError(f"{source} holds `{header.role}` weights, only a decoder becomes ↑F")
        return "interp"
    return _BECOMES.get(header.role, header.role)


class InflatedWeights(Mapping[str, "Tensor"]):
    """The tensors of the video network `spec` that starts from image weights, each made when it is asked for.

    They have the type of the image weights. Raises WeightsError when `before` is not the image network of `spec`.
    """

    def __init__(self, before: Mapping[str, Tensor], spec: UNetSpec, *, source: Path, seed: int = 0) -> None:
        from mavcli.models.unet import is_temporal

        self._before, self._spec, self._seed = before, spec, seed
        self._network = _on_meta(spec)
        self._shapes = self._network.state_dict()
        foreign = sorted(set(before) - set(self._shapes))
        missing = [name for name in sorted(set(self._shapes) - set(before)) if not is_temporal(name)]
        if foreign or missing:
            what, names = ("has no place for", foreign) if foreign else ("lacks", missing)
            raise WeightsError(
                f"{source} {what} {len(names)} tensors, the first is `{names[0]}`: it is of another network"
            )
        self._source = source
        self._dtype = before[STEM].dtype
        self._layer_at_hand: tuple[str, dict[str, Tensor]] = ("", {})

    def shapes(self) -> dict[str, Tensor]:
        """Every tensor without memory."""
        return dict(self._shapes)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._before:
            return self._fresh(name).to(self._dtype)
        value = self._before[name]
        wanted = self._shapes[name].shape
        if value.shape == wanted:
            return value
        columns = stem_columns(self._spec, value.shape[1]) if name == STEM else None
        if columns is None:
            raise WeightsError(
                f"`{name}` of {self._source} is {tuple(value.shape)}, the network has {tuple(wanted)}"
            )
        wide = value.new_zeros(wanted)
        wide[:, columns] = value
        return wide

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _fresh(self, name: str) -> Tensor:
        """The first value of a temporal tensor: that of its layer, built anew from a seed of its own."""
        import torch

        owner, build = self._layer(name)
        if owner != self._layer_at_hand[0]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{self._seed}/{owner}".encode()))
                self._layer_at_hand = owner, build().state_dict()
        return self._layer_at_hand[1][name.removeprefix(f"{owner}.")]

    def _layer(self, name: str) -> tuple[str, Callable[[], nn.Module]]:
        """The temporal layer that owns the tensor `name`, and how to build it."""
        from mavcli.models.embeddings import FpsEmbedding
        from mavcli.models.pseudo3d import PseudoConv3d, TemporalAttention, identity_conv, zero_linear

        network = self._network
        if name.startswith("fps_embed."):
            assert network.fps_embed is not None
            return "fps_embed", partial(FpsEmbedding, network.fps_embed.width)
        parent, _, rest = name.rpartition(".temporal_emb.")
        if parent:
            layer = network.get_submodule(f"{parent}.temporal_emb")
            return f"{parent}.temporal_emb", partial(zero_linear, layer.in_features, layer.out_features)
        parent, _, rest = name.partition(".temporal.")
        owner, layer = f"{parent}.temporal", network.get_submodule(f"{parent}.temporal")
        if isinstance(layer, TemporalAttention):
            return owner, partial(
                TemporalAttention,
                layer.qkv.in_features,
                layer.num_heads,
                groups=layer.norm.num_groups,
                eps=layer.norm.eps,
                position=layer.position,
                embed_dim=None if layer.emb is None else layer.emb.in_features,
            )
        assert isinstance(network.get_submodule(parent), PseudoConv3d)
        return owner, partial(identity_conv, layer.out_channels, layer.kernel_size[0])


def prove(
    before: UNetSpec, tensors: Mapping[str, Tensor], after: UNetSpec, inflated: Mapping[str, Tensor]
) -> tuple[tuple[float, ...], int]:
    """max |difference| of each frame of a random clip between the image network and the video network, in float32.

    The clip is the smallest that reaches every level with more than one pixel; returns its side in pixels too.
    """
    import torch

    size = 2 * after.multiple
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _FRAMES, after.in_channels, size, size, generator=generator)
    t = torch.tensor([500])
    outputs = []
    for spec, weights in ((before, tensors), (after, inflated)):
        condition = random_condition(spec, frames=_FRAMES, size=size)
        with torch.inference_mode():
            outputs.append(staged(spec, weights)(x, t, condition))
    image, video = outputs
    gaps = (video - image).abs().amax(dim=(0, 2, 3, 4))
    return tuple(gaps.tolist()), size


def random_condition(spec: UNetSpec, *, frames: int, size: int) -> Condition:
    """One row of everything that a network of `spec` reads, drawn for each field apart: two networks get the same."""
    import torch

    from mavcli.models.embeddings import Condition

    def normal(name: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))

    text = spec.text != "none"
    return Condition(
        image_embedding=normal("image", 1, spec.clip_dim) if spec.clip_dim else None,
        text_states=normal("states", 1, spec.text_context, spec.text_dim) if spec.text == "clip" else None,
        text_embedding=normal("text", 1, spec.text_dim) if spec.text == "clip" else None,
        text_mask=(torch.arange(spec.text_context) < 1 + spec.text_context // 2)[None] if text else None,
        low_res=normal("low-res", 1, frames, spec.low_res_channels, size, size)
        if spec.low_res_channels
        else None,
        masked_video=normal("mask", 1, frames, spec.mask_channels, size, size)
        if spec.mask_channels
        else None,
        fps=torch.tensor([7.0]) if spec.fps and frames > 1 else None,
        noise_level=torch.tensor([20]) if spec.noise_level else None,
    )


def staged(spec: UNetSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """A U-Net in float32 that holds the weights of one of its stages at a time, and the few outside them always."""
    network = _on_meta(spec)
    stages = {"middle_block": network.middle_block}
    stages |= {f"input_blocks.{i}": block for i, block in enumerate(network.input_blocks)}
    stages |= {f"output_blocks.{i}": block for i, block in enumerate(network.output_blocks)}

    def fill(module: nn.Module, prefix: str, names: list[str]) -> None:
        state = {name.removeprefix(prefix): weights[name].float() for name in names}
        module.load_state_dict(state, assign=True, strict=False)

    inside = {name: [key for key in network.state_dict() if key.startswith(f"{name}.")] for name in stages}
    outside = [key for key in network.state_dict() if not any(key in names for names in inside.values())]
    fill(network, "", outside)
    for name, block in stages.items():

        def come(module: nn.Module, inputs: Any, name: str = name) -> None:
            fill(module, f"{name}.", inside[name])

        def go(module: nn.Module, inputs: Any, output: Any) -> None:
            module.to("meta")

        block.register_forward_pre_hook(come)
        block.register_forward_hook(go)
    return network.eval().requires_grad_(False)


def _on_meta(spec: UNetSpec) -> Any:
    import torch

    from mavcli.models.unet import UNet

    with torch.device("meta"):
        return UNet(spec)
