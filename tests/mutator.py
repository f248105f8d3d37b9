"""`mav` under a mutator: `python tests/mutator.py values 0 5000`, `media 0 2000`, `weights 0 1000`.

A case is a command line, and files of which one was changed, all drawn by the part's name and the case's number alone. One
process imports everything once and forks for each case. A case is a fault unless it ends in a known exit code, with one error
where that is not 0 (none or some in a batch, exit code 8), without a traceback, a bug or a library's own warning, in less
than ten seconds of processor time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import typer.main

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 130, 143}
LIMIT_S = 10.0
"""Of processor time, for one case."""
_HANGS_S = 300.0
"""Of the clock: nothing here waits for anything, however busy the machine is."""
ODD = ("nan", ".nan", "-.inf", "inf", "1e-300", "1e300", "1e999", "-1", "0", "1", "2", "7", "0.5", "-0.0", "1001", "1000000000",
       "9" * 200, "null", "true", "no", "[]", "[1]", "[1,2,3]", "[-1]", "[[[[]]]]", "{}", "{a: 1}", "x", "''", "*a", "&a 1", "!!python/none",
       "- 1", ":", "?", "é", "\udcff", "a\nb", "%s%n", "../..", "2026-11-29", "0x10", "1_000", "12:30", "~", "--", "-q", "\x1b[31m")  # fmt: skip
"""Values that programs trip over."""
_NOISE = re.compile(
    r"\.py:\d+: \w*Warning|Fatal Python error|^\[\w+ @ 0x|Exception ignored|core dumped", re.MULTILINE
)


@dataclass
class Case:
    """A command line and the files that are made for it, by name."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


def changed(data: bytes, rng: random.Random, *, within: int | None = None) -> bytes:
    """Some bytes changed, cut, doubled, put in or left out at the end; in the first `within` bytes only."""
    new = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(new), within or len(new)) + 1)
        match rng.randrange(6):
            case 0:
                new[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del new[at : at + rng.randint(1, 40)]
            case 2:
                new[at:at] = new[max(0, at - 20) : at]
            case 3:
                new[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                new[at : at + 4] = rng.choice(
                    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", struct.pack("<I", 1 << 31)]
                )
            case _:
                if rng.random() < 0.3:
                    del new[at:]
    return bytes(new)


def other_json(value: Any, rng: random.Random) -> Any:
    """`value` with one leaf of another value or kind, one key more or one less."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.2:
            return {**value, rng.choice(["", "x", key * 2, "__metadata__"]): value[key]}
        return {**value, key: other_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], other_json(value[at], rng), *value[at + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        inner = None
        if value[:1] in "{[":
            with_json = json.loads(value)
            inner = json.dumps(other_json(with_json, rng))
        return inner or changed(value.encode(), rng).decode("utf-8", "replace")
    return rng.choice([None, True, -1, 0, 1, 2, 3, 10**8, 10**30, 1e-300, 1e300, float("nan"), "", "x", "é" * 300, [], [1], {}, [[]],
                       "F32", "decoder", "../x", "a\nb", "\x1b[31m"])  # fmt: skip


def other_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header of its own length, its tensors as they were."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for _ in range(rng.randint(1, 2)):
        header = other_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


class Given:
    """What the cases read and do not change, and the originals of what they do; each is made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        from faults import training_recipe

        self.folder = folder
        (folder / "train.yaml").write_text(training_recipe())
        self.train = str(folder / "train.yaml")
        (folder / "i3d.pt").write_bytes(b"stands for I3D's weights")
        self.i3d = str(folder / "i3d.pt")

    @property
    def weights(self) -> Path:
        return Path(self.tiny).parent / "weights"

    @cached_property
    def tiny(self) -> str:
        """The recipe of a whole tiny family, its weights beside it, those of D as well."""
        from tiny_family import random_network, write_family

        from mavcli.recipe.load import load_recipe
        from mavcli.weights.provenance import WeightsHeader, save_weights

        recipe = write_family(self.folder / "tiny")
        network = load_recipe(recipe).recipe.cascade.decoder.network
        spec = network.model_copy(update={"temporal": "none", "fps": False})
        header = WeightsHeader(role="decoder", spec=spec)
        save_weights(
            recipe.parent / "weights" / "decoder.safetensors",
            random_network(spec, seed=9).state_dict(),
            header,
        )
        return str(recipe)

    @cached_property
    def karlo(self) -> Path:
        from tiny_karlo import write_karlo

        return write_karlo(self.folder / "karlo")

    @cached_property
    def karlo_pickles(self) -> Path:
        from tiny_karlo import write_karlo

        return write_karlo(self.folder / "pickles", pickles=True)

    @cached_property
    def real(self) -> str:
        """A folder of clips."""
        from standin_networks import write_clips

        write_clips(self.folder / "real", 3, frames=9)
        return str(self.folder / "real")

    @cached_property
    def media(self) -> dict[str, bytes]:
        """A picture in each format, and one that moves."""
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
        picture, found = Image.fromarray(pixels), {}
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
            stream = io.BytesIO()
            picture.save(stream, kind)
            found[f"m.{kind.lower()}"] = stream.getvalue()
        stream = io.BytesIO()
        turned = [picture.rotate(90), picture.rotate(180)]
        picture.save(stream, "GIF", save_all=True, append_images=turned, duration=80)
        return {**found, "moving.gif": stream.getvalue()}

    @cached_property
    def pictures(self) -> Path:
        """A folder of two pictures."""
        folder = self.folder / "pictures"
        folder.mkdir()
        for number in range(2):
            (folder / f"{number}.png").write_bytes(self.media["m.png"])
        return folder

    @property
    def picture(self) -> str:
        return str(self.pictures / "0.png")

    @cached_property
    def clips(self) -> dict[str, bytes]:
        """A film in each container, of another codec."""
        codecs = {".mp4": "libx264", ".mkv": "ffv1", ".avi": "mjpeg", ".mov": "mpeg4", ".webm": "libvpx-vp9"}
        return {f"m{name}": film(self.folder / f"film{name}", codec) for name, codec in codecs.items()}

    @property
    def clip(self) -> str:
        assert self.clips
        return str(self.folder / "film.mkv")


def film(path: Path, codec: str) -> bytes:
    """A short clip of another codec and container, in bytes."""
    import av
    import numpy as np

    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for shade in range(6):
            pixels = (rng.integers(0, 64, (32, 32, 3)) + 30 * shade).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode(None))
    return path.read_bytes()


# -- options and recipe values ---------------------------------------------------------------------------------------------


def lines(given: Given) -> dict[tuple[str, ...], list[str]]:
    """A command line of each command that does little; to these, options are put."""
    making = ["-r", given.tiny, "--dry-run"]
    decoder = str(given.weights / "decoder.safetensors")
    return {
        ("generate",): ["a dog surfing", *making],
        ("animate",): [given.picture, *making],
        ("interpolate",): [given.clip, *making],
        ("extrapolate",): [given.clip, "--frames", "4", *making],
        ("vary",): [given.picture, *making],
        ("data", "check"): [str(given.pictures)],
        ("data", "preview"): [given.train, "sr_h"],
        ("recipe", "show"): [given.train],
        ("recipe", "check"): [given.train],
        ("recipe", "cp"): [given.train, "copy.yaml"],
        ("weights", "show"): [decoder],
        ("weights", "check"): [decoder],
        ("weights", "mean"): [decoder, decoder, "-o", "mean.safetensors"],
        ("weights", "add"): [decoder],
        ("weights", "import"): [str(given.karlo), "--as", "karlo", "--dry-run"],
        ("inflate",): [decoder, "-o", "out"],
        ("estimate",): [given.train, "sr_h", "--no-probe"],
        ("train-stage",): ["sr_h", given.train, "--dry-run"],
        ("eval", "fvd"): [given.real, given.real, "--weights", given.i3d, "--frames", "9"],
        ("eval", "motion"): [given.real],
        ("gallery",): [given.real],
        ("runs",): [given.real],
    }


@cache
def options(path: tuple[str, ...]) -> list[Any]:
    """The options of a command, as click has them."""
    from mavcli.cli.app import app

    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.get_command(None, name) if hasattr(command, "get_command") else command
    return [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]


@cache
def keys_of_a_recipe() -> list[str]:
    from mavcli.recipe.load import _all_keys
    from mavcli.recipe.yaml_tree import dotted

    return [dotted(key) for key in _all_keys()]


def draw_value(draw: Callable[[Any], Any]) -> str:
    """A number of any size, a text, or a value that programs trip over."""
    from hypothesis import strategies as st

    numbers = st.one_of(st.floats(), st.integers(), st.integers(-3, 2000), st.floats(0, 2)).map(repr)
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
    return str(draw(st.one_of(st.sampled_from(ODD), numbers, texts)))


def draw_case(draw: Callable[[Any], Any], given: Given) -> Case:
    """One or two values of a recipe, on the command line or in its file, or one or two options."""
    from hypothesis import strategies as st

    how = draw(st.integers(0, 9))
    commands = lines(given)
    if how < 5:
        path = draw(st.sampled_from(sorted(commands)))
        words = [*path, *commands[path]]
        for option in draw(st.lists(st.sampled_from(options(path)), min_size=1, max_size=2)):
            flag = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
            value = draw_value(draw)
            if flag in ("-o", "--out", "--sheet", "--report"):
                value = value.replace("/", "_").replace("..", "_")  # nothing is written outside
            words += [flag] if option.is_flag else [flag, *([value] * max(1, option.nargs))]
        return Case(words)
    keys = st.sampled_from(keys_of_a_recipe())
    if how < 8:
        settings = [f"{draw(keys)}={draw_value(draw)}" for _ in range(draw(st.integers(1, 2)))]
        sets = [word for setting in settings for word in ("--set", setting)]
        path = draw(
            st.sampled_from(
                [("recipe", "check"), ("recipe", "show"), ("generate",), ("train-stage",), ("estimate",)]
            )
        )
        return Case([*path, *commands[path], *sets])
    text = (Path(draw(st.sampled_from([given.tiny, given.train])))).read_text()
    if how == 8:
        rng = random.Random(draw(st.integers(0, 2**32)))
        return Case(["recipe", "check", "r.yaml"], {"r.yaml": changed(text.encode(), rng)})
    key = draw(keys)
    nested = "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(key.split(".")[:-1]))
    depth = len(key.split(".")) - 1
    text = f"extends: {given.train}\n{nested}{'  ' * depth}{key.split('.')[-1]}: {draw_value(draw)}\n"
    return Case(["recipe", "check", "r.yaml"], {"r.yaml": text.encode("utf-8", "surrogateescape")})


def values(given: Given, begin: int, end: int) -> Iterator[tuple[int, Case]]:
    """Cases `begin` to `end`, which hypothesis draws in hundreds."""
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis import given as drawn_from
    from hypothesis import strategies as st

    cases: list[Case] = []

    def collect(data: Any) -> None:
        cases.append(draw_case(data.draw, given))

    for hundred in range(begin // 100, -(-end // 100)):
        cases.clear()
        drawing = settings(
            max_examples=100, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )  # fmt: skip
        seed(hundred)(drawing(drawn_from(st.data())(collect)))()
        for number, case in enumerate(list(cases), 100 * hundred):
            if begin <= number < end:
                yield number, case


# -- pictures, videos, tables ----------------------------------------------------------------------------------------------


def media(given: Given, begin: int, end: int) -> Iterator[tuple[int, Case]]:
    for number in range(begin, end):
        rng = random.Random(f"media {number}")
        kind = rng.choice(["picture", "picture", "video", "video", "table", "table", "sidecar"])
        yield (
            number,
            {"picture": _picture, "video": _video, "table": _table, "sidecar": _sidecar}[kind](given, rng),
        )


def _picture(given: Given, rng: random.Random) -> Case:
    name = rng.choice(sorted(given.media))
    files = {f"in/{name}": changed(given.media[name], rng)}
    making = ["-r", given.tiny, "-q"]
    words = rng.choice([
        ["data", "check", "in", "--kind", "image"], ["data", "check", "in"], ["animate", f"in/{name}", *making, "--dry-run"],
        ["vary", f"in/{name}", *making, "--frames", "2"], ["interpolate", f"in/{name}", given.picture, *making, "--frames", "2"],
        ["eval", "fid", "in", "in", "--weights", given.i3d],
        ["data", "preview", given.train, "decoder", "--set", "train.data.world=0", "--set", "train.data.image=in"],
        ["train-stage", "sr_h", given.train, *sets("train.data.world=0", "train.data.image=in", "train.out=run"), "--steps", "1", "-q"],
        ["gallery", "in"],
    ])  # fmt: skip
    return Case(words, files)


def _video(given: Given, rng: random.Random) -> Case:
    name = rng.choice(sorted(given.clips))
    files = {f"in/{name}": changed(given.clips[name], rng)}
    making = ["-r", given.tiny, "-q"]
    words = rng.choice([
        ["data", "check", "in", "--kind", "video"], ["data", "check", "in"], ["interpolate", f"in/{name}", *making],
        ["extrapolate", f"in/{name}", "--frames", "2", *making], ["extrapolate", f"in/{name}", "--frames", "2", *making, "--dry-run"],
        ["eval", "fvd", given.real, "in", "--weights", given.i3d, "--frames", "4"],
        ["eval", "fvd", given.real, "in", "--weights", given.i3d, "--frames", "4", "--skip-unusable"],
        ["eval", "motion", "in"], ["gallery", "in"], ["gallery", "in", "--convert"], ["animate", f"in/{name}", *making],
        ["data", "preview", given.train, "decoder_t", *sets("train.data.world=0", "train.data.video=in")],
        ["vary", f"in/{name}", *making, "--dry-run"],
    ])  # fmt: skip
    return Case(words, files)


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def _table(given: Given, rng: random.Random) -> Case:
    rows = [{"file": "a.png", "caption": "a dog, running"}, {"file": "b.png", "caption": 'a "cat"'}]
    originals = {
        "t.csv": b'file,caption\na.png,"a dog, running"\nb.png,"a ""cat"""\n',
        "t.tsv": b"file\tcaption\na.png\ta dog, running\nb.png\ta cat\n",
        "t.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "t.parquet": _parquet([{**row, "bytes": given.media["m.png"]} for row in rows]),
        "prompts.txt": "a dog surfing\n# a comment\nthe cat é\n".encode(),
        "prompts.csv": b"name,prompt\none,a dog\ntwo,a cat\n",
        "a.txt": b"a dog running",
    }
    name = rng.choice(sorted(originals))
    data = originals[name]
    data = other_table(data, rng) if name.endswith(".jsonl") and rng.random() < 0.5 else changed(data, rng)
    making = ["-r", given.tiny, "-q"]
    if name.startswith("prompts") or rng.random() < 0.2:
        words = rng.choice([
            ["generate", "--prompts", f"in/{name}", *making, "--dry-run"], ["generate", "--prompts", f"in/{name}", *making, "--still"],
            ["eval", "clipsim", given.real, "--prompts", f"in/{name}", "--weights", given.i3d],
        ])  # fmt: skip
        return Case(words, {f"in/{name}": data})
    files = {f"in/{name}": data, "in/a.png": given.media["m.png"], "in/b.png": given.media["m.png"]}
    where = rng.choice(["in", f"in/{name}"])
    words = rng.choice([
        ["data", "check", where, "--kind", "pairs"], ["data", "check", where],
        ["data", "preview", given.train, "prior", *sets("train.data.world=0", f"train.data.pairs={where}")],
        ["train-stage", "clip", given.train, *sets("train.data.world=0", f"train.data.pairs={where}", "train.out=run"), "--steps", "1", "-q"],
    ])  # fmt: skip
    return Case(words, files)


def other_table(data: bytes, rng: random.Random) -> bytes:
    rows = [json.loads(line) for line in data.splitlines()]
    return "".join(json.dumps(other_json(row, rng)) + "\n" for row in rows).encode()


def _sidecar(given: Given, rng: random.Random) -> Case:
    run = {"mav_run": 1, "kind": "generate", "prompt": "a dog", "seed": 1, "files": {"m.mp4": {"size": 1, "sha256": "a" * 64}},
           "options": {}, "weights": {}, "frames": 6, "fps": 8.0, "width": 32, "height": 32, "versions": {"mav": "0"}}  # fmt: skip
    text = json.dumps(other_json(other_json(run, rng), rng)).encode()
    data = changed(text, rng) if rng.random() < 0.4 else text
    files = {"in/m.mp4": given.clips["m.mp4"], "in/m.json": data}
    words = rng.choice([["gallery", "in"], ["extrapolate", "in/m.mp4", "--frames", "2", "-r", given.tiny, "--dry-run"],
                        ["runs", "in"], ["generate", "a dog", "-r", given.tiny, "-o", "in/m.mp4", "--dry-run"]])  # fmt: skip
    return Case(words, files)


# -- weights -----------------------------------------------------------------------------------------------------------------


def weights(given: Given, begin: int, end: int) -> Iterator[tuple[int, Case]]:
    for number in range(begin, end):
        rng = random.Random(f"weights {number}")
        yield number, (_published if rng.random() < 0.3 else _own)(given, rng)


def _own(given: Given, rng: random.Random) -> Case:
    role = rng.choice(["clip", "prior", "decoder_t", "interp", "sr_lt", "sr_h", "decoder"])
    data = (given.weights / f"{role}.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0] + 8
    how = rng.random()
    data = other_header(data, rng) if how < 0.5 else changed(data, rng, within=None if how > 0.8 else size)
    file = f"w/{role}.safetensors"
    beside = {
        f"w/{other.name}": b"-> " + os.fsencode(other)
        for other in given.weights.iterdir()
        if other.stem != role
    }
    own = sets("weights.dir=w")
    words = rng.choice([
        ["weights", "show", file], ["weights", "check", file], ["weights", "add", file, "--as", role, "--family", "f"],
        ["weights", "mean", file, str(given.weights / f"{role}.safetensors"), "-o", "mean.safetensors"], ["inflate", file, "-o", "out"],
        ["generate", "a dog", "--still", "-r", given.tiny, "-q", *own], ["generate", "a dog", "--frames", "2", "-r", given.tiny, "-q", *own],
        ["interpolate", given.picture, given.picture, "--frames", "2", "-r", given.tiny, "-q", *own],
        ["train-stage", role, given.tiny, "--start", file, "--steps", "1", "-q",
         *own, *sets("train.data.world=1", "train.out=run", "train.defaults.batch_size=2")],
        ["weights", "import", file, "--as", "adm", "-o", "family", "--dry-run"], ["weights", "export", file, "--to", "diffusers", "-o", "x"],
        ["weights", "deepen", file, "-o", "deep.safetensors"], ["eval", "fvd", given.real, given.real, "--weights", file, "--frames", "9"],
    ])  # fmt: skip
    return Case(words, {file: data, **beside})


def _published(given: Given, rng: random.Random) -> Case:
    source = rng.choice([given.karlo, given.karlo_pickles])
    names = [path for path in sorted(source.rglob("*")) if path.is_file()]
    chosen = rng.choice(names)
    data = chosen.read_bytes()
    if chosen.suffix == ".safetensors" and rng.random() < 0.5:
        data = other_header(data, rng)
    elif chosen.suffix == ".yaml" and rng.random() < 0.7:
        data = json.dumps(other_json(json.loads(data), rng)).encode()
    else:
        data = changed(data, rng, within=rng.choice([None, 4000]))
    files = {f"karlo/{path.relative_to(source)}": b"-> " + os.fsencode(path) for path in names}
    files[f"karlo/{chosen.relative_to(source)}"] = data
    words = ["weights", "import", "karlo", "--as", "karlo", "-o", "family", "-q"]
    if (
        source == given.karlo_pickles
    ):  # each pickle is read by a process of its own, which imports torch: two seconds
        roles = {"ViT": "clip", "prior": "prior", "decoder": "decoder", "improved": "sr_l"}
        words += ["--role", next(role for start, role in roles.items() if chosen.name.startswith(start))]
    return Case(words + rng.choice([[], ["--dry-run"], ["--dtype", "float16"]]), files)


# -- the judge ---------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Given, int, int], Iterator[tuple[int, Case]]]] = {
    "values": values,
    "media": media,
    "weights": weights,
}
COUNTS = {"values": 5000, "media": 2000, "weights": 1000}


def import_everything() -> None:
    """What a case would import itself, each anew."""
    import mavcli.data.check
    import mavcli.engine.cascade
    import mavcli.training.loop
    import mavcli.training.previews  # noqa: F401
    from mavcli.cli import app

    for verb in app.VERBS:
        app._command(verb)


class Judge:
    """Forks for each case in a folder of its own, and says what is wrong with how it ended."""

    def __init__(self, root: Path, *, part: str) -> None:
        import torch
        from faults import stand_in_for_i3d

        torch.set_num_threads(1)
        self.root, self.part = root, part
        (root / "given").mkdir()
        self.given = Given(root / "given")
        if part != "weights":
            stand_in_for_i3d()
        self.codes: Counter[int] = Counter()
        self.commands: Counter[str] = Counter()
        self.slowest = 0.0

    def faults(self, begin: int, end: int) -> Iterator[tuple[int, Case, str]]:
        """The cases that are faults, and why."""
        for number, case in PARTS[self.part](self.given, begin, end):
            told = self._fault(case)
            if told:
                yield number, case, told

    def _fault(self, case: Case) -> str:
        place = self.root / "place"
        shutil.rmtree(place, ignore_errors=True)
        here = place / "here"
        here.mkdir(parents=True)
        for name, data in case.files.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data.startswith(b"-> "):
                path.symlink_to(os.fsdecode(data[3:]))
            else:
                path.write_bytes(data)
        code, spent = self._run(case.words, place)
        told = (place / "err").read_text(errors="replace")
        self.codes[code] += 1
        self.commands[case.words[0]] += 1
        self.slowest = max(self.slowest, spent)
        errors = len(re.findall(r"^error: ", told, re.MULTILINE))
        if code not in CODES:
            return f"exit code {code}: {told[-1500:]}"
        if "a bug in mav" in told or "Traceback" in told:
            return f"a bug: {told[-1500:]}"
        if noise := _NOISE.search(told):
            return f"noise: {told[max(0, noise.start() - 200) : noise.end() + 300]}"
        if code != 8 and errors != (code != 0):
            return f"{errors} errors with exit code {code}: {told[-1500:]}"
        if spent >= LIMIT_S:
            return f"{spent:.1f} s of processor time: {told[-500:]}"
        return ""

    def _run(self, words: list[str], place: Path) -> tuple[int, float]:
        """The exit code, and the seconds of processor time of the command and of all that it started."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(words, place)
        ended = time.monotonic() + _HANGS_S
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            if time.monotonic() > ended:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.004)


def _child(words: list[str], place: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(place / "here")
        for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        for stream in ("stdout", "stderr"):
            number = 1 if stream == "stdout" else 2
            setattr(
                sys,
                stream,
                io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", "backslashreplace"),
            )
        resource.setrlimit(resource.RLIMIT_CPU, (int(3 * LIMIT_S), int(4 * LIMIT_S)))
        os.environ |= {
            "MAV_CACHE": str(place / "cache"),
            "MAV_DATA": str(place / "data"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        sys.argv = ["mav", *words]
        from mavcli.cli.app import run

        code = run(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("begin", type=int, nargs="?", default=0)
    parser.add_argument("end", type=int, nargs="?")
    chosen = parser.parse_args()
    end = COUNTS[chosen.part] if chosen.end is None else chosen.end
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        import_everything()
        judge = Judge(Path(folder), part=chosen.part)
        for number, case, told in judge.faults(chosen.begin, end):
            count += 1
            say(f"--- {chosen.part} {number}: mav {' '.join(map(repr, case.words))}\n{told}")
        codes = ", ".join(f"{code}: {many}" for code, many in sorted(judge.codes.items()))
        say(f"{chosen.part} {chosen.begin} to {end}: {sum(judge.codes.values())} cases, {count} faults; exit codes {codes}; "
              f"slowest {judge.slowest:.1f} s of processor time")  # fmt: skip
        say(f"commands: {dict(judge.commands)}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
