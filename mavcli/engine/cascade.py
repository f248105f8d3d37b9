"""The cascade: y = SR_h . SR_l^t . ↑F . D^t . P (x, C_x(x)) (Make-A-Video, arXiv 2209.14792, equation 1).

Every stage takes and gives frames `b f c h w` in [-1, 1] that lie on the grid of 8 bits: what is shown, kept and handed on
is the same. Networks are loaded when their stage begins and dropped when it ends.

b samples, f frames, c channels, h w pixels, d width of the CLIP space; t is always the diffusion step, never time.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mavcli.data.degrade import upsample
from mavcli.diffusion.guidance import emphatic, guided, rows_per_sample
from mavcli.diffusion.process import add_noise
from mavcli.diffusion.samplers import Project, sample
from mavcli.diffusion.schedule import Schedule
from mavcli.engine.assemble import build_network, load_network
from mavcli.engine.backend import Backend
from mavcli.engine.compose import network_view
from mavcli.engine.cost import network_cost, parameter_count
from mavcli.engine.family import PIECES, Family, Piece
from mavcli.engine.randomness import START, Draw, gaussian, shared_noise, video_noise
from mavcli.engine.windows import Window, gap_windows, halo_windows, key_windows, sliding_windows
from mavcli.engine.words import embed_words
from mavcli.engine.work import Work, content_key
from mavcli.errors import OutOfMemoryError
from mavcli.media.frames import Fit, Frames, resize, to_float, to_uint8
from mavcli.models.clip import ClipReader, pixels_read
from mavcli.models.embeddings import Condition
from mavcli.models.prior import Prior, PriorCondition
from mavcli.models.unet import UNet
from mavcli.recipe.schema import Recipe, SuperResPart
from mavcli.report import Report, Silent
from mavcli.specs import SamplerSpec, ScheduleSpec, UNetSpec

Direction = Literal["forward", "backward", "both"]
Seen = Mapping[int, Tensor]
"""CLIP image embeddings (d,) of frames that come from a source, taken at the source's own resolution. Of frames that are not
in it, what the cascade drew is embedded."""
_NEAR = 0.02
"""Of a frame rate: so much beside what training met is no other motion."""


class Cascade:
    """The pieces of one recipe, on one backend.

    `size` is D's, and `look` CLIP's, in pixels a side. `work` keeps what each stage made; `windows_at_once` is how many windows of ↑F share one network call.
    """

    def __init__(
        self,
        recipe: Recipe,
        family: Family,
        backend: Backend,
        *,
        report: Report | None = None,
        work: Work | None = None,
        windows_at_once: int | None = None,
    ) -> None:
        self.recipe, self.family, self.backend = recipe, family, backend
        self.parts = recipe.cascade
        self.report: Report = report or Silent()
        self.work = work
        self.windows_at_once = windows_at_once or (1 if backend.device.type == "cpu" else 8)
        self.size = self.parts.decoder.network.image_size
        self.look = pixels_read(self.parts.clip.network)
        self.window = self.parts.interp.window
        self.skip = self.parts.interp.frame_skip
        self._clip: ClipReader | None = None
        self._networks: dict[Piece, nn.Module] = {}
        self._piecewise = False
        self._said: set[str] = set()

    # -- whole chains -------------------------------------------------------------------------------------------------

    def text_to_video(
        self, prompts: Sequence[str], draws: Sequence[Draw], *, fps: float, frames: int | None = None
    ) -> Tensor:
        """prompts (b) -> `frames` frames (b, f, 3, h, w) at `fps`; without `frames`, all that 16 key frames give (76)."""
        embedding = self.image_embedding(prompts, draws)
        return self.finish(self.decode(embedding, draws, fps=fps), draws, fps=fps, frames=frames)

    def finish(self, base: Tensor, draws: Sequence[Draw], *, fps: float, frames: int | None = None) -> Tensor:
        """SR_h . SR_l^t . ↑F: key frames (b, k, 3, s, s), `frame_skip` apart -> `frames` large frames at `fps`."""
        frames = frames or self.natural_frames
        return self.enlarge(self.fill_up(base, draws, fps=fps, frames=frames), draws, fps=fps)

    def enlarge(self, video: Tensor, draws: Sequence[Draw], *, fps: float) -> Tensor:
        """SR_h . SR_l^t: (b, f, 3, s, s) -> (b, f, 3, h, w)."""
        return self.sr_h(self.sr_l(video, draws, fps=fps), draws)

    @property
    def natural_frames(self) -> int:
        """16 key frames, 5 apart: 76."""
        return (self.parts.decoder.frames - 1) * self.skip + 1

    @property
    def out_size(self) -> int:
        """Pixels a side of what `enlarge` returns."""
        sizes = [p.size for p in (self.parts.sr_l, self.parts.sr_h) if p.kind != "none"]
        return sizes[-1] if sizes else self.size

    # -- P --------------------------------------------------------------------------------------------------------------

    def image_embedding(self, prompts: Sequence[str], draws: Sequence[Draw]) -> Tensor:
        """P: prompts (b) -> CLIP image embeddings (b, d), of unit norm where CLIP's spec says so.

        Of `prior.samples` draws the one nearest to the text embedding is kept (unCLIP, section 2.2).
        """
        part = self.parts.prior
        settings = {"prompts": list(prompts), "prior": part.model_dump(mode="json")}
        cost = self.cost_of_prior(len(prompts))
        return self._kept(
            "prior", ("prior", "clip"), cost, settings, draws, lambda: self._prior(prompts, draws)
        )

    def _prior(self, prompts: Sequence[str], draws: Sequence[Draw]) -> Tensor:
        part = self.parts.prior
        with self._autocast():
            prior = self._load("prior")
            assert isinstance(prior, Prior)

            def noise(step: int) -> Tensor:
                rows = [
                    gaussian((part.network.clip_dim,), draw, stage="prior", frame=i, step=step)
                    for draw in draws
                    for i in range(part.samples)
                ]
                return torch.stack(rows).to(self.backend.device)

            def sampled(condition: PriorCondition) -> Tensor:
                return self._sample(
                    prior, condition, noise, sampler=part.sampler, schedule=part.schedule, channel_dim=1
                )

            return embed_words(prior, self.clip(), prompts, samples=part.samples, sampled=sampled).cpu()

    def embed_pictures(self, pictures: Frames, *, fit: Fit) -> Tensor:
        """C_y of pictures (n, h, w, 3) uint8 of any size, brought to what CLIP reads by `fit`: (n, d), on the CPU."""
        return self.embed_frames(to_float(network_view(pictures, self.look, fit)))

    def embed_frames(self, frames: Tensor) -> Tensor:
        """C_y: pictures (n, 3, h, w) in [-1, 1] -> CLIP image embeddings (n, d), on the CPU."""
        with torch.inference_mode(), self._autocast():
            parts = [self.clip().encode_image(x.to(self.backend.device)).cpu() for x in frames.split(64)]
        return torch.cat(parts)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """C_x: texts (n) -> CLIP text embeddings (n, d), on the CPU."""
        with torch.inference_mode(), self._autocast():
            return self.clip().encode_text(list(texts)).embedding.cpu()

    # -- D^t ------------------------------------------------------------------------------------------------------------

    def decode(
        self, embedding: Tensor, draws: Sequence[Draw], *, fps: float, frames: int | None = None
    ) -> Tensor:
        """D^t: CLIP image embeddings (b, d) -> 16 key frames (b, 16, 3, 64, 64) of a video at `fps`.

        The key frames are `frame_skip` apart, so D^t is told `fps` / `frame_skip`. With `frames` 1 it is D: a picture,
        past all temporal layers.
        """
        part = self.parts.decoder
        frames = frames or part.frames
        rate = self._told_fps("decoder_t", fps / self.skip) if frames > 1 else 0.0
        settings = {"embedding": embedding, "fps": rate, "decoder": part.model_dump(mode="json")}
        settings |= {} if frames == part.frames else {"frames": frames}

        def run() -> Tensor:
            network = self._unet("decoder_t")
            network.cross_frame = part.coherence == "cross-frame"
            shape = (3, self.size, self.size)
            rows = [(draw, range(frames)) for draw in draws]
            # An ↑F that knows no frame is D^t.
            nothing = torch.zeros(len(draws), frames, 4, *shape[1:]) if network.spec.mask_channels else None

            def noise(step: int) -> Tensor:
                if part.coherence == "shared-noise":
                    one = shared_noise(shape, draws, stage="decoder_t", step=step)
                    return self._on_device(one.expand(-1, frames, -1, -1, -1))
                return self._on_device(video_noise(shape, rows, stage="decoder_t", step=step))

            return self._sample(
                network,
                self._condition(network.spec, embedding=embedding, fps=rate, masked=nothing),
                noise,
                sampler=part.sampler,
                schedule=part.schedule,
            )

        spec = self.family.parts["decoder_t"].spec
        reads: tuple[Piece, ...] = ("clip",) if isinstance(spec, UNetSpec) and spec.text == "clip" else ()
        cost = self.cost_of_decoder(len(draws), frames=frames)
        return self._kept("decoder_t", ("decoder_t", *reads), cost, settings, draws, run)

    # -- ↑F -------------------------------------------------------------------------------------------------------------

    def fill_up(
        self, base: Tensor, draws: Sequence[Draw], *, fps: float, frames: int, seen: Seen | None = None
    ) -> Tensor:
        """↑F: key frames (b, k, 3, s, s), `frame_skip` apart -> exactly `frames` frames at `fps`.

        More than the keys span: the row of key frames is first extended by sliding windows. Fewer: the rest is cut. `seen` is of
        key frames, by their place in `base`.
        """
        keys = -(-(frames - 1) // self.skip) + 1
        if keys > base.shape[1]:
            base = self.extrapolate(base, draws, frames=keys - base.shape[1], fps=fps / self.skip, seen=seen)
        if keys < 2:
            return base[:, :frames]
        if (text := self.family.untrained_skip(self.recipe, self.skip)) is not None:
            self.report.warning(text)
        return self.interpolate(base[:, :keys], draws, skip=self.skip, fps=fps, seen=seen)[:, :frames]

    def interpolate(
        self, keys: Tensor, draws: Sequence[Draw], *, skip: int, fps: float, seen: Seen | None = None
    ) -> Tensor:
        """↑F: k known frames (b, k, 3, s, s) -> (b, (k - 1) skip + 1, 3, s, s) at `fps`; the known ones bit for bit.

        `skip` is at most the window less one. Each window is told the CLIP embedding of its first frame, as in training;
        `seen` is of the keys, by their place among them.
        """
        if skip == 1:
            return keys
        total = (keys.shape[1] - 1) * skip + 1
        video = keys.new_zeros(len(keys), total, *keys.shape[2:])
        video[:, ::skip] = keys
        placed = {place * skip: embedding for place, embedding in (seen or {}).items()}
        return self.fill_gaps(video, range(0, total, skip), draws, fps=fps, seen=placed)

    def fill_gaps(
        self,
        video: Tensor,
        known: Sequence[int],
        draws: Sequence[Draw],
        *,
        fps: float,
        first: int = 0,
        seen: Seen | None = None,
    ) -> Tensor:
        """↑F: (b, f, 3, s, s) at `fps` of which the frames `known`, 0 and the last among them, are given -> all f.

        `first` is the number of frame 0 in a longer video that is filled piece by piece: noise belongs to a frame's number. `seen`
        is of frames of `video`, by their place in it; those of `gap_starts` are asked for.
        """
        windows = gap_windows(known, length=self.window)
        rate = self._told_fps("interp", fps)
        sampler = self.parts.interp.sampler
        numbers = list(known)
        given = video[:, numbers]
        settings = {"keys": given, "known": numbers, "fps": rate, "interp": self._interp_settings(sampler)}
        settings |= {"first": first} if first else {}
        starts = dict.fromkeys(window.start for window in windows)
        asked = {first + place: seen[place] for place in starts if seen and place in seen}
        settings |= {"seen": asked} if asked else {}

        def run() -> Tensor:
            filled = video.clone()
            mask = torch.zeros(video.shape[1], dtype=torch.bool)
            mask[numbers] = True
            self._fill_windows(filled, mask, windows, draws, rate, first, asked)
            filled[:, numbers] = given
            return filled

        cost = self.cost_of_windows(len(windows) * len(draws))
        return self._kept("interp", ("interp", "clip"), cost, settings, draws, run)

    def animate(
        self, image: Tensor, draws: Sequence[Draw], *, fps: float, seen: Seen | None = None
    ) -> Tensor:
        """↑F with frame 0 known and the rest masked: (b, 3, s, s) -> key frames (b, 16, 3, s, s) of a video at `fps`."""
        return self.extrapolate(image[:, None], draws, frames=self.window - 1, fps=fps / self.skip, seen=seen)

    def extrapolate(
        self,
        video: Tensor,
        draws: Sequence[Draw],
        *,
        frames: int,
        fps: float,
        direction: Direction = "forward",
        seen: Seen | None = None,
    ) -> Tensor:
        """↑F in sliding windows: (b, f, 3, s, s) at `fps` with `frames` more frames, the given ones bit for bit.

        Half of each window is known. `both` adds half of `frames` before and the rest after. `seen` is of frames of `video`, by
        their place in it.
        """
        before = {"forward": 0, "backward": frames, "both": frames // 2}[direction]
        after = frames - before
        rate = self._told_fps("interp", fps)
        slides = [
            (sign, given, made)
            for sign, count in ((1, after), (-1, before))
            for given, made in sliding_windows(video.shape[1], count, length=self.window)
        ]
        context = max(self.window // 2, 1)
        sampler = self._extend_sampler
        settings = {
            "video": video[:, -context:] if before == 0 else video[:, :context] if after == 0 else video,
            "frames": [before, after],
            "length": video.shape[1],
            "fps": rate,
            "interp": self._interp_settings(sampler),
            **({"seen": dict(seen)} if seen else {}),
        }

        def run() -> Tensor:
            grown, first = video, 0  # `first`: number of the first frame, negative before the given ones
            network = self._unet("interp")
            for sign, given, made in slides:
                hidden = video.new_zeros(len(video), self.window - given, *video.shape[2:])
                if sign > 0:
                    start = first + grown.shape[1] - given
                    window = torch.cat([grown[:, -given:], hidden], dim=1)
                else:
                    start = first + given - self.window
                    window = torch.cat([hidden, grown[:, :given]], dim=1)
                known = torch.arange(self.window) < given
                known = known if sign > 0 else known.flip(0)
                numbers = range(start, start + self.window)
                rows = [(d, numbers) for d in draws]
                out = self._fill(
                    network, window, known, rows, rate, sampler, stage="extrapolate", seen=seen or {}
                )
                if sign > 0:
                    grown = torch.cat([grown, out[:, given : given + made]], dim=1)
                else:
                    end = self.window - given
                    grown = torch.cat([out[:, end - made : end], grown], dim=1)
                    first -= made
            return torch.cat([grown[:, :before], grown[:, grown.shape[1] - after :]], dim=1)

        cost = self.cost_of_slides(len(slides) * len(draws))
        made = self._kept("extrapolate", ("interp", "clip"), cost, settings, draws, run)
        return torch.cat([made[:, :before], video, made[:, before:]], dim=1)

    def _fill_windows(
        self,
        video: Tensor,
        known: Tensor,
        windows: list[Window],
        draws: Sequence[Draw],
        fps: float,
        first: int,
        seen: Seen,
    ) -> None:
        """Write every window's own frames into `video`; windows are independent and share network calls."""
        network = self._unet("interp")
        jobs = [(row, window) for row in range(len(draws)) for window in windows]
        beyond = max(0, max(w.stop for w in windows) - video.shape[1])
        padded = F.pad(
            video, (0, 0, 0, 0, 0, 0, 0, beyond)
        )  # frames past the last key: seen as unknown, never taken
        mask = F.pad(known, (0, beyond))

        def run(at_once: int) -> None:
            while jobs:
                batch = jobs[:at_once]
                clips = torch.stack([padded[row, w.start : w.stop] for row, w in batch])
                masks = torch.stack([mask[w.start : w.stop] for _, w in batch])
                rows = [(draws[row], range(first + w.start, first + w.stop)) for row, w in batch]
                sampler = self.parts.interp.sampler
                out = self._fill(network, clips, masks, rows, fps, sampler, stage="interp", seen=seen)
                for (row, w), frames in zip(batch, out, strict=True):
                    video[row, w.first : w.last] = frames[w.first - w.start : w.last - w.start]
                del jobs[:at_once]

        self._shrinking(run, min(self.windows_at_once, len(jobs)), what="windows of ↑F")

    def _fill(
        self,
        network: UNet,
        clips: Tensor,
        known: Tensor,
        rows: Sequence[tuple[Draw, Sequence[int]]],
        fps: float,
        sampler: SamplerSpec,
        *,
        stage: Literal["interp", "extrapolate"],
        seen: Seen,
    ) -> Tensor:
        """One call of ↑F: clips (n, w, 3, s, s) with `known` (w,) or (n, w) -> the same with the rest drawn.

        `stage` names the noise: key frames that extend a clip and the frames between keys have numbers of their own, and so
        noises of their own. `seen` is by the numbers of `rows`.
        """
        known = known.expand(len(clips), -1)
        # as in training: the first frame, and where that is hidden the first that is not
        first = known.float().argmax(dim=1).tolist()
        own = [seen.get(numbers[at]) for (_, numbers), at in zip(rows, first, strict=True)]
        drawn = [clip[at] for clip, at, found in zip(clips, first, own, strict=True) if found is None]
        made = iter(self.embed_frames(torch.stack(drawn)) if drawn else ())
        embedding = torch.stack([next(made) if found is None else found for found in own])
        mask = known[:, :, None, None, None].to(clips.dtype)
        masked = torch.cat([clips * mask, mask.expand(*clips.shape[:2], 1, *clips.shape[3:])], dim=2)
        truth, given = self._on_device(clips), self._on_device(known)[:, :, None, None, None]
        shape = tuple(clips.shape[2:])
        return self._sample(
            network,
            self._condition(network.spec, embedding=embedding, fps=fps, masked=masked),
            lambda step: self._on_device(video_noise(shape, rows, stage=stage, step=step)),
            sampler=sampler,
            schedule=self.recipe.interp_schedule(),
            project=lambda x0, step: torch.where(given, truth, x0),
        )

    @property
    def _extend_sampler(self) -> SamplerSpec:
        return self.parts.interp.extend_sampler or self.parts.interp.sampler

    def _interp_settings(self, sampler: SamplerSpec) -> dict[str, Any]:
        """What the frames depend on, with the one sampler that draws them."""
        others = self.parts.interp.model_dump(mode="json", exclude={"extend_sampler"})
        own = {"schedule": self.recipe.interp_schedule(), "sampler": sampler}
        return others | {key: spec.model_dump(mode="json") for key, spec in own.items()}

    # -- SR_l^t and SR_h --------------------------------------------------------------------------------------------------

    def sr_l(self, video: Tensor, draws: Sequence[Draw], *, fps: float, first: int = 0) -> Tensor:
        """SR_l^t: (b, f, 3, s, s) -> (b, f, 3, size, size), over space and time.

        With the weights of the image network SR_l it goes frame by frame, with one noise for all frames. `first` is the number
        of the first frame in a longer video that is enlarged piece by piece.
        """
        return self._super("sr_l", self.parts.sr_l, video, draws, fps, first)

    def sr_h(self, video: Tensor, draws: Sequence[Draw]) -> Tensor:
        """SR_h: (b, f, 3, h, h) -> (b, f, 3, size, size), frame by frame with ONE noise for all frames (section 3.2)."""
        return self._super("sr_h", self.parts.sr_h, video, draws, None, 0)

    def _super(
        self,
        piece: Piece,
        part: SuperResPart,
        video: Tensor,
        draws: Sequence[Draw],
        fps: float | None,
        first: int,
    ) -> Tensor:
        if part.kind == "none":
            self._say_once(f"{PIECES[piece]} is left out (`cascade.{piece}.kind: none`)")
            return video
        if part.kind == "lanczos":
            self._say_once(
                f"{PIECES[piece]} only resamples to {part.size} px (`cascade.{piece}.kind: lanczos`)"
            )
            return _on_grid(resize(video, part.size, kernel="lanczos"))
        spec = self.family.parts[piece].spec
        assert isinstance(spec, UNetSpec)
        rate = self._told_fps("sr_l", fps) if spec.fps and fps is not None else None
        settings = {"video": video, "fps": rate, piece: part.model_dump(mode="json")}
        settings |= {"first": first} if first and spec.temporal != "none" else {}

        cost = self.cost_of_super(piece, video.shape[1]) * len(video)
        pieces: tuple[Piece, ...] = (piece, "sr_l_last") if piece == "sr_l" and part.last_step else (piece,)
        return self._kept(
            piece,
            pieces,
            cost,
            settings,
            draws,
            lambda: self._enlarge(piece, part, video, draws, rate, first),
        )

    def _enlarge(
        self,
        piece: Piece,
        part: SuperResPart,
        video: Tensor,
        draws: Sequence[Draw],
        fps: float | None,
        number: int,
    ) -> Tensor:
        network = self._unet(piece)
        last = self._unet("sr_l_last") if piece == "sr_l" and part.last_step else None
        together = network.spec.temporal != "none" and video.shape[1] > 1
        schedule = Schedule.from_spec(part.schedule)
        level = int(part.noise_level * part.schedule.timesteps)
        shape, small = (3, part.size, part.size), tuple(video.shape[2:])
        out = video.new_empty(*video.shape[:2], *shape)

        def run(chunk: int, row: int, first: int, stop: int) -> None:
            """Frames `first` to `stop` of one sample: all of them where the network looks along time."""
            draw = [draws[row]]

            def noise(step: int, size: tuple[int, ...], stage: str) -> Tensor:
                if together:
                    numbers = range(number + first, number + stop)
                    return video_noise(size, [(draws[row], numbers)], stage=stage, step=step)
                return shared_noise(size, draw, stage=stage, step=step).expand(1, stop - first, *size)

            low = video[row : row + 1, first:stop]
            if level:
                t = torch.tensor([level])
                low = add_noise(schedule, low, t=t, noise=noise(START, small, f"{piece} low-res"))
            condition = Condition(
                low_res=upsample(self._on_device(low), part.size, how=part.enlarge),
                noise_level=self._on_device(torch.full((1,), level)) if network.spec.noise_level else None,
                fps=self._on_device(torch.tensor([fps])) if network.spec.fps and together and fps else None,
            )
            x0 = self._sample(
                network,
                condition,
                lambda step: self._on_device(noise(step, shape, piece)),
                sampler=part.sampler,
                schedule=part.schedule,
                windows=halo_windows(stop - first, length=chunk) if together else None,
                last=last,
            )
            out[row, first:stop] = x0[0]

        def whole(row: int, chunk: int) -> None:
            run(chunk, row, 0, video.shape[1])

        def rest(row: int, chunk: int) -> None:
            while done[row] < video.shape[1]:
                stop = min(done[row] + chunk, video.shape[1])
                run(chunk, row, done[row], stop)
                done[row] = stop

        done = [0] * len(video)
        for row in range(len(video)):
            self._shrinking(
                partial(whole if together else rest, row), part.chunk, what=f"frames of {PIECES[piece]}"
            )
        return out

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.report.message(text)

    # -- what all stages share ----------------------------------------------------------------------------------------

    def _sample(
        self,
        first: nn.Module,
        condition: Any,
        noise: Callable[[int], Tensor],
        *,
        sampler: SamplerSpec,
        schedule: ScheduleSpec,
        channel_dim: int = 2,
        project: Project | None = None,
        windows: Sequence[Window] | None = None,
        last: nn.Module | None = None,
    ) -> Tensor:
        """x0 from noise by `sampler`; a video's is put on the grid of 8 bits and on the CPU.

        With `windows` (of frames) the network sees one at a time, at every step: all frames walk the same way together.
        `last` is the network of the last step, where that is another one; it is told of no frame rate.
        """
        table = Schedule.from_spec(schedule)
        unit = self._unit
        final = table.visited(sampler)[0] if last is not None else None

        def call(x: Tensor, t: Tensor, told: Any) -> Tensor:
            ends = last is not None and int(t[0]) == final
            network = last if ends and last is not None else first
            told = dataclasses.replace(told, fps=None, noise_level=None) if ends else told
            with self._autocast():
                if windows is None:
                    out: Tensor = network(x, t, told).float()
                    self.report.advance(unit * len(x) * (x.shape[1] if channel_dim == 2 else 1))
                    return out
                parts = []
                for window in windows:
                    seen = slice(window.start, window.stop)
                    y = network(x[:, seen], t, _frames_of(told, seen)).float()
                    parts.append(y[:, window.first - window.start : window.last - window.start])
                    self.report.advance(unit * len(x) * window.length)
                return torch.cat(parts, dim=1)

        with torch.inference_mode():
            denoise = guided(
                emphatic(call, sampler, timesteps=schedule.timesteps),
                condition,
                sampler,
                schedule=table,
                channel_dim=channel_dim,
            )
            x0 = sample(sampler, denoise, x_T=noise(START), schedule=table, noise=noise, project=project)
        return _on_grid(x0) if channel_dim == 2 else x0

    def _condition(
        self, spec: UNetSpec, *, embedding: Tensor, fps: float, masked: Tensor | None = None
    ) -> Condition:
        rows = len(embedding)
        return Condition(
            image_embedding=self._on_device(embedding) if spec.clip_dim is not None else None,
            fps=self._on_device(torch.full((rows,), fps)) if spec.fps and fps else None,
            masked_video=None if masked is None else self._on_device(masked),
            **self._no_text(spec, rows),
        )

    def _no_text(self, spec: UNetSpec, rows: int) -> dict[str, Tensor]:
        if spec.text == "none":
            return {}
        with torch.inference_mode(), self._autocast():
            return self.clip().no_text(spec, rows)

    def _kept(
        self,
        stage: str,
        pieces: tuple[Piece, ...],
        cost: float,
        settings: Mapping[str, Any],
        draws: Sequence[Draw],
        make: Callable[[], Tensor],
    ) -> Tensor:
        """What `make` returns, or returned in an earlier run with the same settings, weights, input, seed and arithmetic.

        The first of `pieces` is at work, the others help it.
        """
        if self.work is None or any(self.family.parts[piece].path is None for piece in pieces):
            with self._stage(pieces[0], cost):
                return make()
        key = content_key(
            {
                "stage": stage,
                "settings": dict(settings),
                "networks": {piece: self.family.parts[piece].facts() for piece in pieces},
                "draws": [dataclasses.astuple(draw) for draw in draws],
                "windows at once": self.windows_at_once,
                "arithmetic": self.backend.facts(),
            }
        )
        found = self.work.get(key)
        if found is not None:
            self.report.stage(PIECES[pieces[0]], cost)
            self.report.skip(cost)
            self.report.message(f"{PIECES[pieces[0]]}: reused from an earlier run")
            return _unpacked(found)
        with self._stage(pieces[0], cost):
            made = make()
        self.work.put(key, _packed(made))
        return made

    @contextmanager
    def _stage(self, piece: Piece, cost: float) -> Iterator[None]:
        """One piece at work: its name on the bar, its network freed afterwards."""
        self.report.stage(PIECES[piece], cost)
        self._unit = self._cost_per_frame(piece)
        try:
            yield
        finally:
            if not self._piecewise:
                self._drop_networks()

    @contextmanager
    def piecewise(self) -> Iterator[None]:
        """One stage that a long video passes piece by piece: its network stays loaded, and no piece is kept for a later run."""
        before = self.work, self._piecewise
        self.work, self._piecewise = None, True
        try:
            yield
        finally:
            self.work, self._piecewise = before
            self._drop_networks()

    def _drop_networks(self) -> None:
        self._networks.clear()  # nothing refers to itself in them, unless compiled
        if self.backend.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def clip(self) -> ClipReader:
        """C_x and C_y; small beside the rest, and kept."""
        if self._clip is None:
            network = self._load("clip")
            assert isinstance(network, ClipReader)
            self._clip = network
        return self._clip

    def _unet(self, piece: Piece) -> UNet:
        if piece not in self._networks:
            self._networks[piece] = self._load(piece)
        network = self._networks[piece]
        assert isinstance(network, UNet)
        return network

    def _load(self, piece: Piece) -> nn.Module:
        part = self.family.parts[piece]
        if part.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = build_network(part.spec).eval().requires_grad_(False)
        else:
            # a file that changed since its header was read would put other frames under that header's name
            network = load_network(part.spec, part.path, role=part.role, sha256=part.sha256)
        if isinstance(network, UNet):
            return network.to(self.backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.backend.device)

    def _shrinking(self, run: Callable[[int], None], at_once: int, *, what: str) -> None:
        """`run(n)` with as many at once as memory takes: halved each time that it runs out."""
        while True:
            try:
                return run(at_once)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                if at_once == 1:
                    raise OutOfMemoryError(
                        f"out of memory with 1 of the {what} at once",
                        hint="fewer --frames, a smaller recipe (`mav recipe ls`), or another --backend",
                    ) from error
            at_once = max(1, at_once // 2)
            gc.collect()
            if self.backend.device.type == "cuda":
                torch.cuda.empty_cache()
            self.report.warning(f"out of memory: {at_once} {what} at once from here on")

    def _told_fps(self, piece: Piece, fps: float) -> float:
        """The frame rate that the network of `piece` is told: of those that its stage trains on, the nearest."""
        role = self.family.parts[piece].role  # one file may serve two pieces: ↑F that knows no frame is D^t
        videos = {"decoder": "decoder_t", "sr_l": "sr_lt"}
        curriculum = self.recipe.stage(videos.get(role, role)).fps
        told = min(max(fps, curriculum.low), curriculum.high)
        if told != fps:
            self.report.warning(
                f"{PIECES[piece]} knows {curriculum.low:g} to {curriculum.high:g} fps, {fps:g} fps were asked for: "
                f"it moves as at {told:g}"
            )
        met = self.family.parts[piece].met
        if met is not None and not met.fps[0] * (1 - _NEAR) <= told <= met.fps[1] * (1 + _NEAR):
            low, high = met.fps
            self.report.warning(
                f"{PIECES[piece]} is told {told:.3g} fps; training met {low:.3g} to {high:.3g}: "
                "how things move at that rate it never saw"
            )
        return told

    def _autocast(self) -> Any:
        return self.backend.autocast()

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.backend.device)

    # -- cost, for one honest bar -------------------------------------------------------------------------------------

    def _cost_per_frame(self, piece: Piece) -> float:
        """Multiplications of one network call for one frame (one row, for the prior)."""
        spec = self.family.parts[piece].spec
        if isinstance(spec, UNetSpec):
            size = {"sr_l": self.parts.sr_l.size, "sr_h": self.parts.sr_h.size}.get(piece, self.size)
            return network_cost(spec, size)
        return parameter_count(spec)

    def cost_of_prior(self, prompts: int) -> float:
        part = self.parts.prior
        return self._cost_per_frame("prior") * prompts * part.samples * _rows(part.sampler, part.schedule)

    def cost_of_decoder(self, samples: int, *, frames: int | None = None) -> float:
        part = self.parts.decoder
        each = self._cost_per_frame("decoder_t") * _rows(part.sampler, part.schedule)
        return each * samples * (frames or part.frames)

    def cost_of_windows(self, windows: int) -> float:
        """`windows` of ↑F between known frames."""
        return self._cost_of_interp(windows, self.parts.interp.sampler)

    def cost_of_slides(self, windows: int) -> float:
        """`windows` of ↑F beyond known frames."""
        return self._cost_of_interp(windows, self._extend_sampler)

    def _cost_of_interp(self, windows: int, sampler: SamplerSpec) -> float:
        rows = _rows(sampler, self.recipe.interp_schedule())
        return self._cost_per_frame("interp") * windows * self.window * rows

    def cost_of_super(self, piece: Piece, frames: int) -> float:
        part: SuperResPart = getattr(self.parts, piece)
        if part.kind != "network":
            return 0.0
        spec = self.family.parts[piece].spec
        assert isinstance(spec, UNetSpec)
        if spec.temporal != "none":
            frames = sum(w.length for w in halo_windows(frames, length=part.chunk))
        return self._cost_per_frame(piece) * frames * _rows(part.sampler, part.schedule)

    def cost_of_fill_up(self, keys: int, frames: int) -> float:
        """`fill_up` from `keys` key frames."""
        wanted = -(-(frames - 1) // self.skip) + 1
        slides = sliding_windows(keys, max(0, wanted - keys), length=self.window)
        windows = (
            key_windows(wanted, skip=self.skip, length=self.window) if wanted > 1 and self.skip > 1 else []
        )
        return self.cost_of_slides(len(slides)) + self.cost_of_windows(len(windows))

    def cost_of_enlarge(self, frames: int) -> float:
        return self.cost_of_super("sr_l", frames) + self.cost_of_super("sr_h", frames)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Unit vectors (..., d) on the great circle from a (share 0) to b (share 1); unCLIP, section 3.2."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (a * b).sum(-1, keepdim=True).clamp(-1, 1).arccos()
    if bool((angle.sin().abs() < 1e-6).any()):
        return F.normalize(torch.lerp(a, b, share), dim=-1)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _rows(sampler: SamplerSpec, schedule: ScheduleSpec) -> int:
    return rows_per_sample(sampler, Schedule.from_spec(schedule))


def _on_grid(x: Tensor) -> Tensor:
    """Frames (b, f, 3, h, w) rounded to 8 bits, as float32 on the CPU."""
    return _unpacked(_packed(x))


def _packed(x: Tensor) -> Tensor:
    """Frames (b, f, 3, h, w) as uint8 (b, f, h, w, 3); anything else as it is."""
    if x.ndim != 5:
        return x
    pixels = torch.from_numpy(to_uint8(rearrange(x, "b f c h w -> (b f) c h w")))
    return rearrange(pixels, "(b f) h w c -> b f h w c", b=len(x))


def _unpacked(x: Tensor) -> Tensor:
    if x.dtype != torch.uint8:
        return x
    return rearrange(to_float(rearrange(x, "b f h w c -> (b f) h w c")), "(b f) c h w -> b f c h w", b=len(x))


def _frames_of(condition: Condition, seen: slice) -> Condition:
    """`condition` for some of the frames."""
    return dataclasses.replace(
        condition,
        low_res=None if condition.low_res is None else condition.low_res[:, seen],
        masked_video=None if condition.masked_video is None else condition.masked_video[:, seen],
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
