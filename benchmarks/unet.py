"""Speed of the U-Net beside its peers and beside what one core can do: the table of benchmarks/README.md.

    pip install -e .[bench] && python benchmarks/unet.py

One thread, one clip of 16 frames of 64 x 64, batch 1. All candidates take turns inside every round, each in a process
of its own that sleeps between its turns; medians over the rounds. Time is the CPU time of that process: with one thread
that is wall time on an idle machine, and it stays comparable on a busy one.

Everybody runs as it comes: `mav` tunes the allocator before its first tensor, the peers do not. `--tune-peers` gives
them our allocator too, to see what of a ratio comes from it.

FLOPs are those of a network's definition, whatever its code then does: counted by `torch.utils.flop_counter` for every
candidate alike, 2 per multiply-add, convolutions and matrix products only, a 3x3 convolution as 9 of them. `mav` gets some
3x3 convolutions on fewer multiplications (mavcli/models/convolution.py), which makes it faster and not its count smaller:
its GFLOP/s, like its share, compare times for the same work and are not the rate of the multiplier. Fused attention is counted too, for all; norms,
activations and copies are not.

The conv reference is the best of a few plain `conv2d` forwards in channels_last, in the same rounds and type; shares of
it, those of forward + backward too, are of that forward figure. bfloat16 is `torch.autocast` over float32 weights, as
`mav` itself runs, for every candidate.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.util
import multiprocessing
import os
import platform
import sys
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mavcli.engine.backend import tune_allocator
from mavcli.models.convolution import direct
from mavcli.models.embeddings import Condition
from mavcli.models.unet import UNet
from mavcli.specs import UNetSpec

FRAMES, SIDE = 16, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("forward", "training")
WIDE = ", 64 channels"  # a peer with fewer, wider layers: kinder to it than its own usual ones
REFERENCE = ((64, 64), (128, 32), (128, 64), (256, 16), (256, 32))  # channels, side

COMMON = UNetSpec(
    image_size=64,
    attention_resolutions=(16,),
    num_head_channels=64,
    temporal="p3d",
    temporal_position="rope",
    fps=True,
    clip_tokens=4,
)
OURS = {
    5: {
        "model_channels": 128,
        "channel_mult": (1, 0.75, 0.5),
        "num_res_blocks": 1,
        "time_embed_dim": 128,
        "clip_dim": 128,
        "context_dim": 128,
    },
    40: {
        "model_channels": 128,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": (1, 1, 2),
        "clip_dim": 512,
        "context_dim": 256,
    },
}

# Acceptance: what is compared, in which mode, type and size, and the least it may be.
SHARES = (
    (5, "forward", "fp32", 0.75),
    (5, "forward", "bf16", 0.62),
    (5, "training", "fp32", 0.55),
    (5, "training", "bf16", 0.60),
    (40, "forward", "fp32", 0.78),
    (40, "forward", "bf16", 0.80),
)
RATIOS = (
    ("make-a-video-pytorch", "forward", "fp32", 2.4),
    ("make-a-video-pytorch", "forward", "bf16", 3.0),
    ("imagen-pytorch", "forward", "fp32", 4.0),
    ("imagen-pytorch", "forward", "bf16", 4.0),
    ("diffusers SVD", "forward", "fp32", 1.5),
    ("diffusers SVD", "forward", "bf16", 1.5),
)

Call = Callable[[], Tensor]


@dataclasses.dataclass
class Candidate:
    """A network with its inputs bound."""

    name: str
    network: nn.Module
    call: Call

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def ours(size: int) -> Candidate:
    spec = UNetSpec.model_validate({**COMMON.model_dump(), **OURS[size]})
    network = UNet(spec)
    x, t = torch.randn(1, FRAMES, 3, SIDE, SIDE), torch.tensor([500.0])
    condition = Condition(image_embedding=torch.randn(1, spec.clip_dim or 0), fps=torch.tensor([8.0]))
    return Candidate("mav", network, lambda: network(x, t, condition))


def make_a_video_pytorch(size: int, *, wide: bool = False) -> Candidate:
    from make_a_video_pytorch import SpaceTimeUnet

    dim, dim_mult, depth = {5: (40, (1, 2, 4), 1), 40: (128, (1, 2, 3), 2)}[size]
    if wide:
        dim, dim_mult, depth = 64, (1, 1, 2), 2
    network = SpaceTimeUnet(
        dim=dim,
        dim_mult=dim_mult,
        self_attns=(False, False, True),
        temporal_compression=(False, False, False),
        resnet_block_depths=(depth,) * 3,
        attn_dim_head=64,
        attn_heads={5: 2, 40: 4}[size],
    )
    x, t = torch.randn(1, 3, FRAMES, SIDE, SIDE), torch.tensor([500.0])
    name = "make-a-video-pytorch" + (WIDE if wide else "")
    return Candidate(name, network, lambda: network(x, timestep=t))


def imagen_pytorch(size: int) -> Candidate:
    # Its package imports a trainer, T5 and a data set library; the network needs none of them.
    spec = importlib.util.find_spec("imagen_pytorch")
    if spec is None:
        raise ModuleNotFoundError("imagen_pytorch")
    package = types.ModuleType("imagen_pytorch")
    package.__path__ = list(spec.submodule_search_locations or [])
    t5 = types.ModuleType("imagen_pytorch.t5")
    vars(t5).update(t5_encode_text=None, get_encoded_dim=lambda name: 768, DEFAULT_T5_NAME="none")
    sys.modules.update({"imagen_pytorch": package, "imagen_pytorch.t5": t5})
    from imagen_pytorch.imagen_video import Unet3D

    network = Unet3D(dim=32, dim_mults=(1, 2, 4), attn_heads=4, text_embed_dim=768)
    x, t, text = torch.randn(1, 3, FRAMES, SIDE, SIDE), torch.tensor([0.5]), torch.randn(1, 20, 768)
    return Candidate("imagen-pytorch", network, lambda: network(x, t, text_embeds=text))


def diffusers_svd(size: int, *, wide: bool = False) -> Candidate:
    from diffusers import UNetSpatioTemporalConditionModel

    channels = {5: (64, 64, 96) if wide else (32, 64, 96), 40: (192, 192, 256)}[size]
    network: Any = UNetSpatioTemporalConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,
        down_block_types=("DownBlockSpatioTemporal",) * 2 + ("CrossAttnDownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) + ("UpBlockSpatioTemporal",) * 2,
        layers_per_block=1,
        num_attention_heads=tuple(c // 32 for c in channels),
        cross_attention_dim=128,
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=192,
        num_frames=FRAMES,
    )
    x, text, ids = torch.randn(1, FRAMES, 3, SIDE, SIDE), torch.randn(1, 4, 128), torch.zeros(1, 3)
    name = "diffusers SVD" + (WIDE if wide else "")
    return Candidate(name, network, lambda: network(x, 500, text, ids).sample)


def diffusers_motion(size: int) -> Candidate:
    from diffusers import UNetMotionModel

    network: Any = UNetMotionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 64, 96),
        down_block_types=("DownBlockMotion",) * 2 + ("CrossAttnDownBlockMotion",),
        up_block_types=("CrossAttnUpBlockMotion",) + ("UpBlockMotion",) * 2,
        layers_per_block=1,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        cross_attention_dim=128,
        norm_num_groups=32,
    )
    x, text = torch.randn(1, 3, FRAMES, SIDE, SIDE), torch.randn(FRAMES, 4, 128)  # it wants one row a frame
    return Candidate("diffusers motion", network, lambda: network(x, 500, text).sample)


BUILDERS: dict[int, tuple[Callable[[int], Candidate], ...]] = {
    5: (
        ours,
        make_a_video_pytorch,
        functools.partial(make_a_video_pytorch, wide=True),
        imagen_pytorch,
        diffusers_svd,
        functools.partial(diffusers_svd, wide=True),
        diffusers_motion,
    ),
    40: (ours, make_a_video_pytorch, diffusers_svd),
}


def run(candidate: Candidate, mode: str, dtype: torch.dtype) -> None:
    """One forward without gradients, or one forward + backward."""
    training = mode == "training"
    with (
        torch.set_grad_enabled(training),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        y = candidate.call()
    if training:
        y.float().square().mean().backward()
        candidate.network.zero_grad(set_to_none=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def serve(connection: Connection, build: Callable[[int], Candidate], size: int, tune: bool) -> None:
    """A candidate's own process: says what it is, then answers each (mode, dtype) with (seconds, FLOPs)."""
    if tune:
        tune_allocator()
    torch.manual_seed(0)
    candidate = build(size)
    torch.set_num_threads(1)  # after the imports, some of which reset it
    connection.send((candidate.name, candidate.parameters))
    flops: dict[str, int] = {}
    while (asked := connection.recv()) is not None:
        mode, dtype = asked
        if mode not in flops:  # also the first, untimed run
            # As matrix products: torch 2.14 does not count the CPU's fused attention.
            with direct(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run(candidate, mode, torch.float32)
            flops[mode] = counter.get_total_flops()
            run(candidate, mode, DTYPES[dtype])
        connection.send((seconds(functools.partial(run, candidate, mode, DTYPES[dtype])), flops[mode]))


class Racer:
    """A candidate seen from outside its process; `times` by (mode, dtype) in seconds, `flops` by mode."""

    def __init__(self, build: Callable[[int], Candidate], size: int, *, tune: bool) -> None:
        self.size = size
        self.times: dict[tuple[str, str], list[float]] = {}
        self.flops: dict[str, int] = {}
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=serve, args=(far, build, size, tune), daemon=True)
        self.process.start()
        far.close()
        self.name, self.parameters = self.connection.recv()

    def turn(self, mode: str, dtype: str) -> None:
        self.connection.send((mode, dtype))
        spent, self.flops[mode] = self.connection.recv()
        self.times.setdefault((mode, dtype), []).append(spent)

    def speed(self, mode: str, dtype: str) -> float | None:
        """GFLOP/s, or None where it was not measured."""
        times = self.times.get((mode, dtype))
        return self.flops[mode] / median(times) / 1e9 if times else None

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def reference(dtype: torch.dtype) -> list[tuple[float, Call]]:
    """(GFLOP, call) of plain 3 x 3 convolutions."""
    calls: list[tuple[float, Call]] = []
    for channels, side in REFERENCE:
        x = torch.randn(FRAMES, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        calls.append(
            (2e-9 * FRAMES * side**2 * channels**2 * 9, functools.partial(F.conv2d, x, w, padding=1))
        )
    return calls


def measure(racers: list[Racer], mode: str, dtype: str, *, rounds: int) -> float:
    """Time every candidate once a round, the reference after each; returns the reference's GFLOP/s."""
    plain = reference(DTYPES[dtype])
    times: list[list[float]] = [[] for _ in plain]
    with torch.no_grad():
        for _, conv in plain:
            conv()
    for _ in range(rounds):
        for racer in racers:
            racer.turn(mode, dtype)
            with torch.no_grad():
                for (_, conv), row in zip(plain, times, strict=True):
                    row.append(seconds(conv))
        print(f"{racers[0].size} M {mode} {dtype}: a round done", file=sys.stderr, flush=True)
    return max(gflop / median(row) for (gflop, _), row in zip(plain, times, strict=True))


def machine(*, tune_peers: bool) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = " ".join(lines)
    bf16 = next((f for f in ("amx_bf16", "avx512_bf16") if f in flags), "no bf16 arithmetic")
    own = "glibc's own"
    mine = own if os.environ.get("MAV_MALLOC") == "default" else "tuned"
    allocator = f"{mine} for mav, {mine if tune_peers else own} for the peers"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{cpu} ({os.cpu_count()} virtual CPUs, {bf16}), {torch.get_num_threads()} thread, torch {torch.__version__}, "
        f"allocator {allocator} (`MAV_MALLOC`), {today}"
    )


def table(racers: list[Racer], peaks: dict[tuple[int, str, str], float]) -> str:
    columns = list(dict.fromkeys((mode, dtype) for _, mode, dtype in peaks))
    rows = [
        ["network", "params", "GFLOP", *(f"{mode} {dtype}: s, GFLOP/s, share" for mode, dtype in columns)],
        ["---"] * (3 + len(columns)),
    ]
    for size in dict.fromkeys(r.size for r in racers):
        for c in (r for r in racers if r.size == size):
            row = [c.name, f"{c.parameters / 1e6:.1f} M", f"{c.flops['forward'] / 1e9:.0f}"]
            for mode, dtype in columns:
                speed, peak = c.speed(mode, dtype), peaks.get((size, mode, dtype))
                if speed is None or peak is None:
                    row.append("-")
                else:
                    row.append(f"{median(c.times[mode, dtype]):.2f}, {speed:.0f}, {speed / peak:.0%}")
            rows.append(row)
        reference_row = [f"conv reference beside {size} M", "", ""]
        reference_row += [f"{p:.0f}" if (p := peaks.get((size, *column))) else "-" for column in columns]
        rows.append(reference_row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def targets(racers: list[Racer], peaks: dict[tuple[int, str, str], float]) -> str:
    """The acceptance lines that this run measured; `at most` is what a network of nothing but the conv reference would reach."""
    by_name = {(r.name, r.size): r for r in racers}
    rows = ["| what | wanted | measured | met | at most |", "| --- | --- | --- | --- | --- |"]

    def line(what: str, wanted: str, measured: str, met: bool, at_most: str) -> None:
        rows.append(f"| {what} | {wanted} | {measured} | {'yes' if met else '**no**'} | {at_most} |")

    for size, mode, dtype, least in SHARES:
        mine, peak = by_name.get(("mav", size)), peaks.get((size, mode, dtype))
        speed = mine.speed(mode, dtype) if mine else None
        if speed and peak:
            line(
                f"share of the conv reference, {size} M, {mode} {dtype}",
                f"{least:.0%}",
                f"{speed / peak:.1%}",
                speed / peak >= least,
                "100%",
            )
    mine = by_name.get(("mav", 5))
    for peer, mode, dtype, least in RATIOS:
        for theirs in (by_name.get((peer, 5)), by_name.get((peer + WIDE, 5))):
            a = mine.speed(mode, dtype) if mine else None
            b = theirs.speed(mode, dtype) if theirs else None
            peak = peaks.get((5, mode, dtype))
            if a and b and peak and theirs:
                line(
                    f"GFLOP/s over {theirs.name}, {mode} {dtype}",
                    f"{least:.1f}x",
                    f"{a / b:.2f}x",
                    a / b >= least,
                    f"{peak / b:.2f}x",
                )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the U-Net beside its peers, as Markdown on stdout."
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds at 5 M; at 40 M half of them")
    parser.add_argument("--size", type=int, choices=[5, 40], action="append", help="millions of parameters")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append")
    parser.add_argument("--only", action="append", help="only candidates whose name holds this text")
    parser.add_argument("--tune-peers", action="store_true", help="give the peers mav's allocator too")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    racers: list[Racer] = []
    peaks: dict[tuple[int, str, str], float] = {}
    for size in args.size or [5, 40]:
        group = [Racer(build, size, tune=args.tune_peers or build is ours) for build in BUILDERS[size]]
        for racer in group:
            if args.only and not any(text in racer.name for text in args.only):
                racer.stop()
        group = [r for r in group if r.process.is_alive()]
        # Training is measured at the small size only: at the large one a round takes minutes.
        modes = [m for m in args.mode or MODES if size == 5 or m == "forward"]
        for mode in modes:
            for dtype in args.dtype or DTYPES:
                rounds = args.rounds if size == 5 else (args.rounds + 1) // 2
                peaks[size, mode, dtype] = measure(group, mode, dtype, rounds=rounds)
        for racer in group:
            racer.stop()
        racers += group
    print(f"{machine(tune_peers=args.tune_peers)}\n\n{table(racers, peaks)}\n\n{targets(racers, peaks)}")


if __name__ == "__main__":
    main()
