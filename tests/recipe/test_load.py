"""YAML -> Recipe: what is accepted, in which order it is laid together, and how faults are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavcli.errors import RecipeError
from mavcli.recipe.load import as_yaml, find_recipe, list_recipes, load_recipe
from mavcli.recipe.yaml_tree import parse, scalar


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults(path: Path, **arguments: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **arguments)  # type: ignore[arg-type]
    return [line.replace(str(path.parent) + "/", "") for line in caught.value.message.splitlines()]


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_loads_and_shows_itself_as_yaml(name: str, tmp_path: Path) -> None:
    loaded = load_recipe(name)
    assert loaded.recipe.description, "a shipped recipe says what it is for"
    text = "\n".join("  " * depth + line for depth, _, line in as_yaml(loaded.recipe))
    again = load_recipe(write(tmp_path, text))
    assert again.recipe == loaded.recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E+3", 1000.0), ("-.5", -0.5), ("3", 3), ("+3", 3), ("3.", 3.0), ("true", True), ("~", None),
     ("", None), ("yes", "yes"), ("no", "no"), ("on", "on"), ("True", "True"), ("12:30", "12:30"), ("017", "017"),
     ("0x1F", "0x1F"), ("1_000", "1_000"), (".inf", ".inf"), (".nan", ".nan"), ("2026-01-01", "2026-01-01"),
     ("e5", "e5"), ("1.2.3", "1.2.3")],
)  # fmt: skip
def test_a_word_means_what_it_looks_like(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value and type(found) is type(value)


def test_quoted_words_are_text() -> None:
    assert parse("a: '1'\nb: \"true\"\nc: |\n  3\n", "x").value == {"a": "1", "b": "true", "c": "3\n"}


def test_all_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """name: x
cascade:
  decoder:
    network: {model_chanels: 3, num_res_blocks: yes}
  prior:
    sampler: {name: ddmi, eta: 2, steps: 1.5}
output:
  fps: 12:30
  crf: 1
  crf: 2
train:
  lr: 3
  stages:
    decodr: {steps: 1}
hardware: {threads: many}
weights: [a]
""",
    )
    assert faults(path) == [
        "r.yaml:4: cascade.decoder.network.num_res_blocks: `yes` must be a whole number or a list",
        "r.yaml:4: cascade.decoder.network.model_chanels: unknown key, did you mean `model_channels`",
        "r.yaml:6: cascade.prior.sampler.name: `ddmi` must be one of `ddpm`, `ddim`, `dpm++2m`, did you mean `ddpm`",
        "r.yaml:6: cascade.prior.sampler.steps: `1.5` must be a whole number or a list",
        "r.yaml:6: cascade.prior.sampler.eta: `2` must be 0 to 1",
        "r.yaml:8: output.fps: `12:30` must be a number",
        "r.yaml:10: output.crf: written twice, first on line 9",
        "r.yaml:12: train.lr: unknown key here, did you mean `train.defaults.lr` or `train.stages.STAGE.lr`",
        "r.yaml:14: train.stages.decodr: unknown stage, did you mean `decoder`",
        "r.yaml:15: hardware.threads: `many` must be `auto` or a whole number",
        'r.yaml:16: weights: `["a"]` must be a map',
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x 1\noutput: {crf: *x}", "r.yaml:2: output.crf: the alias `*x` is not allowed, write the value again"),
        ("name: !!python/name:os.system x", "r.yaml:1: name: the tag `tag:yaml.org,2002:python/name:os.system` is not allowed"),
        ("output:\n  <<: {crf: 1}", "r.yaml:2: output: merge keys (`<<`) are not allowed, use `extends`"),
        ("output: {crf: 1", ": no valid YAML: "),
        ("a: 1\n---\nb: 2", "r.yaml:2: a second document, a recipe is one"),
        ("- 1", "r.yaml:1: must be a map of keys and values"),
        ("just words", "r.yaml:1: must be a map of keys and values"),
        ("{[1]: 2}", "r.yaml:1: a key must be a word"),
        ("a: " + "[" * 200, "nested deeper than 32 levels"),
        ("#" * (1 << 20) + "\n", "r.yaml:1: larger than 1024 KiB, a recipe is not"),
        (
            "cascade: {prior: {sampler: {steps: [999, x]}}}",
            "r.yaml:1: cascade.prior.sampler.steps.1: `x` must be a whole number",
        ),
        ("output: {fps: 1e999}", "r.yaml:1: output.fps: `1e999` must be a finite number"),
        ("output: {sheet: yes}", "r.yaml:1: output.sheet: `yes` must be `true` or `false`"),
        ("description: 3", "r.yaml:1: description: `3` must be text (put it in quotes)"),
        ("train: {stages: {clip: {betas: [1, 2, 3]}}}",
         "r.yaml:1: train.stages.clip.betas: `[1, 2, 3]` must be a list of at most 2 items"),
        ("extends: pockt", "r.yaml:1: extends: there is no recipe `pockt`, did you mean `pocket`"),
        ("extends: [pocket]", "r.yaml:1: extends: must be the name of a recipe or a path"),
        ("extends: r.yaml", "r.yaml:1: extends: goes round in a circle: r.yaml -> r.yaml"),
    ],
)  # fmt: skip
def test_what_no_recipe_may_say_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert any(told in line for line in faults(write(tmp_path, text)))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\xfe")
    assert faults(path) == ["r.yaml:1: no UTF-8 text: byte 6 is no character"]


def test_the_file_wins_over_its_parent_sets_over_the_file_and_flags_over_all(tmp_path: Path) -> None:
    write(tmp_path, "output: {crf: 1, fps: 1, dir: a}\nname: parent\nhardware: {threads: 1}", "parent.yaml")
    path = write(tmp_path, "extends: parent.yaml\noutput:\n  crf: 2\n  fps: 2", "child.yaml")
    assert load_recipe(path).recipe.output.crf == 2
    loaded = load_recipe(
        path, sets=["output.fps=3", "hardware.threads=3"], overrides={"hardware.threads": 4, "x": None}
    )
    output = loaded.recipe.output
    assert (output.crf, output.fps, output.dir, loaded.recipe.hardware.threads) == (2, 3, "a", 4)
    assert loaded.recipe.name == "child", "a name belongs to one file"
    assert loaded.sources[-3:] == ("--set output.fps=3", "--set hardware.threads=3", "--threads 4")
    assert str(loaded.origins["output", "crf"]).endswith("child.yaml:3")
    assert str(loaded.origins["output", "dir"]).endswith("parent.yaml:1")


def test_maps_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    write(tmp_path, "cascade: {decoder: {network: {channel_mult: [1, 2], num_res_blocks: 2}}}", "a.yaml")
    path = write(
        tmp_path, "extends: a.yaml\ncascade: {decoder: {network: {channel_mult: [4]}, frames: 8}}", "b.yaml"
    )
    decoder = load_recipe(path).recipe.cascade.decoder
    assert (decoder.network.channel_mult, decoder.network.num_res_blocks, decoder.frames) == ((4.0,), 2, 8)


def test_faults_of_a_parent_are_told_with_the_parents_line(tmp_path: Path) -> None:
    parent = write(tmp_path, "\noutput: {crf: many}", "a.yaml")
    path = write(tmp_path, "extends: a.yaml\noutput: {fps: 0}", "b.yaml")
    assert sorted(faults(path)) == [
        f"{parent.name}:2: output.crf: `many` must be a whole number",
        "b.yaml:2: output.fps: `0` must be 0.1 to 240",
    ]


def test_faults_of_flags_name_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path, "cascade: {decoder: {network: {channel_mult: [1, 2]}}}")
    sets = [
        "output.fps=0",
        "output.crf",
        "cascade.decoder.network.channel_mult.0=3",
        "otput.fps=3",
        "extends=pocket",
    ]
    assert faults(path, sets=sets, overrides={"output.sheet": 3}) == [
        "--set output.crf: must be `KEY=VALUE`, for example `--set output.fps=12`",
        "--set cascade.decoder.network.channel_mult.0=3: a list is set as a whole, "
        "`--set cascade.decoder.network.channel_mult=[...]`",
        "--set extends=pocket: a recipe cannot be changed with --set, use --recipe",
        "--set output.fps=0: `0` must be 0.1 to 240",
        "--sheet: `3` must be `true` or `false`",
        "--set otput.fps=3: unknown key, did you mean `output`",
    ]


def test_set_takes_lists_maps_and_null(tmp_path: Path) -> None:
    path = write(tmp_path, "weights: {sr_h: x.safetensors}")
    sets = [
        "cascade.decoder.network.channel_mult=[1, 2]",
        "output={crf: 3}",
        "weights.sr_h=",
        "train.stages.clip.lr=1e-4",
    ]
    recipe = load_recipe(path, sets=sets).recipe
    assert recipe.cascade.decoder.network.channel_mult == (1, 2)
    assert (recipe.output.crf, recipe.weights.sr_h, recipe.stage("clip").lr) == (3, None, 1e-4)


def test_training_defaults_lie_under_every_stage(tmp_path: Path) -> None:
    text = "train: {defaults: {lr: 3e-4, steps: 7, fps: {low: 2}}, stages: {clip: {steps: 9, fps: {high: 20}}, prior: }}"
    recipe = load_recipe(write(tmp_path, text)).recipe
    assert (recipe.stage("clip").lr, recipe.stage("clip").steps, recipe.stage("prior").steps) == (3e-4, 9, 7)
    assert (recipe.stage("clip").fps.low, recipe.stage("clip").fps.high) == (2, 20)
    assert recipe.stage("sr_h").lr == 3e-4


def test_a_fault_in_the_training_defaults_is_told_once(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {defaults: {lr: 0}, stages: {clip: {}, prior: {}}}")
    assert faults(path) == ["r.yaml:1: train.defaults.lr: `0` must be 1e-12 to 100"]


def test_paths_are_relative_to_the_file_that_says_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    write(
        tmp_path, "weights: {dir: ./family, clip: clip.safetensors}\ntrain: {data: {video: clips}}", "a.yaml"
    )
    path = write(tmp_path, "extends: ../a.yaml\nweights: {prior: p.safetensors}", "deep/b.yaml")
    monkeypatch.chdir(tmp_path / "deep")
    loaded = load_recipe(path, sets=["train.data.image=pictures"])
    weights, data = loaded.recipe.weights, loaded.recipe.train.data
    places = [weights.dir, weights.clip, weights.prior, data.video, data.image]
    wanted = ["family", "clip.safetensors", "deep/p.safetensors", "clips", "deep/pictures"]
    assert [Path(place or "").resolve() for place in places] == [
        (tmp_path / name).resolve() for name in wanted
    ]
    assert load_recipe("pocket").recipe.weights.dir == "pocket", "a family's name is no path"


def test_the_digest_is_of_what_is_said_and_not_of_where(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    text = "output: {crf: 3}\nweights: {dir: ./family}\nname: x"
    first = load_recipe(write(tmp_path, text))
    assert load_recipe(write(tmp_path, text, "elsewhere/r.yaml")).sha256 == first.sha256
    assert load_recipe(first.path, sets=["output.crf=4"]).sha256 != first.sha256


def test_an_unknown_recipe_comes_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe `pockett`, did you mean `pocket`") as caught:
        find_recipe("pockett")
    assert caught.value.exit_code == 2 and caught.value.hint == "mav recipe ls"
    with pytest.raises(RecipeError, match="does not exist"):
        find_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        find_recipe(tmp_path)


def test_data_are_mixed_by_shares_and_weights_each_fault_with_its_line(tmp_path: Path) -> None:
    text = """\
train:
  data:
    world: 0.4
    video:
      - {folder: own, weight: 2}
      - {folder: plain}
    image: pictures
"""
    data = load_recipe(write(tmp_path, text)).recipe.train.data
    assert data.world == 0.4 and [folder.weight for folder in data.folders("video")] == [2, 1]
    assert [folder.folder for folder in data.folders("video")] == [
        str(tmp_path / "own"),
        str(tmp_path / "plain"),
    ]
    assert [folder.folder for folder in data.folders("image")] == [str(tmp_path / "pictures")]
    assert data.folders("pairs") == ()
    for old, new, fault in (
        ("0.4", "1.4", "3: train.data.world: `1.4` must be `true` or `false` or 0 to 1"),
        ("0.4", "half", "3: train.data.world: `half` must be `true` or `false` or a number"),
        ("weight: 2", "weight: 0", "5: train.data.video.0.weight: `0` must be 1e-06 to 1e+06"),
        ("weight: 2", "share: 2", "5: train.data.video.0.share: unknown key, the keys here are `folder`, `weight`"),
        ("{folder: plain}", "{weight: 2}", "6: train.data.video.1.folder: is missing"),
        ("pictures", "3", "7: train.data.image: `3` must be text (put it in quotes) or a list"),
    ):  # fmt: skip
        assert faults(write(tmp_path, text.replace(old, new))) == [f"r.yaml:{fault}"]


def test_the_folders_of_a_list_do_not_change_the_digest_with_where_the_recipe_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    text = "name: x\ntrain: {data: {world: 0.4, video: [{folder: own, weight: 2}]}}"
    first, other = (load_recipe(write(tmp_path, text, name)) for name in ("r.yaml", "elsewhere/r.yaml"))
    assert first.sha256 == other.sha256 and first.recipe != other.recipe
    shown = "\n".join("  " * depth + line for depth, _, line in as_yaml(first.recipe))
    assert load_recipe(write(tmp_path, shown, "shown.yaml")).recipe == first.recipe
