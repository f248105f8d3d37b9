"""What a recipe may say: the whole vocabulary of a YAML file, torch-free (design, section 5)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mavcli.specs import ClipSpec, PriorSpec, SamplerSpec, ScheduleSpec, Side, Spec, SpecError, UNetSpec

STAGES = ("clip", "prior", "decoder", "sr_l", "sr_h", "decoder_t", "interp", "sr_lt")


Processes = Annotated[int, Field(ge=1, le=65_536)]
Frames = Annotated[int, Field(ge=2, le=4096)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0.01, le=1000)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Every = Annotated[int, Field(ge=1, le=10**9)]


class Hardware(Spec):
    """Where it runs; `auto` is decided in `recipe/resolve.py`, with its reason."""

    backend: Literal["auto", "cuda", "multi-gpu", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the networks' arithmetic")
    threads: Processes | Literal["auto"] = Field("auto", description="CPU threads of a process")
    processes: Processes | Literal["auto"] = Field(
        "auto", description="of a training: auto is one for each GPU, and one on the CPU"
    )


class Weights(Spec):
    """Where the family's weights are: `NAME` is a folder of the package's `weights/`, anything else a path.

    A folder holds `STAGE.safetensors` (or shards). A single stage can be taken from elsewhere, or from the file
    of another stage (`decoder_t: interp`). A relative path is relative to the recipe file.
    """

    dir: str = Field("pocket", description="folder of the family")
    clip: str | None = None
    prior: str | None = None
    decoder: str | None = None
    decoder_t: str | None = None
    interp: str | None = None
    sr_l: str | None = None
    sr_lt: str | None = None
    sr_l_last: str | None = Field(None, description="only where `cascade.sr_l.last_step` is set")
    sr_h: str | None = None


class ClipPart(Spec):
    network: ClipSpec = ClipSpec()


class PriorPart(Spec):
    """P. `samples` are drawn and the one nearest to the text embedding is kept (unCLIP, section 2.2)."""

    network: PriorSpec = PriorSpec()
    schedule: ScheduleSpec = ScheduleSpec(prediction="x0")
    sampler: SamplerSpec = SamplerSpec(name="ddpm", steps=64, guidance_scale=4.0, clip_x0=None)
    samples: int = Field(2, ge=1, le=1000)

    @model_validator(mode="after")
    def _can_be_run(self) -> PriorPart:
        self.sampler.refuse_beyond(self.schedule)
        return self


class DecoderPart(Spec):
    """D and D^t: one network; D is the same without temporal layers."""

    network: UNetSpec = UNetSpec()
    frames: Frames = 16
    schedule: ScheduleSpec = ScheduleSpec()
    sampler: SamplerSpec = SamplerSpec()
    coherence: Literal["none", "shared-noise", "cross-frame"] = Field(
        "none",
        description="without training: one noise for all frames, or every frame's attention reads the first frame too",
    )

    @model_validator(mode="after")
    def _can_be_run(self) -> DecoderPart:
        self.sampler.refuse_beyond(self.schedule)
        side, multiple = self.network.image_size, self.network.multiple
        if side % multiple:
            raise SpecError(
                "network.image_size",
                f"`{side}` must be a multiple of {multiple}, as the network's levels want",
            )
        return self


class InterpPart(Spec):
    """↑F. The network is the decoder's with 4 mask channels; a null network says just that."""

    network: UNetSpec | None = None
    frame_skip: int = Field(
        5, ge=1, le=64, description="known frames are this many frames apart: 16 -> 15 * 5 + 1 = 76"
    )
    window: Frames = Field(16, description="frames the network sees at once")
    schedule: ScheduleSpec | None = Field(None, description="null for the decoder's")
    sampler: SamplerSpec = SamplerSpec()
    extend_sampler: SamplerSpec | None = Field(
        None,
        description="where frames beyond the known ones are drawn (animate, extrapolate); null for `sampler`",
    )

    @model_validator(mode="after")
    def _sees_two_known_frames(self) -> InterpPart:
        if self.frame_skip >= self.window:
            raise SpecError("frame_skip", f"`{self.frame_skip}` must be less than `window`, {self.window}")
        return self


class SuperResPart(Spec):
    """SR_l^t or SR_h. `kind: lanczos` resamples instead of a network, and the user is told."""

    kind: Literal["network", "lanczos", "none"] = "network"
    size: Side = Field(256, description="pixels a side of the result")
    network: UNetSpec = UNetSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    sampler: SamplerSpec = SamplerSpec()
    noise_level: float = Field(
        0.0, ge=0, le=1, description="augmentation of the low-res picture at sampling, share of T"
    )
    chunk: int = Field(16, ge=1, le=4096, description="frames that go through the network at once")
    last_step: bool = Field(
        False, description="the sampler's last step is a network of its own, the weights `sr_l_last` (Karlo)"
    )
    enlarge: Literal["bicubic", "bicubic-antialias", "bilinear"] = Field(
        "bicubic",
        description="how the low-res picture is brought to size: Karlo's is the second, ADM's the third",
    )

    @model_validator(mode="after")
    def _can_be_run(self) -> SuperResPart:
        self.sampler.refuse_beyond(self.schedule)
        if self.kind == "network" and self.size % self.network.multiple:
            raise SpecError(
                "size",
                f"`{self.size}` must be a multiple of {self.network.multiple}, as the network's levels want",
            )
        return self


class Cascade(Spec):
    """SR_h . SR_l^t . ↑F . D^t . P (Make-A-Video, equation 1)."""

    clip: ClipPart = ClipPart()
    prior: PriorPart = PriorPart()
    decoder: DecoderPart = DecoderPart()
    interp: InterpPart = InterpPart()
    sr_l: SuperResPart = SuperResPart(size=256)
    sr_h: SuperResPart = SuperResPart(size=768)

    @model_validator(mode="after")
    def _scales_embeddings_where_one_is_read(self) -> Cascade:
        interp = self.interp_network()
        for at, sampler in (("sampler", self.interp.sampler), ("extend_sampler", self.interp.extend_sampler)):
            if sampler is not None:
                sampler.refuse_beyond(self.interp.schedule or self.decoder.schedule, at=f"interp.{at}")
        samplers = {
            "prior.sampler": (self.prior.sampler, None),
            "decoder.sampler": (self.decoder.sampler, self.decoder.network),
            "interp.sampler": (self.interp.sampler, interp),
            "interp.extend_sampler": (self.interp.extend_sampler, interp),
            "sr_l.sampler": (self.sr_l.sampler, None),
            "sr_h.sampler": (self.sr_h.sampler, None),
        }
        for name, (sampler, network) in samplers.items():
            reads = network is not None and network.clip_dim is not None
            if sampler is not None and sampler.embedding_scale != 1 and not reads:
                raise ValueError(
                    f"`cascade.{name}.embedding_scale` must be 1: that network is told no CLIP embedding to draw from"
                )
        return self

    def interp_network(self) -> UNetSpec:
        """↑F's network: the recipe's, or the decoder's widened by 4 mask channels."""
        return self.interp.network or self.decoder.network.model_copy(update={"mask_channels": 4})


class Output(Spec):
    dir: str = Field("outputs", description="where results go without -o, relative to the working folder")
    fps: float = Field(24.0, ge=0.1, le=240)
    codec: Literal["h264", "ffv1"] = "h264"
    crf: int = Field(16, ge=0, le=51)
    sheet: bool = Field(True, description="a contact sheet beside the video")

    @model_validator(mode="after")
    def _can_be_shown(self) -> Output:
        # x264's lossless mode is outside the High profile, and most players show nothing
        if self.codec == "h264" and self.crf < 1:
            raise SpecError("crf", "must be 1 to 51 with `codec: h264`; `codec: ffv1` is lossless")
        return self


class Folder(Spec):
    """One of several folders that a kind of training data is drawn from."""

    folder: str = Field(
        min_length=1, description="a folder, tar shards, or a URL of them, as `train.data` has it"
    )
    weight: float = Field(
        1.0, ge=1e-6, le=1e6, description="how often it is drawn from, beside the others of its list"
    )


class Data(Spec):
    """Where training data comes from. `world` is the rendered pocket world; the others are folders (relative to the
    recipe), tar shards (`shards/{000..099}.tar`), URLs of shards (`s3://`, `https://`, `hf://`), or lists of such with
    weights: `video: [{folder: own, weight: 1}, {folder: plain, weight: 9}]`."""

    world: bool | Annotated[float, Field(ge=0, le=1)] = Field(
        False,
        description="the share of samples that are rendered, the folders give the rest; `true` is all, whatever folders are named. "
        "A stage for whose kind of data no folder is named has the world alone",
    )
    world_actions: dict[str, Weight] = Field(
        default_factory=dict,
        description="how often an action of the world is drawn for clips, 1 where none is given: what is hard to learn, more often",
    )
    world_actors: dict[str, Weight] = Field(
        default_factory=dict,
        description="how often an actor of the world is drawn for pictures and clips, 1 where none is given",
    )
    image: str | tuple[Folder, ...] | None = Field(None, description="images")
    pairs: str | tuple[Folder, ...] | None = Field(
        None, description="images with captions: .txt, JSONL, CSV, Parquet, or webdataset shards"
    )
    video: str | tuple[Folder, ...] | None = Field(
        None, description="video files, any nesting; captions are never read"
    )
    leave_out: tuple[Literal["static", "duplicate"], ...] = Field(
        (), description="videos that train nothing though they decode; `mav data check` lists them"
    )
    max_lost: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the files that may vanish or go bad while a training runs, one in any case: they are left out, "
        "other samples take their place; more of them, or with 0 any, end it when its state is saved",
    )
    keep_gb: float = Field(
        20.0, ge=0, le=1e6, description="shards behind URLs stay on disk up to this; others are read by range"
    )

    def folders(self, kind: str) -> tuple[Folder, ...]:
        """What the recipe names for `kind`, image, pairs or video; nothing where it names none."""
        named: str | tuple[Folder, ...] | None = getattr(self, kind)
        return (Folder(folder=named),) if isinstance(named, str) else named or ()


class FpsCurriculum(Spec):
    """fps = low + (high - low) * Beta(a, b); (a, b) move from `start` to `end` over training (section 3.2.2)."""

    low: float = Field(1.0, ge=0.1, le=240)
    high: float = Field(30.0, ge=0.1, le=240)
    start: tuple[Beta, Beta] = (4.0, 1.0)
    end: tuple[Beta, Beta] = (1.0, 4.0)

    @model_validator(mode="after")
    def _lowest_first(self) -> FpsCurriculum:
        if self.low > self.high:
            raise SpecError("low", f"`{self.low:g}` is more than `high`, {self.high:g}")
        return self


class Masks(Spec):
    """Shares of the tasks that ↑F trains on (section 3.3); they need not sum to one."""

    interpolate: float = Field(0.5, ge=0, le=1e6, description="key frames `frame_skip` apart are known")
    endpoints: float = Field(0.1, ge=0, le=1e6, description="only the first and the last frame are known")
    forward: float = Field(0.15, ge=0, le=1e6, description="the first frames are known (extrapolation)")
    backward: float = Field(0.1, ge=0, le=1e6, description="the last frames are known")
    animate: float = Field(0.1, ge=0, le=1e6, description="only the first frame is known")
    generate: float = Field(0.05, ge=0, le=1e6, description="nothing is known: the task of D^t")
    frame_skips: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        None,
        min_length=1,
        description="how far apart the known frames of `interpolate` are, each equally often (one that stands twice, twice); "
        "null for all that a clip holds, 2 to frames - 1",
    )

    @model_validator(mode="after")
    def _some_task(self) -> Masks:
        shares = (self.interpolate, self.endpoints, self.forward, self.backward, self.animate, self.generate)
        if not any(shares):
            raise ValueError("all shares of masks are 0, one of them must be more")
        return self

    def skips(self, frames: int) -> tuple[int, ...]:
        """How far apart known frames are in clips of so many `frames`."""
        return self.frame_skips or tuple(range(2, max(frames, 3)))


class Degradation(Spec):
    """How training corrupts the low-res picture of an SR network: blur (unCLIP, section 2.1; its kernel in appendix C) and,
    which neither paper says of its own, noise whose amount the network is told (CDM, arXiv 2106.15282)."""

    blur_kernel: int = Field(3, ge=1, le=63)
    blur_sigma: float = Field(0.6, ge=0.01, le=100)
    blur_probability: float = Field(0.5, ge=0, le=1)
    half_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of pictures that are shrunk to half once more and enlarged again, so that SR_h does not sharpen what "
        "SR_l could not know",
    )
    made_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of SR_h's low-res pictures that SR_l makes of smaller ones, as it does at sampling: what SR_l has "
        "sharpened, SR_h then does not sharpen again",
    )
    noise_max: float = Field(0.1, ge=0, le=1, description="largest augmentation level, share of T")


class StageTraining(Spec):
    """How one stage is trained; `train.defaults` gives what a stage leaves out."""

    start: str = Field(
        "auto",
        description="auto: the parent stage's weights; scratch; own: the stage's weights that `weights` names; or a file",
    )
    steps: Every = 1000
    batch_size: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="samples (clips for video stages) a step, of all processes together",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="samples a process puts through the network at once; the rest is accumulated",
    )
    lr: float = Field(1e-4, ge=1e-12, le=100)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: hidden matrices; the rest stays with AdamW"
    )
    muon_lr: float = Field(0.02, ge=1e-12, le=100)
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    adam_eps: float = Field(1e-8, ge=1e-20, le=1, description="Adam's epsilon")
    sam_rho: float = Field(
        0.0,
        ge=0,
        le=10,
        description="sharpness-aware minimisation (arXiv 2010.01412): the gradient is taken at the worst weights within this "
        "distance, found by each process of its own share; 0 is off, anything else doubles a step's work",
    )
    weight_decay: float = Field(0.0, ge=0, le=100)
    warmup: int = Field(100, ge=0, le=10**9)
    decay: float = Field(
        0.6, ge=0, le=1, description="last share of the steps over which the rate falls to zero"
    )
    decay_shape: Literal["linear", "cosine"] = "linear"
    clip_grad: float = Field(1.0, ge=1e-9, le=1e9)
    ema: float = Field(0.9999, ge=0, lt=1)
    drop_condition: float = Field(
        0.1, ge=0, le=1, description="share of samples without their condition, for guidance"
    )
    weighting: Literal["uniform", "min_snr"] = "uniform"
    snr_min: float = Field(0.0, ge=0, le=1e6, description="min_snr: lower clamp of the SNR weight on x0")
    snr_max: float = Field(5.0, ge=1e-6, le=1e6, description="min_snr: upper clamp (gamma)")
    timesteps: Literal["uniform", "stratified"] = Field(
        "uniform",
        description="stratified: the diffusion steps of a batch spread evenly over T, which quiets the gradient of a small batch (VDM, arXiv 2107.00630)",
    )
    shift: float = Field(
        1.0,
        ge=1,
        le=100,
        description="noise is drawn as if every signal-to-noise ratio were divided by its square; for clips, whose frames repeat each other, and for super-resolution, which is given most of the picture",
    )
    vlb_weight: float = Field(
        0.001, ge=0, le=1000, description="lambda of the hybrid loss, with a learned variance"
    )
    motion_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="weight of half the squared change of the error from frame to frame: what moves then counts for more than what stands",
    )
    train: Literal["all", "temporal"] = "all"
    spatial_lr: float = Field(1.0, ge=1e-9, le=1000, description="factor on the rate of inherited layers")
    image_batch: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a video stage's steps that see still images: `data.image` or `pairs`, else frames of the videos",
    )
    pictures_beside: int = Field(
        0,
        ge=0,
        le=64,
        description="pictures that a video stage's step sees beside each of its clips, in one step and every frame counting alike, "
        "as VDM trains (arXiv 2204.03458); `image_batch` has steps of pictures alone",
    )
    still_clips: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a video stage's clips that are one still in every frame, told as 240 fps, at which nothing moves: "
        "so the temporal layers meet what is in pictures only",
    )
    told_by: Literal["frame", "caption"] = Field(
        "frame",
        description="what tells D^t and ↑F what a clip shows: CLIP's embedding of its first frame, or what P makes of its caption: "
        "video with text, which the method does without; for comparison, in the rendered world only",
    )
    frames: Frames = 16
    crop: Side | None = Field(None, description="SR: train on random crops of this many pixels")
    fps: FpsCurriculum = FpsCurriculum()
    masks: Masks = Masks()
    degradation: Degradation = Degradation()
    retries: int = Field(
        3,
        ge=0,
        le=1_000_000,
        description="steps in a row that are skipped because their loss or gradient is not finite",
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: each holds the whole network, or a share of it (FSDP2)"
    )
    recompute: bool = Field(
        False, description="activation checkpointing: blocks are run again in the backward pass, for memory"
    )
    compile: bool = Field(False, description="blocks go through torch.compile; the first step takes minutes")
    cuda_graphs: bool = Field(
        False,
        description="a U-Net's passes are recorded once and replayed: faster where it is so small that one GPU waits for Python",
    )
    save_every: Every = 500
    sample_every: Every = 500
    log_every: Every = 20


class Train(Spec):
    out: str = Field("runs", description="checkpoints, metrics and samples, relative to the working folder")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    tensorboard: bool = Field(False, description="metrics for TensorBoard too, beside metrics.jsonl")
    embeddings_gb: float = Field(
        2.0,
        ge=0,
        le=1e6,
        description="what the frozen CLIP towers said of your files is kept up to this; 0 keeps nothing",
    )
    data: Data = Data()
    defaults: StageTraining = Field(StageTraining(), description="what a stage has that says nothing else")
    stages: dict[str, StageTraining] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_stages(self) -> Train:
        for name in self.stages:
            if name not in STAGES:
                raise ValueError(f"unknown stage `{name}`; the stages are {', '.join(STAGES)}")
        return self


class Recipe(Spec):
    """A whole recipe, after `extends`, `--set` and defaults."""

    name: str
    description: str = ""
    hardware: Hardware = Hardware()
    weights: Weights = Weights()
    cascade: Cascade = Cascade()
    output: Output = Output()
    train: Train = Train()

    def stage(self, name: str) -> StageTraining:
        """How `name` is trained; a stage that the recipe does not mention has `train.defaults`."""
        return self.train.stages.get(name, self.train.defaults)

    def interp_schedule(self) -> ScheduleSpec:
        return self.cascade.interp.schedule or self.cascade.decoder.schedule
