"""Numbers: each has a range that can run, on the command line and in a recipe, and whatever is outside is one line."""

from __future__ import annotations

import importlib
import inspect
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from mavcli.cli.app import VERBS, run
from mavcli.cli.options import finite
from mavcli.errors import RecipeError
from mavcli.recipe.load import _json_schema, load_recipe


def numbers() -> Iterator[tuple[tuple[str, ...], str, type, Any]]:
    """(command, flag, int or float, what typer is told of it) of every option that takes a number."""

    def of(function: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, type, Any]]:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            hint = parameter.annotation if get_origin(parameter.annotation) is Annotated else hints.get(name)
            if get_origin(hint) is not Annotated:
                continue
            kinds = {hint.__origin__, *get_args(hint.__origin__)} & {int, float}
            for told in hint.__metadata__ if kinds else ():
                flag = [told.default, *told.param_decls][0]  # typer moves it once it reads the command
                yield path, flag, min(kinds, key=str), told

    for verb in VERBS:
        found = getattr(importlib.import_module(verb.module), verb.attribute)
        if isinstance(found, typer.Typer):
            for command in found.registered_commands:
                name = command.name or command.callback.__name__.replace("_", "-")
                yield from of(command.callback, (verb.name, name))
        else:
            yield from of(found, (verb.name,))


def test_every_number_of_the_command_line_has_a_range():
    found = list(numbers())
    assert [(path, flag) for path, flag, _, told in found if None in (told.min, told.max)] == []
    assert len(found) > 40


def test_nan_is_in_no_range():
    floats = [(path, flag, told) for path, flag, kind, told in numbers() if kind is float]
    assert [(path, flag) for path, flag, told in floats if told.callback is not finite] == []
    assert len(floats) > 8
    with pytest.raises(typer.BadParameter):
        finite(float("nan"))


@pytest.mark.parametrize("value", ["nan", "inf", "1e-300", "-1", "9" * 400])
def test_what_is_outside_of_a_range_is_one_line_and_nothing_is_begun(value, capsys):
    for path, flag, kind, told in random.Random(value).sample(list(numbers()), 6):
        if value == "1e-300" and kind is float and told.min == 0:
            continue
        # what else the command wants need not be there: the number is looked at first
        code = run([*path, f"{flag}={value}"])
        shown = capsys.readouterr()
        assert code == 2, (path, flag, value, shown.err)
        assert shown.err.count("error:") == 1 and "Traceback" not in shown.err and shown.out == ""


def leaves(
    node: dict[str, Any], key: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(key, node) of every number that a recipe may hold."""
    if "$ref" in node:
        node = _json_schema()["$defs"][node["$ref"].rpartition("/")[2]]
    for name in ("anyOf", "allOf", "prefixItems"):
        for inner in node.get(name, ()):
            yield from leaves(inner, key)
    for name, inner in node.get("properties", {}).items():
        yield from leaves(inner, (*key, name))
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from leaves(node[name], (*key, name))
    if node.get("type") in ("integer", "number"):
        yield key, node


def test_every_number_of_a_recipe_has_a_range():
    found = dict(leaves(_json_schema()))
    without = [
        ".".join(key)
        for key, node in leaves(_json_schema())
        if not {"minimum", "exclusiveMinimum"} & set(node) or not {"maximum", "exclusiveMaximum"} & set(node)
    ]
    assert without == [] and len(found) > 100


CANNOT = {
    "output.fps=1e-300": "--set output.fps=1e-300: `1e-300` must be 0.1 to 240",
    "output.fps=.nan": "`.nan` must be a number",
    "output.fps=1e999": "`1e999` must be a finite number",
    "output.crf=0": "must be 1 to 51 with `codec: h264`",
    "cascade.decoder.network.model_channels=1000000000": "`1000000000` must be 2 to 65,536",
    "cascade.decoder.network.model_channels=100": "are no multiple of norm_groups",
    "cascade.decoder.network.temporal_kernel=2": "must be odd, not 2",
    "cascade.decoder.network.num_head_channels=4096": "cannot be shared out to heads",
    "cascade.decoder.network.image_size=30": "must be a multiple of",
    "cascade.sr_l.size=30": "must be a multiple of",
    "cascade.prior.sampler.steps=1001": "`1001` must be 1 to 1000, the schedule's timesteps",
    "cascade.interp.sampler.steps=1001": "`1001` must be 1 to 1000, the schedule's timesteps",
    "cascade.decoder.sampler.steps=[1000, 3]": "the last of the schedule's timesteps is 999",
    "cascade.prior.network.num_heads=7": "is no multiple of num_heads 7",
    "cascade.clip.network.text_heads=7": "is no multiple of text_heads 7",
    "train.defaults.betas=[1.0, 0.9]": "`1.0` must be 0 to less than 1",
    "train.defaults.fps.low=100": "is more than `high`",
    "train.defaults.lr=1e-300": "must be 1e-12 to 100",
    "hardware.threads=0": "must be `auto` or 1 to 65,536",
    "cascade.decoder.network.num_res_blocks=100": "`100` must be 1 to 64 or a list",
}  # fmt: skip


@pytest.mark.parametrize("setting", CANNOT)
def test_a_recipe_that_cannot_run_is_refused_with_its_place_and_the_range(setting):
    with pytest.raises(RecipeError) as told:
        load_recipe("pocket", sets=[setting])
    assert CANNOT[setting] in told.value.message and "\n" not in told.value.message
    assert ":" in told.value.message.split(" ")[0] or told.value.message.startswith("--set")


def test_a_network_of_more_parameters_than_anybody_has_is_refused_before_it_is_built():
    big = ["model_channels=65536", "channel_mult=[1,1]", "num_res_blocks=64", "norm_groups=32", "attention_resolutions=[]",
           "mid_attention=false"]  # fmt: skip
    with pytest.raises(RecipeError, match=r"a network of at least .* parameters, wanted at most 1e\+12"):
        load_recipe("pocket", sets=[f"cascade.decoder.network.{each}" for each in big])


def test_a_recipe_is_refused_without_torch(tmp_path):
    code = (
        "import sys; from mavcli.cli.app import run\n"
        "code = run(['recipe', 'check', 'pocket', '--set', 'cascade.sr_l.sampler.steps=1001'])\n"
        "assert code == 2 and 'torch' not in sys.modules, code"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
