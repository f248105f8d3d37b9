"""unCLIP in the folders of diffusers: Karlo's whole pipelines (`kakaobrain/karlo-v1-alpha`, also `...-image-variations`), and
Kandinsky's priors (`kandinsky-community/kandinsky-2-1-prior`, `...-2-2-prior`), which are P and both towers of CLIP.

Whose a network is its tensors do not say, so neither do the plans: the licence is what the folder states (`licences`).

`text_proj` and `decoder` are one network of ours. diffusers keeps q, k and v apart, and calls every layer by its place
in a list of blocks; which layer that is follows from the network's shape alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mavcli.errors import UsageError, WeightsError
from mavcli.specs import PriorSpec, ScheduleSpec, UNetSpec
from mavcli.weights.karlo import DECODER_SAMPLER, PRIOR_SAMPLER, SR_SAMPLER
from mavcli.weights.keymap import Conversion, Entry, KeyTable, LeadingOne, Same, Stacked
from mavcli.weights.licences import UNKNOWN
from mavcli.weights.openai_clip import transformers_plan
from mavcli.weights.source import CHECKPOINTS, Checkpoint, Plan, read_config, shapes_of

_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
_DECODER = {
    "down": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
}
# What the networks of ours are; another value in the configuration is another network.
_UNET = {
    "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "center_input_sample": False, "dual_cross_attention": False,
    "use_linear_projection": False, "only_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "time_embedding_act_fn": None, "timestep_post_act": None,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "addition_embed_type": None, "cross_attention_norm": None, "num_attention_heads": None,
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None, "attention_type": "default",
}  # fmt: skip
_TOWER = {"layer_norm_eps": 1e-5}
_QUICK = {"quick_gelu": True, "gelu": False}  # OpenAI's towers, and those that open_clip trained
_PRIOR = {
    "additional_embeddings": 4, "time_embed_act_fn": "silu", "norm_in_type": None, "dropout": 0.0,
    "embedding_proj_norm_type": None, "encoder_hid_proj_type": "linear", "added_emb_type": "prd",
}  # fmt: skip


def plans(source: Path, *, roles: Sequence[str]) -> list[Plan]:
    """The networks of `roles` (empty: all there are) of a folder in the layout of a diffusers pipeline."""
    if not source.is_dir():
        raise WeightsError(
            f"{source} is no folder, diffusers keeps a model in one", hint="give the whole folder"
        )

    def wanted(role: str, folder: str) -> bool:
        return (not roles or role in roles) and (source / folder).is_dir()

    found: list[Plan] = []
    if wanted("clip", "text_encoder") or wanted("clip", "image_encoder"):
        found += _clip(source, asked="clip" in roles)
    if wanted("prior", "prior"):
        found.append(_prior(source))
    if wanted("decoder", "decoder"):
        found.append(_decoder(source))
    for name, folder in (("sr_l", "super_res_first"), ("sr_l_last", "super_res_last")):
        if wanted("sr_l", folder):
            found.append(_super(source, folder, name))
    if not found:
        raise WeightsError(
            f"{source} holds no networks of an unCLIP pipeline ({', '.join(roles) or 'prior, decoder, super_res_first, ...'})",
            hint="--as karlo for the original checkpoints",
        )
    return found


def _clip(source: Path, *, asked: bool) -> list[Plan]:
    """Both encoders together. A text-to-image pipeline has no image encoder: CLIP is then left out, unless asked for."""
    folders = [source / name for name in ("text_encoder", "image_encoder")]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing:
        if not asked:
            return []
        raise WeightsError(
            f"{source} has no `{missing[0]}`, and CLIP needs both of its towers",
            hint="the pipeline karlo-v1-alpha-image-variations has it; or ViT-L-14.pt, --as karlo --role clip",
        )
    text, vision = (_read(folder) for folder in folders)
    for config, folder in zip((text, vision), folders, strict=True):
        _refuse(_TOWER, config, folder)
        activation = config.get("hidden_act", "quick_gelu")  # transformers' own default
        if activation not in _QUICK:
            raise UsageError(
                f"{folder}/config.json: `hidden_act` is {activation!r}, only {' and '.join(map(repr, _QUICK))} are supported"
            )
    first, second = (config.get("hidden_act", "quick_gelu") for config in (text, vision))
    if first != second:
        raise UsageError(
            f"{source}: `hidden_act` is {first!r} in text_encoder and {second!r} in image_encoder, CLIP's towers share one"
        )
    return [
        transformers_plan(
            *(_weights(folder) for folder in folders),
            text_heads=text.get("num_attention_heads"),
            vision_heads=vision.get("num_attention_heads"),
            quick_gelu=_QUICK[first],
        )
    ]


def _prior(source: Path) -> Plan:
    folder = source / "prior"
    config = _read(folder)
    _refuse(_PRIOR, config, folder)
    heads, each = int(config.get("num_attention_heads", 32)), int(config.get("attention_head_dim", 64))
    width, clip_dim = heads * each, int(config.get("embedding_dim", 768))
    same = {"time_embed_dim": width, "embedding_proj_dim": clip_dim, "clip_embed_dim": clip_dim}
    for name, value in same.items():
        if config.get(name) not in (None, value):
            raise UsageError(f"{folder}/config.json: `{name}` is {config[name]}, only {value} is supported")
    checkpoint = Checkpoint(_weights(folder))
    spec = PriorSpec(
        clip_dim=clip_dim,
        text_dim=clip_dim,
        text_context=int(config.get("num_embeddings", 77)),
        width=width,
        layers=int(config.get("num_layers", 20)),
        num_heads=heads,
        null_text="empty",
    )
    # Karlo's pipeline has three schedulers, Kandinsky's prior is a pipeline of its own with one.
    karlo = (source / "prior_scheduler").is_dir() or (source / "decoder").is_dir()
    place = source / ("prior_scheduler" if karlo else "scheduler")
    schedule, clip = _schedule(place)
    return Plan(
        role="prior",
        name="prior",
        what="a PriorTransformer",
        spec=spec,
        table=prior_table(spec),
        tensors=checkpoint,
        licence=UNKNOWN,
        schedule=schedule,
        sampler=PRIOR_SAMPLER.model_copy(update={"clip_x0": clip}),
    )


def _decoder(source: Path) -> Plan:
    folder, proj = source / "decoder", source / "text_proj"
    if not proj.is_dir():
        raise WeightsError(f"{source} has a decoder and no `text_proj`, which is a part of it")
    config, told = _read(folder), _read(proj)
    _refuse({**_UNET, "class_embed_type": "identity", "addition_embed_type": None}, config, folder)
    checkpoint = Checkpoint(_weights(folder), _weights(proj))
    fields = _unet_fields(config, folder, attention=True)
    for name, value in {
        "time_embed_dim": 4 * fields["model_channels"],
        "cross_attention_dim": config.get("cross_attention_dim"),
    }.items():
        if told.get(name) != value:
            raise UsageError(f"{proj}/config.json: `{name}` is {told.get(name)}, the decoder's is {value}")
    prior = source / "prior"
    context = int(_read(prior).get("num_embeddings", 77)) if prior.is_dir() else 77
    clip_dim = int(told.get("clip_embeddings_dim", 768))
    spec = UNetSpec(
        **fields,
        clip_dim=clip_dim,
        clip_tokens=int(told.get("clip_extra_context_tokens", 4)),
        context_dim=int(config["cross_attention_dim"]),
        text="clip",
        text_dim=clip_dim,
        text_context=context,
    )
    schedule, clip = _schedule(source / "decoder_scheduler", learned=spec.out_channels == 6)
    return Plan(
        role="decoder",
        name="decoder",
        what="a decoder and its `text_proj`",
        spec=spec,
        table=unet_table(spec),
        tensors=checkpoint,
        licence=UNKNOWN,
        schedule=schedule,
        sampler=DECODER_SAMPLER.model_copy(update={"clip_x0": clip}),
    )


def _super(source: Path, place: str, name: str) -> Plan:
    folder = source / place
    config = _read(folder)
    _refuse({**_UNET, "class_embed_type": None, "add_attention": False}, config, folder)
    fields = _unet_fields(config, folder, attention=False)
    spec = UNetSpec(**fields)
    schedule, clip = _schedule(source / "super_res_scheduler")
    return Plan(
        role="sr_l",
        name=name,
        what=f"`{place}`",
        spec=spec,
        table=unet_table(spec),
        tensors=Checkpoint(_weights(folder)),
        licence=UNKNOWN,
        schedule=schedule,
        sampler=SR_SAMPLER.model_copy(update={"clip_x0": clip}),
    )


def _unet_fields(config: Mapping[str, Any], folder: Path, *, attention: bool) -> dict[str, Any]:
    """The fields of a UNetSpec in the configuration of a UNet2DConditionModel (`attention`) or a UNet2DModel."""
    channels = [int(c) for c in config["block_out_channels"]]
    down, up = config.get("down_block_types", []), config.get("up_block_types", [])
    allowed = {**_DECODER} if attention else {half: names[:1] for half, names in _DECODER.items()}
    for half, blocks in (("down", down), ("up", up)):
        for block in blocks:
            if block not in allowed[half]:
                raise UsageError(
                    f"{folder}/config.json: a `{block}`, only {' and '.join(allowed[half])} are known"
                )
    has = ["CrossAttn" in block for block in down]
    if has != ["CrossAttn" in block for block in reversed(up)] or len(has) != len(channels):
        raise UsageError(f"{folder}/config.json: the blocks of its two halves do not mirror each other")
    middle = config.get("mid_block_type", "UNetMidBlock2D")
    if attention and middle != "UNetMidBlock2DSimpleCrossAttn":
        raise UsageError(f"{folder}/config.json: a `{middle}`, only UNetMidBlock2DSimpleCrossAttn is known")
    size, layers = int(config["sample_size"]), config.get("layers_per_block", 2)
    inputs = int(config.get("in_channels", 3))
    if inputs not in (3, 6) or (inputs == 6) == attention:
        raise UsageError(f"{folder}/config.json: `in_channels` is {inputs}, {3 if attention else 6} is known")
    each = config.get("attention_head_dim", 8)
    return {
        "image_size": size,
        "low_res_channels": inputs - 3,
        "out_channels": int(config.get("out_channels", 3)),
        "model_channels": channels[0],
        "channel_mult": tuple(c / channels[0] for c in channels),
        "num_res_blocks": int(layers),
        "attention_resolutions": tuple(size // 2**level for level, yes in enumerate(has) if yes),
        "mid_attention": attention,
        **({"num_head_channels": int(each)} if attention else {}),
        "use_scale_shift_norm": config.get("resnet_time_scale_shift", "default") == "scale_shift",
    }


def _schedule(folder: Path, *, learned: bool = False) -> tuple[ScheduleSpec, float | None]:
    """The process of a UnCLIPScheduler's configuration and the clamp of x0. What it leaves out is that class's own default.

    Raises WeightsError without one: how far x0 is clamped stands nowhere else, and publishers differ (Karlo 5, Kandinsky 10).
    """
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing: what its network predicts and how far x0 is clamped stand there alone",
            hint="fetch it from where the weights come from; `mav weights pull` gets it too",
        )
    config = read_config(path)
    variance = config.get("variance_type", "fixed_small_log")
    said = config.get("prediction_type", "epsilon")
    name = config.get("_class_name", "UnCLIPScheduler")
    betas = config.get("beta_schedule", "squaredcos_cap_v2")
    wanted = "learned_range" if learned else "fixed_small_log"
    known = name == "UnCLIPScheduler" and variance == wanted and betas == "squaredcos_cap_v2"
    if not known or said not in ("sample", "epsilon"):
        raise UsageError(
            f"{path}: a {name} of `{betas}` with variance `{variance}` that predicts `{said}` is not known here, an "
            f"UnCLIPScheduler of `squaredcos_cap_v2` with `{wanted}` is"
        )
    spec = ScheduleSpec(
        name="cosine",
        timesteps=int(config.get("num_train_timesteps", 1000)),
        prediction="x0" if said == "sample" else "epsilon",
        variance="learned_range" if learned else "fixed_small",
    )
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None
    return spec, clip


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json, which says what network it is")
    return read_config(folder / "config.json")


def _weights(folder: Path) -> Path:
    """The weights of one model: safetensors before pickles, shards under their common name."""
    for name in _NAMES:
        shards = sorted(folder.glob(f"{name}-00001-of-*.safetensors"))
        if shards or (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
        if (folder / f"{name}.bin").is_file():
            return folder / f"{name}.bin"
    others = sorted(file.name for file in folder.iterdir() if file.suffix in CHECKPOINTS)
    raise WeightsError(
        f"{folder} holds no `{_NAMES[0]}.safetensors` or .bin{', only ' + ', '.join(others) if others else ''}"
    )


def _refuse(known: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError where the configuration asks for something that our networks do not do."""
    for name, value in known.items():
        if name in config and config[name] != value:
            raise UsageError(
                f"{folder}/config.json: `{name}` is {config[name]!r}, only {value!r} is supported"
            )


# -- key tables, ours -> theirs ------------------------------------------------------------------------------------------


def unet_table(spec: UNetSpec) -> KeyTable:
    """Our U-Net and diffusers' UNet2DConditionModel with its UnCLIPTextProjModel, or UNet2DModel."""
    places = dict(_places(spec))
    entries = []
    for name in shapes_of(spec):
        entries.append(_text_entry(name) or _unet_entry(name, places))
    return KeyTable(tuple(entries))


_TEXT_PROJ = {
    "cf_param": "learned_classifier_free_guidance_embeddings",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "text_feat_proj": "embedding_proj",
}
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def text_proj_names() -> frozenset[str]:
    """The modules of a UnCLIPTextProjModel, which are part of our decoder."""
    return frozenset(_TEXT_PROJ.values())


def _text_entry(name: str) -> Entry | None:
    if name in _TEXT_PROJ:
        return Entry(name, (_TEXT_PROJ[name],))
    module, _, kind = name.rpartition(".")
    return Entry(name, (f"{_TEXT_PROJ[module]}.{kind}",)) if module in _TEXT_PROJ else None


def _places(spec: UNetSpec) -> Iterator[tuple[str, str]]:
    """Our module and theirs, for everything that has a place in a list of blocks."""
    depths = spec.depths
    side, with_attention = spec.image_size, set(spec.attention_resolutions)
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    place = 0
    for level in range(spec.levels):
        for block in range(depths[level]):
            place += 1
            yield f"input_blocks.{place}.0", f"down_blocks.{level}.resnets.{block}"
            yield f"input_blocks.{place}.1", f"down_blocks.{level}.attentions.{block}"
        if level != spec.levels - 1:
            place += 1
            yield f"input_blocks.{place}.0", f"down_blocks.{level}.downsamplers.0"
    last = 2 if spec.mid_attention else 1
    yield from (("middle_block.0", "mid_block.resnets.0"), (f"middle_block.{last}", "mid_block.resnets.1"))
    if spec.mid_attention:
        yield "middle_block.1", "mid_block.attentions.0"
    place = 0
    for step, level in enumerate(reversed(range(spec.levels))):
        has = side // 2**level in with_attention
        for block in range(depths[level] + 1):
            yield f"output_blocks.{place}.0", f"up_blocks.{step}.resnets.{block}"
            if has:
                yield f"output_blocks.{place}.1", f"up_blocks.{step}.attentions.{block}"
            if level and block == depths[level]:
                yield f"output_blocks.{place}.{2 if has else 1}", f"up_blocks.{step}.upsamplers.0"
            place += 1


def _unet_entry(name: str, places: Mapping[str, str]) -> Entry:
    module, _, kind = name.rpartition(".")
    if module in places:
        return Entry(name, (f"{places[module]}.{kind}",))
    # `input_blocks.4.1` `qkv` `weight`, `input_blocks.4.0` `in_layers.0` `weight`
    head = ".".join(module.split(".")[: 2 if module.startswith("middle_block") else 3])
    layer, theirs = module.removeprefix(f"{head}."), places[head]
    if layer == "norm":
        return Entry(name, (f"{theirs}.group_norm.{kind}",))
    if layer == "proj_out":
        return Entry(name, (f"{theirs}.to_out.0.{kind}",), Stacked(1, trailing=1))
    if layer == "qkv":
        return Entry(name, tuple(f"{theirs}.to_{part}.{kind}" for part in "qkv"), Stacked(3, trailing=1))
    if layer == "encoder_kv":
        sources = tuple(f"{theirs}.add_{part}_proj.{kind}" for part in "kv")
        return Entry(name, sources, Stacked(2, trailing=1))
    return Entry(name, (f"{theirs}.{_RESNET[layer]}.{kind}",))


_PRIOR_MODULES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "text_enc_proj": "encoder_hidden_states_proj",
    "text_emb_proj": "embedding_proj",
    "clip_img_proj": "proj_in",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
_PRIOR_LAYERS = {
    "ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0", "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}  # fmt: skip


def prior_table(spec: PriorSpec) -> KeyTable:
    """Our prior and diffusers' PriorTransformer."""
    return KeyTable(tuple(_prior_entry(name, spec) for name in shapes_of(spec)))


def _prior_entry(name: str, spec: PriorSpec) -> Entry:
    alone: dict[str, tuple[str, Conversion]] = {
        "positional_embedding": ("positional_embedding", Same()),
        "prd_emb": ("prd_embedding", Same()),
        "clip_mean": ("clip_mean", LeadingOne()),
        "clip_std": ("clip_std", LeadingOne()),
    }
    if name in alone:
        source, conversion = alone[name]
        return Entry(name, (source,), conversion)
    module, _, kind = name.rpartition(".")
    if module in _PRIOR_MODULES:
        return Entry(name, (f"{_PRIOR_MODULES[module]}.{kind}",))
    _, _, layer, part = module.split(".", 3)  # transformer.resblocks.7.attn.c_qkv
    block = f"transformer_blocks.{layer}"
    if part == "attn.c_qkv":
        sources = tuple(f"{block}.attn1.to_{letter}.{kind}" for letter in "qkv")
        return Entry(name, sources, Stacked(3, heads=spec.num_heads))
    return Entry(name, (f"{block}.{_PRIOR_LAYERS[part]}.{kind}",))
