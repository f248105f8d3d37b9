"""For every cache: what is found equals what would be made, after any sequence of changes to what decides it.

Files are rewritten in place, exchanged with their size and date kept, removed and put back; recipes, weights, arithmetic and
versions change. After each step the warm result is compared with that of an empty cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from PIL import Image
from tiny_family import random_network, tiny_recipe

from mavcli.data.index import indexed
from mavcli.data.places import Place
from mavcli.engine import backend as backends
from mavcli.engine.backend import Backend
from mavcli.engine.cascade import Cascade
from mavcli.engine.family import find_family
from mavcli.engine.randomness import Draw
from mavcli.engine.work import Work
from mavcli.errors import WeightsError
from mavcli.evaluation.clips import FrameChoice, open_folder
from mavcli.evaluation.features import measure
from mavcli.evaluation.shards import Shard
from mavcli.models.clip import ClipReader
from mavcli.report import Silent
from mavcli.training.embeddings import Embeddings
from mavcli.weights.provenance import WeightsHeader, load_weights, save_weights

CPU = torch.device("cpu")
FEW = settings(
    max_examples=6,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class Machine(RuleBasedStateMachine):
    """Two caches: one that stays, and an empty one for each comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory(prefix="mav-caches-")
        self.root = Path(self.place.name)
        self.patch = pytest.MonkeyPatch()
        self.seen = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.place.cleanup()

    def with_cache(self, cold: bool, make: Callable[[Path], Any]) -> Any:
        self.seen += 1
        folder = self.root / (f"cold{self.seen}" if cold else "warm")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAV_CACHE", str(folder))
            return make(folder)

    def compare(self, make: Callable[[Path], Any], same: Callable[[Any, Any], bool]) -> None:
        cold = self.with_cache(True, make)
        for _ in range(2):
            assert same(self.with_cache(False, make), cold)


def rewrite(path: Path, data: bytes, *, keep_date: bool) -> None:
    """In place; the date of writing may be put back."""
    date = path.stat() if keep_date and path.exists() else None
    path.write_bytes(data)
    if date is not None:
        os.utime(path, ns=(date.st_atime_ns, date.st_mtime_ns))


class Files(Machine):
    """Weights and pictures on the disk: the record of digests, the index, features."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.media = self.root / "decoder.safetensors", self.root / "media"
        self.media.mkdir()
        self.versions: list[bytes] = []
        for seed in range(2):
            tensors = {"a": torch.full((40,), float(seed)), "b": torch.arange(9.0) + seed}
            spec = tiny_recipe_of().cascade.decoder.network
            save_weights(self.weights, tensors, WeightsHeader(role="decoder", spec=spec))
            self.versions.append(self.weights.read_bytes())
        self.versions.append(self.versions[0][:-1] + bytes([self.versions[0][-1] ^ 0x80]))  # rotten
        self.network = Mean()
        for name in ("a", "b"):
            self.draw_picture(name, 0, False)

    @rule(version=st.integers(0, 2), keep_date=st.booleans())
    def change_weights(self, version: int, keep_date: bool) -> None:
        rewrite(self.weights, self.versions[version], keep_date=keep_date)

    @rule(name=st.sampled_from("abc"), shade=st.integers(0, 3), keep_date=st.booleans())
    def draw_picture(self, name: str, shade: int, keep_date: bool) -> None:
        """0 is no picture at all; all have one size in bytes."""
        path, new = self.media / f"{name}.bmp", self.root / "new.bmp"
        Image.fromarray(np.full((8, 8, 3), 60 * shade, np.uint8)).save(new)
        data = new.read_bytes()
        rewrite(path, bytes(len(data)) if shade == 0 else data, keep_date=keep_date)

    @rule(name=st.sampled_from("abc"))
    def remove_picture(self, name: str) -> None:
        (self.media / f"{name}.bmp").unlink(missing_ok=True)

    @rule(factor=st.sampled_from([1.0, 2.0]))
    def change_network(self, factor: float) -> None:
        self.network = Mean(factor)

    @invariant()
    def weights_are_the_same(self) -> None:
        def loaded(cache: Path) -> Any:
            try:
                return load_weights(self.weights)
            except WeightsError as error:
                return error.message

        def same(a: Any, b: Any) -> bool:
            if isinstance(a, str) or isinstance(b, str):
                return bool(a == b)
            return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

        self.compare(loaded, same)

    @invariant()
    def the_index_is_the_same(self) -> None:
        names = sorted(path.name for path in self.media.iterdir())
        places = [Place(name, str(self.media / name)) for name in names]
        self.compare(lambda cache: indexed(str(self.media), places, kind="image")[0], lambda a, b: a == b)

    @invariant()
    def features_are_the_same(self) -> None:
        def rows(cache: Path) -> Any:
            folder = open_folder(self.media, pictures=True)
            choice, shard = FrameChoice(count=1), Shard()
            found = measure(
                folder, self.network, choice, cache=cache, shard=shard, report=Silent(), workers=1
            )
            return [found.names, found.faults, [row.tolist() for row in found.clips()]]

        if any(self.media.iterdir()):
            self.compare(rows, lambda a, b: a == b)


class Mean:
    """A measuring network of one number."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.facts = factor, {"name": "mean", "factor": factor}

    def prepare(self, frames: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames)).float().mean().reshape(1, 1)

    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared * self.factor


class Runs(Machine):
    """What commands keep of their work, and trainings of the towers' words, while all that decides it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe = self.root / "tiny.yaml"
        shutil.copytree(TINY[0].parent, self.root, dirs_exist_ok=True)
        self.skip, self.seed, self.threads, self.dtype, self.code = 5, 0, 1, torch.float32, 0.0
        self.patch.setattr(Cascade, "_prior", lambda cascade, prompts, draws: self.made(cascade, draws))

    def made(self, cascade: Cascade, draws: Any) -> torch.Tensor:
        """Stands for P: a number of all that decides what a network says."""
        network = load_weights(
            cascade.family.parts["prior"].path, expect_sha256=cascade.family.parts["prior"].sha256
        )
        part = cascade.parts.prior
        return torch.tensor(
            [
                float(network["prd_emb"].double().sum()),
                float(part.sampler.calls),
                float(draws[0].seed),
                float(cascade.backend.threads),
                float(cascade.backend.dtype == torch.float32),
                self.code,
            ]
        )

    @rule(seed=st.integers(0, 1))
    def draw(self, seed: int) -> None:
        self.seed = seed

    @rule(steps=st.integers(2, 3))
    def change_recipe(self, steps: int) -> None:
        self.skip = steps

    @rule(threads=st.integers(1, 2), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def change_arithmetic(self, threads: int, dtype: torch.dtype) -> None:
        self.threads, self.dtype = threads, dtype

    @rule(code=st.integers(0, 1))
    def change_mav(self, code: int) -> None:
        self.code = float(code)
        self.patch.setattr(backends, "code_sha256", lambda: str(code))

    @rule(seed=st.integers(0, 1))
    def train_again(self, seed: int) -> None:
        spec = tiny_recipe(self.recipe).cascade.prior.network
        network = random_network(spec, seed=seed).state_dict()
        save_weights(
            self.root / "weights" / "prior.safetensors", network, WeightsHeader(role="prior", spec=spec)
        )

    @invariant()
    def embeddings_of_p_are_the_same(self) -> None:
        recipe = tiny_recipe(self.recipe, f"cascade.prior.sampler.steps={self.skip}")
        backend = Backend(CPU, self.dtype, self.threads)

        def run(cache: Path) -> torch.Tensor:
            family = find_family(recipe, ["clip", "prior"])
            return Cascade(recipe, family, backend, work=Work(cache / "work")).image_embedding(
                ["a dog"], [Draw(self.seed)]
            )

        self.compare(run, torch.equal)

    @invariant()
    def what_the_towers_say_is_the_same(self) -> None:
        spec = tiny_recipe(self.recipe).cascade.clip.network
        towers = Towers(spec, self.seed + self.code + self.threads)
        backend = Backend(CPU, self.dtype, self.threads)

        def said(cache: Path) -> torch.Tensor:
            kept = Embeddings(
                towers, backend, sha256=str(self.seed), folder=cache / "embeddings", limit=10**6
            )
            row = kept.of_pictures(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))
            kept.flush()
            return row

        self.compare(said, torch.equal)


class Towers(ClipReader):
    """Stands for CLIP: says a number of all that decides what it says."""

    def __init__(self, spec: Any, says: float) -> None:
        super().__init__(spec)
        self.says, self.towers = says, torch.nn.Module()
        self.towers.positional_embedding = torch.zeros(2, 3)
        self.towers.text_projection = torch.zeros(3, 4)

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 4), self.says)


TINY: list[Path] = []


def tiny_recipe_of() -> Any:
    return tiny_recipe(TINY[0])


@pytest.fixture(scope="module", autouse=True)
def _family(tiny: Path) -> None:
    TINY[:] = [tiny]


def _case(machine: type[Machine]) -> Any:
    case = machine.TestCase
    case.settings = FEW
    return case


TestWhatIsKnownOfFilesIsWhatTheyHold = _case(Files)
TestWhatIsKeptOfRunsIsWhatTheyWouldMake = _case(Runs)
