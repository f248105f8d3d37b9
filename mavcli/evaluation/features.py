"""Features of clips, computed once: read, squared, sent through a network, kept on disk by content.

A feature is found again by the bytes of its file and by everything else that decides it: frames, network, weights, resize,
layer, device, versions. Work is done and kept batch by batch, so a run that is killed loses one batch, and memory does not
grow with the number of clips; ranks share the folder and take every n-th batch.

n rows, d features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mavcli import stopping
from mavcli.engine.backend import Backend
from mavcli.errors import DiskError, InputError, Interrupted, WeightsError
from mavcli.evaluation.clips import Folder, FrameChoice, content_sha256, read_frames
from mavcli.evaluation.fingerprint import package_versions
from mavcli.evaluation.shards import Shard
from mavcli.files import finished_files, make_folder, write_bytes
from mavcli.media.frames import Frames
from mavcli.media.image import read_image
from mavcli.report import Report

Rows = NDArray[np.float32]


class FeatureNetwork(Protocol):
    """A measuring network with its own way of preparing frames."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything about it that decides a feature, JSON values."""

    def prepare(self, frames: Frames) -> Tensor:
        """frames (f, h, w, 3) uint8 -> its input on the CPU (k, ...), k rows of features."""

    def features(self, prepared: Tensor) -> Tensor:
        """Inputs of one or more clips (n, ...) -> (n, d) float32."""


@dataclass(frozen=True)
class Entry:
    """The features (k, d) of one clip, under the digest of its file, and the size of its frames in words."""

    digest: str
    rows: Tensor
    size: str


@dataclass(frozen=True)
class _Place:
    """Where a clip's rows are: in which batch file, from where, how many."""

    name: str
    start: int
    count: int
    size: str


@dataclass(frozen=True)
class Measured:
    """The features of a folder: the digests of the clips that were measured, in order, and the faults of the others."""

    store: FeatureStore
    digests: tuple[str, ...]
    names: tuple[str, ...]
    faults: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.digests)

    def clips(self) -> Iterator[Rows]:
        """The rows (k, d) of each clip, in order, from the disk."""
        return self.store.rows(self.digests)

    def blocks(self, clips: int = 256) -> Iterator[Rows]:
        """The rows of `clips` clips at a time: sums over them do not depend on how the work was divided."""
        for start in range(0, len(self.digests), clips):
            yield np.concatenate(list(self.store.rows(self.digests[start : start + clips])))

    @property
    def rows(self) -> int:
        return sum(self.store.count(digest) for digest in self.digests)

    @property
    def sizes(self) -> dict[str, int]:
        """`WIDTH x HEIGHT` -> how many clips have frames of it, the most frequent first."""
        return dict(Counter(self.store.size(digest) for digest in self.digests).most_common())


class FeatureStore:
    """A folder of batches for one way of measuring. Entries are whole or absent; a damaged one is made anew."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """`facts` is everything but the clip's content that decides a feature."""
        text = json.dumps(facts, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._facts = text
        self._places: dict[str, _Place] = {}
        self._known: set[str] = set()
        self._open: tuple[str, Rows] | None = None
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def refresh(self) -> None:
        """See what other processes have added."""
        for path in finished_files(self.folder, "*.safetensors"):
            if path.name not in self._known:
                self._known.add(path.name)
                self._index(path)

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep the features of some clips as one file. Raises DiskError where it cannot be written."""
        stopping.check()  # what was being stopped may have made them
        if not entries:
            return
        joined = torch.cat([entry.rows for entry in entries]).contiguous()
        items = json.dumps([[entry.digest, len(entry.rows), entry.size] for entry in entries])
        told = {"items": items, "facts": self._facts, "sha256": _digest(joined)}
        name = hashlib.sha256(items.encode()).hexdigest()[:32] + ".safetensors"
        path = self.folder / name
        try:
            make_folder(self.folder)
            write_bytes(path, save({"features": joined}, metadata=told), overwrite=True, durable=False)
        except DiskError as error:
            raise DiskError(
                f"cannot keep features: {error.message}", hint="MAV_CACHE=/a/larger/disk mav eval ..."
            ) from error
        self._known.add(name)
        self._place(name, json.loads(items))

    def rows(self, digests: Iterable[str]) -> Iterator[Rows]:
        """The rows (k, d) of each clip, one batch file in memory at a time. Raises KeyError for a clip that is not kept."""
        for digest in digests:
            place = self._places[digest]
            if self._open is None or self._open[0] != place.name:
                with safe_open(self.folder / place.name, "pt") as file:
                    self._open = (place.name, file.get_tensor("features").numpy())
            yield self._open[1][place.start : place.start + place.count]

    def count(self, digest: str) -> int:
        """How many rows a clip has."""
        return self._places[digest].count

    def size(self, digest: str) -> str:
        """`WIDTH x HEIGHT` of a clip's frames, pixels."""
        return self._places[digest].size

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                features = file.get_tensor("features")
            items = json.loads(told["items"])
            if told["sha256"] != _digest(features) or sum(count for _, count, _ in items) != len(features):
                raise ValueError("damaged")
        except FileNotFoundError:
            return
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.unlink()
            return
        self._place(path.name, items)

    def _place(self, name: str, items: Iterable[tuple[str, int, str]]) -> None:
        start = 0
        for digest, count, size in items:
            self._places[digest] = _Place(name, start, count, size)
            start += count


def measure(
    folder: Folder,
    network: FeatureNetwork,
    choice: FrameChoice,
    *,
    cache: Path,
    shard: Shard,
    report: Report,
    batch: int = 8,
    workers: int = 2,
) -> Measured:
    """The features of every usable clip of `folder`; only those are computed that `cache` lacks.

    Batches have fixed places in the folder, so what is computed does not depend on what was there before, nor on the number
    of ranks. On ranks that do not lead the result is the same. Raises Interrupted on Ctrl-C: what is done is kept; WeightsError
    for features that are not finite, which are not kept.
    """
    store = FeatureStore(cache, facts_of(network, choice, shard))
    faults: dict[int, str] = {}
    digests: dict[int, str] = {}
    mine = range(shard.rank * batch, len(folder), shard.size * batch)
    report.stage(f"measuring {folder.root.name or folder.root}", len(folder))
    done = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for start in mine:
            numbers = range(start, min(start + batch, len(folder)))
            found = _digested(folder, numbers, faults)
            digests.update(found)
            missing = [(i, digest) for i, digest in found.items() if digest not in store]
            _measure_batch(folder, network, choice, missing, faults, store, pool, workers, shard)
            done += len(numbers)
            report.advance(len(numbers) * shard.size)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            f"interrupted, {done} of {len(folder)} clips of `{folder.root}` are measured and kept",
            hint="the same command goes on from there",
            exit_code=getattr(error, "exit_code", 130),
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return _joined(folder, store, digests, faults, shard)


def facts_of(network: FeatureNetwork, choice: FrameChoice, shard: Shard) -> dict[str, Any]:
    """All that decides a feature beside the file; of several ranks, any may have computed it."""
    arithmetic = Backend(shard.device, torch.float32, torch.get_num_threads()).facts()
    return {
        "format": 2,
        "network": dict(network.facts),
        "frames": choice.facts(),
        "arithmetic": [json.loads(line) for line in sorted(set(shard.gather([json.dumps(arithmetic)])))],
        "versions": package_versions(),
    }


def _digested(folder: Folder, numbers: Iterable[int], faults: dict[int, str]) -> dict[int, str]:
    """Number -> digest of the files that can be read."""
    found = {}
    for index in numbers:
        try:
            found[index] = content_sha256(folder.files[index])
        except InputError as error:
            faults[index] = error.message
    return found


def _measure_batch(
    folder: Folder,
    network: FeatureNetwork,
    choice: FrameChoice,
    missing: Sequence[tuple[int, str]],
    faults: dict[int, str],
    store: FeatureStore,
    pool: ThreadPoolExecutor,
    ahead: int,
    shard: Shard,
) -> None:
    """Read, compute and keep one batch; reading runs `ahead` clips ahead of the network, and no further: they are large."""

    def prepare(path: Path) -> tuple[Tensor, str]:
        frames = read_image(path)[None] if folder.kind == "pictures" else read_frames(path, choice)
        try:
            return network.prepare(frames), f"{frames.shape[2]} x {frames.shape[1]}"
        except InputError as error:
            raise InputError(f"`{path}`: {error.message}", hint=error.hint) from error

    jobs = ((i, digest, pool.submit(prepare, folder.files[i])) for i, digest in missing)
    waiting = deque(islice(jobs, ahead))
    rows: list[Entry] = []
    while waiting:
        index, digest, result = waiting.popleft()
        waiting.extend(islice(jobs, 1))
        try:
            prepared, size = result.result()
        except InputError as error:
            faults[index] = error.message
            continue
        # Clip by clip: a feature must not depend on which clips shared its batch.
        features = network.features(prepared.to(shard.device)).float().cpu()
        if not bool(features.isfinite().all()):
            raise WeightsError(
                f"{network.facts['name']} gives values that are not finite for `{folder.files[index]}`",
                hint="its weights are damaged, or --eps is not theirs",
            )
        rows.append(Entry(digest, features, size))
    store.put(rows)


def _joined(
    folder: Folder, store: FeatureStore, digests: dict[int, str], faults: dict[int, str], shard: Shard
) -> Measured:
    """What all ranks found, on each of them."""
    said = shard.gather([json.dumps([digests, faults])])
    for text in said:
        theirs, wrong = json.loads(text)
        digests.update({int(index): digest for index, digest in theirs.items()})
        faults.update({int(index): fault for index, fault in wrong.items()})
    store.refresh()
    usable = [i for i in range(len(folder)) if i not in faults]
    lacking = next((i for i in usable if digests.get(i, "") not in store), None)
    if lacking is not None:
        raise DiskError(
            f"the features of `{folder.name(lacking)}` are not in {store.folder}",
            hint="all ranks need one cache: MAV_CACHE=/a/shared/folder torchrun ...",
        )
    return Measured(
        store,
        tuple(digests[i] for i in usable),
        tuple(folder.name(i) for i in usable),
        tuple(faults[i] for i in sorted(faults)),
    )


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
