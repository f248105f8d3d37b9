"""`auto` becomes a value with its reason; what was asked for by name never becomes something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mavcli.errors import UsageError
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.recipe.resolve import CudaDevice, Machine, probe_machine, resolve
from mavcli.recipe.schema import Hardware, Recipe

GIB = 1 << 30
CPU = Machine(cores=2)
ONE = Machine(cores=8, cuda=(CudaDevice("NVIDIA H200", 140 * GIB),))
TWO = Machine(cores=8, cuda=(CudaDevice("NVIDIA H200", 140 * GIB),) * 2)
OLD = Machine(cores=8, cuda=(CudaDevice("Tesla V100", 16 * GIB, bf16=False),))


def recipe(**hardware: object) -> Recipe:
    return Recipe(name="x", hardware=Hardware(**hardware))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "training", "backend", "device", "reason"),
    [
        (CPU, False, "cpu", "cpu", "torch sees no CUDA device"),
        (ONE, False, "cuda", "cuda:0", "NVIDIA H200 with 140 GiB"),
        (TWO, True, "multi-gpu", "cuda:0", "2 CUDA devices, the first is NVIDIA H200 with 140 GiB"),
        (TWO, False, "cuda", "cuda:0", "NVIDIA H200 with 140 GiB, one of 2: a clip is made on one device"),
    ],
)
def test_auto_takes_what_the_machine_has(
    machine: Machine, training: bool, backend: str, device: str, reason: str
) -> None:
    found = resolve(recipe(), machine=machine, training=training)
    assert (found.backend, found.device, found.reasons["backend"]) == (backend, device, reason)
    assert found.devices == (2 if backend == "multi-gpu" else 1)


@pytest.mark.parametrize(("backend", "machine"), [("cuda", CPU), ("multi-gpu", CPU), ("multi-gpu", ONE)])
def test_a_device_that_is_not_there_is_an_error_and_no_fallback(backend: str, machine: Machine) -> None:
    with pytest.raises(UsageError, match=f"hardware.backend: {backend}") as caught:
        resolve(recipe(backend=backend), machine=machine)
    assert caught.value.exit_code == 2 and caught.value.hint


def test_a_device_can_be_left_alone() -> None:
    assert resolve(recipe(backend="cpu"), machine=TWO, training=True).device == "cpu"


@pytest.mark.parametrize(
    ("machine", "wanted", "dtype", "reason"),
    [
        (ONE, "auto", "bfloat16", "NVIDIA H200 has bfloat16"),
        (OLD, "auto", "float32", "Tesla V100 has no bfloat16 arithmetic"),
        (CPU, "auto", "float32", "this CPU has no bfloat16 arithmetic"),
        (Machine(cores=2, cpu_bf16="avx512_bf16"), "auto", "bfloat16", "this CPU has avx512_bf16"),
        (CPU, "bfloat16", "bfloat16", "asked for, though this CPU has no bfloat16 arithmetic: slow"),
        (ONE, "float32", "float32", "asked for"),
    ],
)
def test_bfloat16_is_taken_where_the_hardware_multiplies_it(
    machine: Machine, wanted: str, dtype: str, reason: str
) -> None:
    found = resolve(recipe(dtype=wanted), machine=machine)
    assert (found.dtype, found.reasons["dtype"]) == (dtype, reason)


def test_threads_are_the_cores_unless_said_otherwise() -> None:
    assert resolve(recipe(), machine=CPU).threads == 2
    assert (
        resolve(recipe(), machine=Machine(cores=8, omp_threads=3)).reasons["threads"] == "OMP_NUM_THREADS=3"
    )
    many = resolve(recipe(threads=4), machine=CPU)
    assert (many.threads, many.reasons["threads"]) == (4, "asked for, though there are 2 cores to use")


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("backend", ["auto", "cpu", "cuda", "multi-gpu"])
def test_every_shipped_recipe_resolves_for_every_backend(name: str, backend: str) -> None:
    loaded = load_recipe(name, overrides={"hardware.backend": backend})
    found = resolve(loaded.recipe, machine=TWO)
    assert {"backend", "dtype", "threads"} == set(found.reasons) - {"devices"} and all(found.reasons.values())


def test_this_machine_can_be_probed() -> None:
    machine = probe_machine()
    assert machine.cores >= 1 and resolve(recipe(), machine=machine).threads >= 1


def test_recipes_are_checked_without_torch() -> None:
    code = (
        "import sys; from mavcli.recipe.load import load_recipe; from mavcli.recipe.resolve import Machine, resolve\n"
        "resolve(load_recipe('pocket').recipe, machine=Machine(cores=1))\n"
        "assert not {'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
