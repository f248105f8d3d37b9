"""Invariants 7, 8 and 10 on a whole tiny cascade, and what each command builds on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_family import random_network, tiny_recipe

from mavcli.engine import cascade as module
from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade, slerp
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.engine.work import Work
from mavcli.errors import OutOfMemoryError, RecipeError, WeightsError
from mavcli.report import Silent
from mavcli.weights.inflation import inflate_file
from mavcli.weights.provenance import Met, WeightsHeader, load_weights, read_header, save_weights

ALL = ("clip", "prior", "decoder_t", "interp", "sr_l", "sr_h")
# A step of 8 bits is 2 / 255: networks add in another order when a batch has another size.
ONE_STEP = 2.5 / 255


class Listener(Silent):
    def __init__(self):
        self.planned, self.stages, self.done, self.lines = 0.0, [], 0.0, []

    def stage(self, name, total):
        self.stages.append((name, total))

    def advance(self, amount=1):
        self.done += amount

    skip = advance

    def message(self, text):
        self.lines.append(text)

    warning = message


def open_cascade(path: Path, *sets: str, **options) -> Cascade:
    recipe = tiny_recipe(path, *sets)
    backend = Backend(torch.device("cpu"), torch.float32, 1)
    return Cascade(recipe, find_family(recipe, ALL), backend, **options)


@pytest.fixture(scope="module")
def cascade(tiny: Path) -> Cascade:
    return open_cascade(tiny)


@pytest.fixture(scope="module")
def base(cascade: Cascade) -> torch.Tensor:
    return cascade.decode(cascade.image_embedding(["a dog surfing"], [Draw(0)]), [Draw(0)], fps=24)


@pytest.fixture(scope="module")
def small(cascade: Cascade, base: torch.Tensor) -> torch.Tensor:
    return cascade.fill_up(base, [Draw(0)], fps=24, frames=76)


def test_a_text_becomes_76_frames_at_the_largest_size(cascade, small):
    video = cascade.enlarge(small[:, :20], [Draw(0)], fps=24)
    assert small.shape == (1, 76, 3, 8, 8)
    assert video.shape == (1, 20, 3, 32, 32) and cascade.out_size == 32 and cascade.natural_frames == 76
    assert float(video.abs().max()) <= 1 and float(video.std()) > 0.01


def test_an_extension_to_the_front_is_told_of_by_its_first_known_frame(cascade, base, monkeypatch):
    """As in training (tests/training/test_what_clip_sees.py)."""
    handed = []
    original = Cascade.embed_frames
    monkeypatch.setattr(
        Cascade, "embed_frames", lambda self, frames: (handed.append(frames), original(self, frames))[1]
    )
    cascade.extrapolate(base[:, 4:], [Draw(0)], frames=3, fps=24, direction="backward")
    assert [torch.equal(frames[0], base[0, 4]) for frames in handed] == [True]


def with_met(path: Path, folder: Path, **met: Met) -> Cascade:
    """The cascade whose weights say what their trainings met."""
    shutil.copytree(path.parent, folder)
    for role, said in met.items():
        file = folder / "weights" / f"{role}.safetensors"
        header = read_header(file).model_copy(update={"met": said})
        save_weights(file, load_weights(file), header)
    return open_cascade(folder / path.name, report=Listener())


def test_a_rate_that_no_training_clip_had_is_told(tiny, tmp_path, cascade):
    short = with_met(tiny, tmp_path / "short", decoder_t=Met(fps=(6.0, 30.0)))
    embedding = torch.zeros(1, 16)
    made = short.decode(embedding, [Draw(0)], fps=24)
    assert short.report.lines == [
        "D^t is told 4.8 fps; training met 6 to 30: how things move at that rate it never saw"
    ]
    assert torch.equal(made, cascade.decode(embedding, [Draw(0)], fps=24)), "what is said changes no frame"
    long = with_met(tiny, tmp_path / "long", decoder_t=Met(fps=(2.0, 30.0)))
    long.decode(embedding, [Draw(0)], fps=24)
    assert long.report.lines == []


def test_a_distance_between_key_frames_that_no_training_had_is_told(tiny, tmp_path, base):
    few = with_met(tiny, tmp_path / "few", interp=Met(fps=(1.0, 30.0), frame_skips=(2, 3)))
    few.fill_up(base[:, :2], [Draw(0)], fps=24, frames=6)
    told = "↑F was never trained to fill in between frames that are 5 apart; it learnt 2, 3"
    assert few.report.lines == [told]


def test_the_whole_chain_is_its_parts(cascade, base):
    whole = cascade.text_to_video(["a dog surfing"], [Draw(0)], fps=24, frames=11)
    parts = cascade.sr_h(
        cascade.sr_l(cascade.interpolate(base[:, :3], [Draw(0)], skip=5, fps=24), [Draw(0)], fps=24),
        [Draw(0)],
    )
    assert torch.equal(whole, parts)


def test_the_same_run_gives_the_same_frames_and_another_seed_others(tiny, base):
    again = open_cascade(tiny)
    embedding = again.image_embedding(["a dog surfing"], [Draw(0)])
    assert torch.equal(again.decode(embedding, [Draw(0)], fps=24), base)
    assert not torch.equal(again.decode(embedding, [Draw(1)], fps=24), base)
    assert not torch.equal(again.decode(embedding, [Draw(0, 1)], fps=24), base)


def test_the_size_of_the_batch_does_not_change_a_sample(cascade, base, small):
    draws = [Draw(5), Draw(0), Draw(0, 1)]
    prompts = ["cat", "a dog surfing", "the sea"]
    embedding = cascade.image_embedding(prompts, draws)
    together = cascade.decode(embedding, draws, fps=24)
    assert float((together[1] - base[0]).abs().max()) < ONE_STEP
    filled = cascade.fill_up(torch.cat([together[:1], base]), draws[:2], fps=24, frames=76)
    assert float((filled[1] - small[0]).abs().max()) < ONE_STEP
    large = cascade.enlarge(filled[:, :18], draws[:2], fps=24)
    alone = cascade.enlarge(filled[1:, :18], draws[1:2], fps=24)
    assert torch.equal(large[1:], alone)


def test_windows_that_share_a_call_do_not_change_the_frames(tiny, base, small):
    three = open_cascade(tiny, windows_at_once=3)
    assert float((three.fill_up(base, [Draw(0)], fps=24, frames=76) - small).abs().max()) < ONE_STEP


def test_known_frames_come_back_bit_for_bit(cascade, base, small):
    assert torch.equal(small[:, ::5], base)
    assert not torch.equal(small[:, 1], small[:, 0])


@pytest.mark.parametrize(("keys", "skip"), [(2, 15), (3, 4), (5, 2), (4, 7)])
def test_any_number_of_known_frames_at_any_distance_comes_back(cascade, keys, skip):
    known = torch.randint(0, 256, (2, keys, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    out = cascade.interpolate(known, [Draw(0), Draw(1)], skip=skip, fps=10)
    assert out.shape == (2, (keys - 1) * skip + 1, 3, 8, 8)
    assert torch.equal(out[:, ::skip], known)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("length", [1, 3, 20])
def test_extrapolation_keeps_the_given_frames_and_adds_exactly_the_rest(cascade, length, direction):
    given = (
        torch.randint(0, 256, (1, length, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    )
    out = cascade.extrapolate(given, [Draw(0)], frames=21, fps=12, direction=direction)
    first = {"forward": 0, "backward": 21, "both": 10}[direction]
    assert out.shape[1] == length + 21
    assert torch.equal(out[:, first : first + length], given)
    new = torch.cat([out[:, :first], out[:, first + length :]], dim=1)
    assert len({tuple(frame.flatten().tolist()) for frame in new[0]}) == 21


def test_an_animated_picture_is_the_first_of_sixteen_frames(cascade):
    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    out = cascade.animate(image, [Draw(0)], fps=24)
    assert out.shape == (1, 16, 3, 8, 8) and torch.equal(out[:, 0], image)


def test_fewer_frames_are_a_cut_and_more_extend_the_row_of_keys(cascade, base, small):
    longer = cascade.fill_up(base, [Draw(0)], fps=24, frames=100)
    assert longer.shape[1] == 100
    assert torch.equal(longer[:, :76], small)
    assert torch.equal(cascade.fill_up(base, [Draw(0)], fps=24, frames=44), small[:, :44])
    assert cascade.fill_up(base, [Draw(0)], fps=24, frames=1).shape[1] == 1


def test_sr_h_gives_equal_frames_for_equal_input_so_its_noise_is_shared(cascade):
    frame = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = cascade.sr_h(frame.expand(1, 11, 3, 16, 16), [Draw(0)])
    # 8 and 3 frames a call: the sums may differ in the last bit, the noise may not
    assert float((out - out[:, :1]).abs().max()) < ONE_STEP
    assert torch.equal(out[:, 0], out[:, 7])
    other = cascade.sr_h(frame, [Draw(1)])
    assert float((other - out[:, :1]).abs().max()) > ONE_STEP


def test_sr_h_does_not_depend_on_its_chunks(tiny, small):
    frames = torch.nn.functional.interpolate(small[0, :9], 16)[None]
    chunks = [open_cascade(tiny, f"cascade.sr_h.chunk={n}").sr_h(frames, [Draw(0)]) for n in (1, 4, 16)]
    assert all(float((c - chunks[0]).abs().max()) < ONE_STEP for c in chunks)


def test_the_chunks_of_sr_l_cannot_be_seen(tiny, small):
    whole = open_cascade(tiny, "cascade.sr_l.chunk=76").sr_l(small, [Draw(0)], fps=24)
    parts = open_cascade(tiny, "cascade.sr_l.chunk=16").sr_l(small, [Draw(0)], fps=24)
    difference = (whole - parts).abs()
    assert float(difference.max()) < 4 * ONE_STEP
    # without frames that are only seen the edges would stand out
    inside, edge = difference[:, 5], difference[:, 12:14]
    assert float(edge.mean()) < float(inside.mean()) + ONE_STEP / 4


def test_a_decoder_may_be_the_interpolation_network_that_knows_nothing(tiny, tmp_path):
    folder = tmp_path / "family"
    shutil.copytree(tiny.parent, folder)
    (folder / "weights" / "decoder_t.safetensors").unlink()
    one = open_cascade(
        folder / "tiny.yaml", "weights.decoder_t=" + str(folder / "weights/interp.safetensors")
    )
    assert one.family.parts["decoder_t"].role == "interp"
    assert one.decode(torch.zeros(1, 16), [Draw(0)], fps=24).shape == (1, 16, 3, 8, 8)


def test_a_rerun_computes_nothing_and_says_so(tiny, tmp_path, monkeypatch):
    work = Work(tmp_path / "work")
    first = open_cascade(tiny, work=work).text_to_video(["a dog"], [Draw(3)], fps=24, frames=16)
    monkeypatch.setattr(Cascade, "_load", lambda self, piece: pytest.fail(f"{piece} was loaded"))
    listener = Listener()
    again = open_cascade(tiny, work=work, report=listener)
    assert torch.equal(again.text_to_video(["a dog"], [Draw(3)], fps=24, frames=16), first)
    assert [line.split(":")[0] for line in listener.lines] == ["P", "D^t", "↑F", "SR_l^t", "SR_h"]
    assert listener.done == sum(total for _, total in listener.stages)


def test_weights_that_change_while_a_run_goes_on_stop_it_and_nothing_is_kept_of_them(tiny, tmp_path):
    """Found by breaking: signs flipped in a shard made other frames, kept under the digest that the header claims."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny.parent / "weights", weights)
    sets, work, sr_h = f"weights.dir={weights}", Work(tmp_path / "work"), weights / "sr_h.safetensors"
    key_frames = {"fps": 24, "frames": 1}
    direct = open_cascade(tiny).text_to_video(["a dog"], [Draw(0)], **key_frames)
    begun = open_cascade(tiny, sets, work=work)
    whole = sr_h.read_bytes()
    other = random_network(tiny_recipe(tiny).cascade.sr_h.network, seed=50).state_dict()
    for changed, told in (
        (whole[:-1] + bytes([whole[-1] ^ 0x80]), "is damaged"),
        (None, "other weights than"),
    ):
        if changed is None:
            header = WeightsHeader(role="sr_h", spec=tiny_recipe(tiny).cascade.sr_h.network)
            save_weights(sr_h, other, header)
        else:
            sr_h.write_bytes(changed)
        with pytest.raises(WeightsError, match=f"{sr_h} {told}|{sr_h} holds {told}"):
            begun.text_to_video(["a dog"], [Draw(0)], **key_frames)
        assert len(list(work.folder.iterdir())) == 3  # P, D^t, SR_l^t
    sr_h.write_bytes(whole)
    again = open_cascade(tiny, sets, work=work)
    assert torch.equal(again.text_to_video(["a dog"], [Draw(0)], **key_frames), direct)


def test_a_finished_draft_equals_a_direct_run(tiny, tmp_path):
    direct = open_cascade(tiny).text_to_video(["a dog"], [Draw(0)], fps=24, frames=16)
    work = Work(tmp_path / "work")
    drafted = open_cascade(tiny, work=work)
    drafted.decode(drafted.image_embedding(["a dog"], [Draw(0)]), [Draw(0)], fps=24)
    listener = Listener()
    finished = open_cascade(tiny, work=work, report=listener)
    assert torch.equal(finished.text_to_video(["a dog"], [Draw(0)], fps=24, frames=16), direct)
    assert [line.split(":")[0] for line in listener.lines] == ["P", "D^t"]


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ("cascade.sr_h.sampler.steps=1", 4),
        ("cascade.interp.sampler.steps=1", 2),
        ("cascade.interp.extend_sampler={steps: 1}", 5),
        ("cascade.decoder.sampler.guidance_scale=1.5", 1),
        ("cascade.prior.sampler.steps=1", 0),
        ("output.crf=20", 5),
    ],
)
def test_a_changed_setting_remakes_its_stage_and_those_after_it(tiny, tmp_path_factory, change, reused):
    work = Work(tmp_path_factory.getbasetemp() / "shared-work")
    open_cascade(tiny, work=work).text_to_video(["a dog"], [Draw(0)], fps=24, frames=6)
    listener = Listener()
    open_cascade(tiny, change, work=work, report=listener).text_to_video(
        ["a dog"], [Draw(0)], fps=24, frames=6
    )
    assert len(listener.lines) == reused


def test_the_bar_ends_where_it_was_planned(tiny):
    listener = Listener()
    cascade = open_cascade(tiny, "cascade.interp.extend_sampler={steps: 1}", report=listener)
    planned = (
        cascade.cost_of_prior(1)
        + cascade.cost_of_decoder(1)
        + cascade.cost_of_fill_up(16, 90)
        + cascade.cost_of_enlarge(90)
    )
    cascade.text_to_video(["a dog"], [Draw(0)], fps=24, frames=90)
    assert listener.done == pytest.approx(planned)
    assert sum(total for _, total in listener.stages) == pytest.approx(planned)


def test_the_prior_keeps_the_draw_nearest_to_the_text(tiny):
    one = open_cascade(tiny, "cascade.prior.samples=1").image_embedding(["a dog"], [Draw(0)])
    four = open_cascade(tiny, "cascade.prior.samples=4")
    best = four.image_embedding(["a dog"], [Draw(0)])
    text = four.embed_texts(["a dog"])
    assert float((best * text).sum()) >= float((one * text).sum())
    assert float(best.norm()) == pytest.approx(1, abs=1e-5)


def test_memory_that_runs_out_halves_the_chunk_and_ends_in_one_error(tiny, small, monkeypatch):
    listener = Listener()
    cascade = open_cascade(tiny, report=listener)
    frames = torch.nn.functional.interpolate(small[0, :9], 16)[None]
    right = cascade.sr_h(frames, [Draw(0)])
    forward = module.UNet.forward
    limit = [2]

    def tight(self, x, t, condition=None):
        if x.shape[1] > limit[0]:
            raise torch.OutOfMemoryError("no memory")
        return forward(self, x, t, condition)

    monkeypatch.setattr(module.UNet, "forward", tight)
    assert float((cascade.sr_h(frames, [Draw(0)]) - right).abs().max()) < ONE_STEP
    assert [line for line in listener.lines if "out of memory" in line]
    limit[0] = 0
    with pytest.raises(OutOfMemoryError, match="with 1 of the frames of SR_h at once"):
        cascade.sr_h(frames, [Draw(0)])


def test_each_network_is_told_the_nearest_rate_that_its_own_stage_trains_on(tiny):
    listener = Listener()
    curricula = ("decoder_t.fps.low=3", "interp.fps.low=7", "sr_lt.fps.high=20")
    cascade = open_cascade(tiny, *(f"train.stages.{key}" for key in curricula), report=listener)
    assert cascade._told_fps("decoder_t", 4.8) == 4.8 and not listener.lines
    assert cascade._told_fps("decoder_t", 1) == 3
    assert cascade._told_fps("interp", 4.8) == 7
    assert cascade._told_fps("sr_l", 24) == 20
    assert listener.lines == [
        "D^t knows 3 to 30 fps, 1 fps were asked for: it moves as at 3",
        "↑F knows 7 to 30 fps, 4.8 fps were asked for: it moves as at 7",
        "SR_l^t knows 1 to 20 fps, 24 fps were asked for: it moves as at 20",
    ]


def test_key_frames_that_extend_a_clip_and_frames_between_keys_have_noises_of_their_own(
    tiny, small, monkeypatch
):
    drawn: dict[str, set[int]] = {}

    def recorded(shape, rows, *, stage, step):
        drawn.setdefault(stage, set()).update(number for _, numbers in rows for number in numbers)
        return real(shape, rows, stage=stage, step=step)

    real = module.video_noise
    monkeypatch.setattr(module, "video_noise", recorded)
    cascade = open_cascade(tiny)
    keys = small[:, :4]
    cascade.fill_up(keys, [Draw(0)], fps=24, frames=(len(keys[0]) + 2) * cascade.skip + 1)
    assert drawn["interp"] & drawn["extrapolate"], "the numbers meet, so the names must not"


def test_super_resolution_without_a_network_is_said_aloud(tiny, small):
    listener = Listener()
    recipe = tiny_recipe(tiny, "cascade.sr_l.kind=lanczos", "cascade.sr_h.kind=none")
    family = find_family(recipe, ALL)
    assert "sr_l" not in family.parts and "sr_h" not in family.parts
    cascade = Cascade(recipe, family, Backend(torch.device("cpu"), torch.float32, 1), report=listener)
    assert cascade.enlarge(small, [Draw(0)], fps=24).shape[-1] == 16 == cascade.out_size
    assert listener.lines == [
        "SR_l^t only resamples to 16 px (`cascade.sr_l.kind: lanczos`)",
        "SR_h is left out (`cascade.sr_h.kind: none`)",
    ]


def test_slerp_stays_on_the_sphere_and_meets_both_ends():
    a, b = torch.nn.functional.normalize(
        torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    half = slerp(a, b, 0.5)
    assert float(half.norm()) == pytest.approx(1, abs=1e-5)
    assert float((half * a).sum()) == pytest.approx(float((half * b).sum()), abs=1e-5)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_missing_weights_are_all_named_with_the_command_before_anything_runs(tiny, tmp_path):
    recipe = tiny_recipe(tiny, f"weights.dir={tmp_path}/nothing", f"train.out={tmp_path}/runs")
    with pytest.raises(WeightsError) as found:
        find_family(recipe, ALL)
    for role in ("clip", "prior", "decoder_t", "interp", "sr_lt", "sr_h"):
        assert f"{role}.safetensors does not exist" in found.value.message
    assert found.value.hint == "mav train-stage clip RECIPE"


def image_family(tiny: Path, folder: Path) -> Path:
    """The tiny family before any video training: D and SR_l in place of D^t, ↑F and SR_l^t."""
    shutil.copytree(tiny.parent, folder)
    recipe = tiny_recipe(folder / "tiny.yaml").cascade
    for video, role, spec in (("decoder_t", "decoder", recipe.decoder), ("sr_lt", "sr_l", recipe.sr_l)):
        (folder / "weights" / f"{video}.safetensors").unlink()
        spec = spec.network.model_copy(update={"temporal": "none", "fps": False})
        tensors = random_network(spec, seed=7).state_dict()
        save_weights(folder / "weights" / f"{role}.safetensors", tensors, WeightsHeader(role=role, spec=spec))
    (folder / "weights" / "interp.safetensors").unlink()
    return folder / "tiny.yaml"


def test_untrained_temporal_layers_serve_and_it_is_said_plainly_that_frames_will_not_cohere(tiny, tmp_path):
    path = image_family(tiny, tmp_path / "family")
    with pytest.raises(WeightsError, match="interp.safetensors does not exist"):
        find_family(tiny_recipe(path), ALL)
    family = find_family(tiny_recipe(path), ALL, keys_suffice=True)
    assert set(family.parts) == {"clip", "prior", "decoder_t", "sr_l", "sr_h"}
    told = " ".join(family.warnings)
    assert "WILL NOT COHERE" in told and "mav train-stage decoder_t" in told and "--still" in told
    assert "the key frames alone are made, at 4.8 fps" in told
    assert find_family(tiny_recipe(path), ("clip", "decoder_t"), stills=True).warnings == ()


def test_inflated_weights_that_nothing_has_trained_are_told_too(tiny, tmp_path):
    path = image_family(tiny, tmp_path / "family")
    weights = path.parent / "weights"
    inflate_file(weights / "decoder.safetensors", weights)
    inflate_file(weights / "decoder.safetensors", weights, widen="mask")
    inflate_file(weights / "sr_l.safetensors", weights, fps=False)
    family = find_family(tiny_recipe(path), ALL)
    assert [part.role for part in family.parts.values()][2:5] == ["decoder_t", "interp", "sr_lt"]
    told = " ".join(family.warnings)
    assert (
        "WILL NOT COHERE" in told and "never trained to fill in" in told and "`mav train-stage sr_lt" in told
    )


def untrained(path: Path, *sets: str) -> Cascade:
    recipe = tiny_recipe(path, *sets)
    backend = Backend(torch.device("cpu"), torch.float32, 1)
    return Cascade(recipe, find_family(recipe, ALL, keys_suffice=True), backend)


def test_coherence_likens_the_frames_and_is_nothing_when_off(tiny, tmp_path):
    path = image_family(tiny, tmp_path / "family")
    none = untrained(path)
    embedding = none.image_embedding(["a dog"], [Draw(0)])

    def frames(*sets: str) -> torch.Tensor:
        return untrained(path, *sets).decode(embedding, [Draw(0)], fps=24)[0]

    apart = frames()
    assert torch.equal(frames("cascade.decoder.coherence=none"), apart)
    same = frames("cascade.decoder.coherence=shared-noise")
    assert torch.equal(same, same[:1].expand_as(same)), "one noise and one meaning are one picture"
    crossed = frames("cascade.decoder.coherence=cross-frame")
    assert torch.equal(crossed[0], apart[0]), "the first frame has no other to look at"
    assert not torch.equal(crossed[1:], apart[1:]) and len({f.sum().item() for f in crossed}) == 16
    picture = none.decode(embedding, [Draw(0)], fps=24, frames=1)
    assert float((picture[0, 0] - apart[0]).abs().max()) < ONE_STEP


def test_a_trained_network_is_the_same_with_and_without_a_word_on_coherence(tiny, base):
    said = open_cascade(tiny, "cascade.decoder.coherence=none")
    embedding = said.image_embedding(["a dog surfing"], [Draw(0)])
    assert torch.equal(said.decode(embedding, [Draw(0)], fps=24), base)


def test_the_embedding_that_tells_d_t_what_to_draw_is_scaled_where_the_recipe_says(tiny, base):
    embedding = open_cascade(tiny).image_embedding(["a dog surfing"], [Draw(0)])

    def drawn(scale: float, interval: str, told: torch.Tensor = embedding) -> torch.Tensor:
        sets = [f"cascade.decoder.sampler.embedding_{k}" for k in (f"scale={scale}", f"interval={interval}")]
        return open_cascade(tiny, *sets).decode(told, [Draw(0)], fps=24)

    assert torch.equal(drawn(2, "[0, 1]"), drawn(1, "[0, 1]", 2 * embedding))
    assert not torch.equal(drawn(2, "[0, 1]"), base)
    assert not torch.equal(drawn(2, "[0.5, 1]"), drawn(2, "[0, 1]"))
    assert torch.equal(drawn(2, "[0.0001, 0.0002]"), base), "no step lies there"


@pytest.mark.parametrize("part", ["prior", "sr_l", "sr_h"])
def test_a_scale_for_an_embedding_that_is_not_read_is_refused(tiny, part):
    with pytest.raises(RecipeError, match=rf"cascade\.{part}\.sampler\.embedding_scale"):
        tiny_recipe(tiny, f"cascade.{part}.sampler.embedding_scale=2")


def test_the_last_step_of_super_resolution_may_be_a_network_of_its_own(tiny, tmp_path):
    shutil.copytree(tiny.parent, tmp_path / "family")
    path = tmp_path / "family" / "tiny.yaml"
    spec = tiny_recipe(path).cascade.sr_l.network.model_copy(update={"temporal": "none"})
    spec = spec.model_copy(update={"noise_level": False})  # it is not told the augmentation level
    sets = (
        "cascade.sr_l.last_step=true",
        "cascade.sr_l.network.noise_level=false",
        "cascade.sr_l.noise_level=0",
    )
    frozen = random_network(tiny_recipe(path, *sets).cascade.sr_l.network, seed=3).state_dict()
    header = WeightsHeader(role="sr_lt", spec=tiny_recipe(path, *sets).cascade.sr_l.network)
    save_weights(tmp_path / "family/weights/sr_lt.safetensors", frozen, header)
    with pytest.raises(WeightsError, match="sr_l_last.safetensors does not exist"):
        find_family(tiny_recipe(path, *sets), ("sr_l",))
    video = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = {}
    for seed in (8, 9):
        tensors = random_network(spec, seed=seed).state_dict()
        save_weights(
            tmp_path / "family/weights/sr_l_last.safetensors", tensors, WeightsHeader(role="sr_l", spec=spec)
        )
        made[seed] = open_cascade(path, *sets).sr_l(video, [Draw(0)], fps=24)
    assert made[8].shape == (1, 3, 3, 16, 16) and not torch.equal(made[8], made[9])
    # the one before last is the first network's alone: of one step, all is the last network's
    one = (*sets, "cascade.sr_l.sampler.steps=1")
    first = open_cascade(path, *one).sr_l(video, [Draw(0)], fps=24)
    changed = {name: value + 1 for name, value in frozen.items()}
    save_weights(tmp_path / "family/weights/sr_lt.safetensors", changed, header)
    assert torch.equal(open_cascade(path, *one).sr_l(video, [Draw(0)], fps=24), first)


def test_weights_of_another_network_or_stage_are_refused_by_name(tiny, tmp_path):
    with pytest.raises(WeightsError, match="`model_channels` is 8, 16 is wanted"):
        find_family(tiny_recipe(tiny, "cascade.sr_h.network.model_channels=16"), ("sr_h",))
    with pytest.raises(WeightsError, match="holds `sr_lt` weights, SR_h needs `sr_h`"):
        find_family(tiny_recipe(tiny, f"weights.sr_h={tiny.parent}/weights/sr_lt.safetensors"), ("sr_h",))


def test_random_weights_run_only_when_asked_and_are_named(tiny, tmp_path):
    recipe = tiny_recipe(tiny, f"weights.interp={tmp_path}/none.safetensors")
    family = find_family(recipe, ALL, random_weights=True)
    assert family.random == ("interp",)
    assert "RANDOM WEIGHTS in ↑F" in family.warnings[-1]
