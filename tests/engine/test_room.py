"""A network that has no room on this machine is refused in one line before any work; one that has is not."""

from __future__ import annotations

import pytest

from mavcli.cli.app import run
from mavcli.engine.cost import parameter_count
from mavcli.engine.family import Part
from mavcli.engine.room import check_inflation, check_parts, check_training
from mavcli.errors import OutOfMemoryError
from mavcli.recipe.load import load_recipe
from mavcli.recipe.resolve import CudaDevice, Machine, Resolved, free_memory

GIB = 1 << 30
SMALL = Machine(cores=2, memory=24 * GIB, free=20 * GIB)
CPU = Resolved("cpu", "cpu", 1, "float32", 2)
GPU = Resolved("cuda", "cuda:0", 1, "bfloat16", 2)
BIG = [
    "cascade.decoder.network.model_channels=1536",
    "cascade.decoder.network.attention_resolutions=[]",
    "cascade.decoder.network.mid_attention=false",
]


def parts(name: str, *sets: str) -> list[Part]:
    cascade = load_recipe(name, sets=sets).recipe.cascade
    specs = {"clip": cascade.clip, "prior": cascade.prior, "decoder_t": cascade.decoder, "sr_l": cascade.sr_l}
    return [Part(piece, piece, part.network) for piece, part in specs.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pocket", "tiny", "karlo", "paper"])
def test_every_shipped_cascade_has_room_on_24_gib(name):
    check_parts(parts(name), machine=SMALL, resolved=CPU)


def test_where_memory_is_not_known_nothing_is_refused():
    check_parts(parts("pocket", *BIG), machine=Machine(cores=1), resolved=CPU)


def test_a_network_of_more_bytes_than_are_free_is_refused_with_the_arithmetic():
    network = parts("pocket", *BIG)[2]
    count = parameter_count(network.spec)
    with pytest.raises(OutOfMemoryError) as told:
        check_parts([network], machine=SMALL, resolved=CPU)
    assert told.value.exit_code == 5 and told.value.message == (
        f"D^t has at least {count / 1e9:.3g} billion parameters, which take {4 * count / 1e9:,.1f} GB, "
        "and 21.5 GB of memory are free here"
    )
    check_parts([network], machine=Machine(cores=2, free=4 * count), resolved=CPU)


def test_a_giant_is_refused_before_it_is_built_even_without_memory(monkeypatch):
    network = parts("pocket", *BIG, "cascade.decoder.network.model_channels=16384")[2]
    monkeypatch.setattr("mavcli.engine.room.parameter_count", None)
    with pytest.raises(OutOfMemoryError, match=r"D\^t has at least .* billion parameters"):
        check_parts([network], machine=SMALL, resolved=CPU)


def test_a_gpu_has_a_memory_of_its_own():
    machine = Machine(cores=2, free=1000 * GIB, cuda=(CudaDevice("a GPU", 2 * GIB),))
    check_parts(parts("pocket"), machine=machine, resolved=GPU)
    with pytest.raises(OutOfMemoryError, match=r"a GPU has 2\.1 GB"):
        check_parts(parts("karlo"), machine=machine, resolved=GPU)
    check_parts(parts("karlo"), machine=machine, resolved=CPU)


def test_training_holds_more_than_the_weights_and_fsdp_shares_it_out():
    recipe = load_recipe("karlo").recipe
    spec, config = recipe.cascade.decoder.network, recipe.stage("decoder_t")
    count = parameter_count(spec)
    for train, each in (("all", 16), ("temporal", 8)):
        set_to = config.model_copy(update={"train": train, "sharding": "ddp"})
        enough = Machine(cores=2, free=count * each)
        check_training("decoder_t", spec, set_to, machine=enough, resolved=CPU)
        with pytest.raises(OutOfMemoryError, match="stage `decoder_t`"):
            check_training("decoder_t", spec, set_to, machine=Machine(cores=2, free=count * each * 2 // 3), resolved=CPU)  # fmt: skip
    two = Machine(cores=2, free=1000 * GIB, cuda=(CudaDevice("a GPU", 9 * count),) * 2)
    both = Resolved("multi-gpu", "cuda:0", 2, "bfloat16", 2)
    whole = config.model_copy(update={"train": "all", "sharding": "ddp"})
    with pytest.raises(OutOfMemoryError):
        check_training("decoder_t", spec, whole, machine=two, resolved=both)
    shared = whole.model_copy(update={"sharding": "fsdp"})
    check_training("decoder_t", spec, shared, machine=two, resolved=both)


def test_inflation_needs_room_for_one_stage():
    spec = load_recipe("karlo").recipe.cascade.sr_h.network
    check_inflation(spec, free=GIB)
    check_inflation(spec, free=0)
    with pytest.raises(OutOfMemoryError, match=r"one stage of the network takes at least"):
        check_inflation(spec, free=50_000_000)


@pytest.mark.parametrize(
    "words", [("generate", "a dog surfing", "-q"), ("train-stage", "decoder_t", "pocket")]
)
def test_a_command_refuses_a_giant_in_one_line_before_any_work(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [word for setting in [*BIG, "weights.dir=none", "train.out=none"] for word in ("--set", setting)]
    more = ["--random-weights"] if words[0] == "generate" else ["--start", "scratch"]
    monkeypatch.setattr("mavcli.recipe.resolve.free_memory", lambda: 20 * GIB)
    assert run([*words, *sets, *more, "--backend", "cpu"]) == 5
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(told) == 2 and "21.5 GB of memory are free here" in told[0], told
    assert told[0].startswith("error: ") and told[1].startswith("hint: a smaller recipe"), told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_it_and_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mavcli.recipe.resolve.free_memory", lambda: 20 * GIB)
    sets = [word for setting in [*BIG, "weights.dir=none"] for word in ("--set", setting)]
    assert (
        run(["generate", "a dog surfing", "-q", *sets, "--random-weights", "--backend", "cpu", "--dry-run"])
        == 0
    )
    assert "21.5 GB of memory are free here" in capsys.readouterr().err


def test_what_is_free_is_the_kernels_word_cut_by_the_containers_limit(tmp_path):
    assert free_memory(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal: 100 kB\nMemAvailable:   60 kB\nSwapFree: 5 kB\nHugePages_Total: 0\n"
    )
    assert free_memory(tmp_path) == 65 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("9000\n")
    (group / "memory.stat").write_text("anon 5000\nfile 3000\nshmem 1000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 65 * 1024
    (group / "memory.max").write_text("10000\n")
    assert free_memory(tmp_path) == 10_000 - 9000 + 3000 - 1000
