"""What a benchmark asks for: its prompts out of the published files, how many samples, and how they are measured.

Presets stand in `assets/presets.yaml`; each fixes prompts, counts, frames, fps, size, resize, network, layer, covariance
and seed (Make-A-Video, section 4.1). Captions come from files that the user has, in their published layouts, and are
counted: a file that gives another number than the preset is refused.
"""

from __future__ import annotations

import difflib
import functools
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from mavcli.data.captions import text_lines
from mavcli.data.tables import Table
from mavcli.errors import InputError, UsageError
from mavcli.evaluation.clips import Folder
from mavcli.specs import Spec

Sentences = Literal["pyoco", "snapvideo", "classname"]

_LARGEST = 256 << 20  # bytes: MSR-VTT's annotations are 7 MB


class Prompts(Spec):
    """Which texts, and how many different ones the published files give."""

    source: Literal["msrvtt", "ucf101", "lines", "pocket"]
    count: int = Field(ge=1)
    per_video: Literal["every", "first"] = "every"
    ascii: bool = Field(False, description="leave out captions with other characters")
    sentences: Sentences | None = None
    samples: int = Field(1, ge=1, description="of each text; not where its classes share out the samples")


class ClipShape(Spec):
    """What is generated: `frames` shown at `fps`, `size` pixels a side.

    Without ↑F the frames are the key frames, and D^t is told `fps`. With `skip` ↑F fills in between key frames that are so far
    apart, and D^t is told `fps` over `skip`.
    """

    frames: int = Field(ge=1)
    fps: float = Field(gt=0)
    size: int = Field(ge=1)
    skip: int | None = Field(None, ge=1)

    @property
    def keys(self) -> int:
        """Key frames that D^t draws for it."""
        return self.frames if self.skip is None else -(-(self.frames - 1) // self.skip) + 1


class Metric(Spec):
    """One score and the choices behind it."""

    metric: Literal["fvd", "fid", "is", "clipsim", "pocket"]
    network: str
    layer: str | None = None
    resize: str | None = None
    covariance: Literal["unbiased", "biased"] | None = None
    frames: int | None = Field(None, description="of each video from its beginning, real and generated")
    fps: float | None = Field(None, description="at which they are taken; null takes them as they come")
    splits: int | None = None
    shuffle_seed: int | None = Field(
        None, description="of the samples before they are split; prompts come class by class"
    )


class Preset(Spec):
    """One benchmark's protocol."""

    name: str
    title: str
    prompts: Prompts
    samples: int = Field(ge=1)
    clip: ClipShape
    seed: int = 0
    metrics: tuple[Metric, ...]
    real: Literal["all", "trainlist01"] = Field("all", description="which of the real videos are measured")
    table: str | None = Field(None, description="the published table beside which the score is shown")
    open: dict[str, str] = Field(default_factory=dict, description="what the paper leaves open, decided here")


@dataclass(frozen=True)
class Prompt:
    """What one sample should show; `sample` numbers its random draws, `label` is its class where the prompts have classes."""

    text: str
    sample: int
    label: str | None = None


@functools.cache
def presets() -> dict[str, Preset]:
    """Every preset by name."""
    text = resources.files("mavcli.evaluation").joinpath("assets", "presets.yaml").read_text(encoding="utf-8")
    # As JSON, so that lists become the tuples of a strict spec.
    return {
        name: Preset.model_validate_json(json.dumps({"name": name, **told}))
        for name, told in yaml.safe_load(text).items()
    }


def find_preset(name: str) -> Preset:
    """The preset of a name. Raises UsageError with the nearest."""
    known = presets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f", did you mean `{near[0]}`" if near else f"; there are {', '.join(known)}"
    raise UsageError(f"there is no preset `{name}`{meant}", hint="mav eval run --list")


def prompts_of(preset: Preset, captions: Path | None, *, sentences: Sentences | None = None) -> list[Prompt]:
    """Every sample that the protocol asks for, in the order of their numbers.

    `captions` is the benchmark's published file or folder; `sentences` names another list of class sentences than the
    preset's. Raises UsageError where it is missing, InputError for a file of another layout or with another count.
    """
    asked = preset.prompts
    if captions is None:
        raise UsageError(
            f"preset `{preset.name}` needs the benchmark's captions, which are not part of mav",
            hint=f"--captions {_CAPTION_HINTS[asked.source]}",
        )
    if captions.is_dir() and asked.source != "ucf101":
        raise InputError(
            f"`{captions}` is a folder, preset `{preset.name}` reads one file",
            hint=f"--captions {_CAPTION_HINTS[asked.source]}",
        )
    if asked.source == "msrvtt":
        texts = msrvtt_captions(captions, per_video=asked.per_video, ascii_only=asked.ascii)
    elif asked.source == "ucf101":
        return _ucf101_prompts(preset, captions, sentences or asked.sentences or "classname")
    else:
        texts = lines(captions)
    if len(texts) != asked.count:
        raise InputError(
            f"`{captions}` gives {len(texts):,} captions, preset `{preset.name}` counts {asked.count:,}",
            hint=f"--captions {_CAPTION_HINTS[asked.source]}",
        )
    each = asked.samples
    return [Prompt(text, number * each + i) for number, text in enumerate(texts) for i in range(each)]


def real_videos(
    preset: Preset, real: Folder, captions: Path | None, *, allow_small: bool
) -> tuple[Folder, str | None]:
    """The real videos that the preset measures, out of a folder that may hold more; and what they depart from it in.

    Raises InputError where some are missing and `allow_small` is not given, or none is there.
    """
    if preset.real == "all" or captions is None:
        return real, None
    file = captions / f"{preset.real}.txt"
    wanted = {line.split()[0].rsplit("/", 1)[-1].rpartition(".")[0] for line in lines(file)}
    index = [i for i, path in enumerate(real.files) if path.stem in wanted]
    missing = sorted(wanted - {real.files[i].stem for i in index})
    if missing and (not allow_small or not index):
        raise InputError(
            f"`{real.root}` lacks {len(missing):,} of the {len(wanted):,} videos of `{file.name}`, which preset `{preset.name}` "
            f"measures; the first is `{missing[0]}`",
            hint="--allow-small measures those that are there, and says so in the score",
        )
    chosen = replace(
        real, files=tuple(real.files[i] for i in index), found=len(index), places=tuple(range(len(index)))
    )
    few = (
        f"{len(wanted) - len(missing):,} real videos, the protocol measures {len(wanted):,}"
        if missing
        else None
    )
    return chosen, few


_CAPTION_HINTS = {
    "msrvtt": "test_videodatainfo.json, or the .zip that holds it",
    "ucf101": "the folder of classInd.txt, trainlist01.txt and zero_shot_prompts.csv",
    "lines": "a text file with a prompt a line",
    "pocket": "",
}


def choose(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts, spread evenly over them, so that a part has the mixture of the whole."""
    if not 1 <= count <= len(prompts):
        raise UsageError(f"{count} samples of {len(prompts):,} that the protocol has", hint="--samples N")
    return [prompts[i * len(prompts) // count] for i in range(count)]


# -- MSR-VTT ----------------------------------------------------------------------------------------------------------------


def msrvtt_captions(file: Path, *, per_video: Literal["every", "first"], ascii_only: bool) -> list[str]:
    """Captions of the test split, by `sen_id`: every one (59,800; 59,794 in ASCII), or the first of each video (2,990).

    `file` is `test_videodatainfo.json`, a JSON of all splits, or a zip that holds one. Raises InputError.
    """
    told = _json_of(file)
    try:
        test = {video["video_id"] for video in told["videos"] if video["split"] == "test"}
        rows = sorted(
            (int(row["sen_id"]), str(row["video_id"]), str(row["caption"]))
            for row in told["sentences"]
            if row["video_id"] in test
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"`{file}` is not MSR-VTT's layout: {type(error).__name__} {error}, wanted `videos` and `sentences`",
            hint=f"--captions {_CAPTION_HINTS['msrvtt']}",
        ) from error
    if not rows:
        raise InputError(
            f"`{file}` holds no caption of the test split", hint=f"--captions {_CAPTION_HINTS['msrvtt']}"
        )
    kept = [(video, text) for _, video, text in rows if not ascii_only or text.isascii()]
    if per_video == "every":
        return [text for _, text in kept]
    first: dict[str, str] = {}
    for video, text in kept:
        first.setdefault(video, text)
    return list(first.values())


def _json_of(file: Path) -> Any:
    """The JSON of a file, or of the one `*videodatainfo.json` in a zip."""
    data = _bytes(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("videodatainfo.json")]
            if len(entries) != 1:
                raise InputError(
                    f"`{file}` holds {len(entries)} files named `*videodatainfo.json`, wanted one"
                )
            if entries[0].file_size > _LARGEST:
                raise InputError(
                    f"`{file}` unpacks to {entries[0].file_size / 1e6:.0f} MB, that is no caption file"
                )
            try:
                data = archive.read(entries[0])
            except (zipfile.BadZipFile, OSError, RuntimeError) as error:
                raise InputError(f"`{file}` is damaged: {str(error).lower()}") from error
    try:
        return json.loads(data)
    except ValueError as error:
        raise InputError(
            f"`{file}` is no JSON: {str(error).lower()}", hint=f"--captions {_CAPTION_HINTS['msrvtt']}"
        ) from error


# -- UCF-101 ----------------------------------------------------------------------------------------------------------------


def _ucf101_prompts(preset: Preset, folder: Path, sentences: Sentences) -> list[Prompt]:
    classes = ucf101_classes(folder)
    if len(classes) != preset.prompts.count:
        raise InputError(
            f"`{folder / 'classInd.txt'}` names {len(classes)} classes, preset `{preset.name}` counts {preset.prompts.count}"
        )
    texts = ucf101_sentences(folder, sentences)
    counts = apportion(ucf101_training_counts(folder), preset.samples)
    labels = [label for label in classes for _ in range(counts[label])]
    return [Prompt(texts[label], number, label) for number, label in enumerate(labels)]


def ucf101_classes(folder: Path) -> list[str]:
    """The class names of `classInd.txt`, in its order. Raises InputError."""
    if not (folder / "classInd.txt").is_file():
        raise InputError(
            f"there is no `{folder / 'classInd.txt'}`", hint=f"--captions {_CAPTION_HINTS['ucf101']}"
        )
    rows = [line.split() for line in lines(folder / "classInd.txt")]
    wrong = next((row for row in rows if len(row) != 2 or not row[0].isdigit()), None)
    if wrong is not None or not rows:
        raise InputError(
            f"`{folder / 'classInd.txt'}` is not UCF-101's layout, wanted `1 ApplyEyeMakeup`, ..."
        )
    return [name for _, name in sorted((int(number), name) for number, name in rows)]


def ucf101_training_counts(folder: Path) -> dict[str, int]:
    """How many videos of each class the first training split has (`trainlist01.txt`: 9,537). Raises InputError."""
    file, classes = folder / "trainlist01.txt", ucf101_classes(folder)
    counts = Counter(line.split("/")[0] for line in lines(file))
    odd = sorted(set(counts) ^ set(classes))
    if odd:
        raise InputError(
            f"`{file}` and `{folder / 'classInd.txt'}` differ in {len(odd)} classes, the first is `{odd[0]}`"
        )
    return {name: counts[name] for name in classes}


def ucf101_sentences(folder: Path, name: Sentences) -> dict[str, str]:
    """Class -> sentence: `classname` splits the class's own name, the others are columns of `zero_shot_prompts.csv`."""
    classes = ucf101_classes(folder)
    if name == "classname":
        return {label: _split_name(label) for label in classes}
    file = folder / "zero_shot_prompts.csv"
    table = Table(file, keys=("class",), texts=(f"{name}_prompt",))
    if not table.fits:
        raise InputError(
            f"`{file}` lacks the columns `class` and `{name}_prompt`",
            hint="--sentences classname needs no such file",
        )
    told = {}
    for line, label, text, fault in table.rows():
        if fault is not None:
            raise InputError(f"`{file}:{line}` {fault}")
        told[str(label)] = text
    missing = [label for label in classes if not told.get(label)]
    if missing:
        raise InputError(
            f"`{file}` has no `{name}` sentence for {len(missing)} classes, the first is `{missing[0]}`"
        )
    return {label: told[label] for label in classes}


def _split_name(label: str) -> str:
    """`ApplyEyeMakeup` -> `apply eye makeup`."""
    words = "".join(
        f" {c}" if c.isupper() and i and not label[i - 1].isupper() else c for i, c in enumerate(label)
    )
    return words.strip().lower()


def apportion(weights: dict[str, int], total: int) -> dict[str, int]:
    """`total` shared out in proportion to `weights`, each share rounded so that they sum to it (largest remainders)."""
    whole = sum(weights.values())
    shares = {name: total * weight // whole for name, weight in weights.items()}
    rest = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in rest[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


# -- files ------------------------------------------------------------------------------------------------------------------


def lines(file: Path) -> list[str]:
    """The lines of a text file that say something. Raises InputError."""
    found = [line for _, line in text_lines(_bytes(file), str(file))]
    if not found:
        raise InputError(f"`{file}` holds no text", hint="write one a line")
    return found


def _bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"`{file}` has {file.stat().st_size / 1e6:.0f} MB, that is no caption file")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read `{file}`: {(error.strerror or str(error)).lower()}") from error
