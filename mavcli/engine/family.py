"""The weight files that a cascade needs: found, described and checked before anything is computed.

Headers alone are read, so a missing or wrong file costs no time and is told with all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mavcli.errors import UsageError, WeightsError
from mavcli.recipe.load import list_recipes, load_recipe
from mavcli.recipe.remarks import trained_skips, untrained_skip
from mavcli.recipe.schema import Recipe
from mavcli.specs import ClipSpec, PriorSpec, UNetSpec
from mavcli.weights.locate import command_for, stage_path, trained_path
from mavcli.weights.manifest import load_manifest
from mavcli.weights.provenance import Met, compare_specs, read_header, weight_files

Piece = Literal["clip", "prior", "decoder_t", "interp", "sr_l", "sr_l_last", "sr_h"]
PIECES: dict[Piece, str] = {
    "clip": "CLIP",
    "prior": "P",
    "decoder_t": "D^t",
    "interp": "↑F",
    "sr_l": "SR_l^t",
    "sr_l_last": "the last step of SR_l",
    "sr_h": "SR_h",
}


@dataclass(frozen=True)
class Part:
    """The weights of one piece of the cascade. `role` is the stage that trained them; without a path they are random."""

    piece: Piece
    role: str
    spec: ClipSpec | PriorSpec | UNetSpec
    path: Path | None = None
    sha256: str = "random"
    step: int = 0
    untrained: bool = False
    """Whether it is an image network whose temporal layers nothing has trained."""
    met: Met | None = None
    """What of clips its training drew, where the file says so."""

    def facts(self) -> dict[str, Any]:
        """All that decides what the network says: its tensors, and the description that they are read by."""
        return {"role": self.role, "sha256": self.sha256, "spec": self.spec.model_dump(mode="json")}

    def describe(self) -> dict[str, Any]:
        """For the metadata of a result."""
        path = None if self.path is None else str(self.path)
        return {
            "role": self.role,
            "path": path,
            "sha256": self.sha256,
            "step": self.step,
            "random": path is None,
            "untrained": self.untrained,
        }


@dataclass(frozen=True)
class Family:
    """Every part that a command needs, and what the user must hear about them."""

    parts: dict[Piece, Part]
    warnings: tuple[str, ...] = ()

    @property
    def random(self) -> tuple[str, ...]:
        """The pieces that run on random weights."""
        return tuple(piece for piece, part in self.parts.items() if part.path is None)

    def untrained_skip(self, recipe: Recipe, *skips: int) -> str | None:
        """What to say where ↑F's training met no known frames `skips` apart; by its file, or else by the recipe."""
        met = self.parts["interp"].met if "interp" in self.parts else None
        return untrained_skip(skips, trained_skips(recipe) if met is None else met.frame_skips)


def find_family(
    recipe: Recipe,
    pieces: Iterable[Piece],
    *,
    random_weights: bool = False,
    stills: bool = False,
    keys_suffice: bool = False,
) -> Family:
    """The parts for `pieces`; a super-resolution that is no network needs none.

    With `random_weights`, what is not there runs on random weights, and the warnings say so. `stills` are for pictures,
    which need no temporal layers. A decoder whose temporal layers nothing has trained serves, and the warnings say what
    comes of it; ↑F may then be missing where the caller can do with the key frames (`keys_suffice`). Raises WeightsError with every missing file and the command that makes it, or
    where a file belongs to another network; UsageError where the recipe has no temporal layers.
    """
    parts: dict[Piece, Part] = {}
    faults: list[tuple[str, str | None]] = []
    warnings: list[str] = []
    needed = list(dict.fromkeys(pieces))
    if "sr_l" in needed and recipe.cascade.sr_l.last_step:
        needed.insert(needed.index("sr_l") + 1, "sr_l_last")
    for piece in needed:
        if piece in ("sr_l", "sr_h") and getattr(recipe.cascade, piece).kind != "network":
            continue
        if piece == "sr_l_last" and "sr_l" not in parts:
            continue
        choices = _choices(recipe, piece, stills=stills)
        found = [(role, spec, path) for role, spec, path in choices if weight_files(path)]
        keys_alone = keys_suffice and not random_weights and _is_untrained(parts.get("decoder_t"))
        if not found and piece == "interp" and keys_alone:
            continue  # told with the decoder
        if not found:
            role, spec, path = choices[0]
            if not random_weights:
                faults.append(_missing(recipe, piece, role, path))
            parts[piece] = Part(piece, role, spec)
            continue
        role, spec, path = found[0]
        header = read_header(path)
        match = [c for c in choices if c[0] == header.role and c[2] == path]
        if not match:
            faults.append(_wrong_role(recipe, piece, path, header.role, [c[0] for c in choices]))
            continue
        role, spec, _ = match[0]
        differences = compare_specs(header.spec, spec)
        if differences:
            faults.append(
                (f"{path} belongs to another network: {'; '.join(differences)}", _command(recipe, role))
            )
            continue
        untrained = role == "decoder" or (header.inflation is not None and not header.inflation.trained)
        parts[piece] = Part(
            piece, role, spec, path, header.content_sha256, header.step, untrained=untrained, met=header.met
        )
        if (
            piece == "sr_l"
            and role == "sr_l"
            and recipe.cascade.sr_l.network.temporal != "none"
            and not stills
        ):
            warnings.append(
                f"there are no `sr_lt` weights: SR_l enlarges frame by frame, without temporal layers and with the same "
                f"noise for every frame (`{_command(recipe, 'sr_lt')}` trains them)"
            )
    warnings += [] if stills else _told_of_untrained(recipe, parts, needed)
    if faults:
        hints = list(dict.fromkeys(hint for _, hint in faults if hint))
        raise WeightsError("\n".join(text for text, _ in faults), hint=hints[0] if hints else None)
    loose = [PIECES[piece] for piece, part in parts.items() if part.path is None]
    if loose:
        warnings.append(
            f"RANDOM WEIGHTS in {', '.join(loose)}: what comes out is noise, not a video of anything"
        )
    return Family(parts, tuple(warnings))


def _is_untrained(part: Part | None) -> bool:
    return part is not None and part.untrained


def _remedy(recipe: Recipe, role: str) -> str:
    """The command that trains `role`, or that takes what was trained already."""
    trained = trained_path(recipe, role)
    if weight_files(trained) and trained != stage_path(recipe, role):
        return f"`--set weights.{role}={trained}` takes those that were trained"
    return f"`{_command(recipe, role)}` trains them"


def _told_of_untrained(recipe: Recipe, parts: dict[Piece, Part], needed: list[Piece]) -> list[str]:
    """What the user must hear of temporal layers that nothing has trained (Make-A-Video, section 3.2.1)."""
    told = []
    if _is_untrained(parts.get("decoder_t")):
        coherence = recipe.cascade.decoder.coherence
        text = (
            "the temporal layers of D^t are untrained: the frames are pictures of one meaning, each faithful to the text, "
            f"and WILL NOT COHERE; {_remedy(recipe, 'decoder_t')} on a folder of clips"
        )
        if coherence == "none":
            text += (
                "; `--still` makes pictures, `--set cascade.decoder.coherence=cross-frame` likens the frames"
            )
        else:
            text += f"; until then `coherence: {coherence}` likens them to one another"
        told.append(text)
        if "interp" in needed and "interp" not in parts:
            told.append(
                "there are no `interp` weights, and unrelated frames have nothing between them: the key frames alone are "
                f"made, at {recipe.output.fps / recipe.cascade.interp.frame_skip:g} fps"
            )
    if _is_untrained(parts.get("interp")):
        told.append(
            f"the weights of ↑F were never trained to fill in frames: what it makes between the key frames is unrelated to "
            f"them; {_remedy(recipe, 'interp')}"
        )
    if _is_untrained(parts.get("sr_l")):
        told.append(
            f"the temporal layers of SR_l^t are untrained: it enlarges frame by frame; {_remedy(recipe, 'sr_lt')}"
        )
    return told


def _choices(
    recipe: Recipe, piece: Piece, *, stills: bool = False
) -> list[tuple[str, ClipSpec | PriorSpec | UNetSpec, Path]]:
    """(role, network, file) of the weights that can serve as `piece`, the best first."""
    cascade = recipe.cascade
    if piece == "clip":
        return [("clip", cascade.clip.network, stage_path(recipe, "clip"))]
    if piece == "prior":
        return [("prior", cascade.prior.network, stage_path(recipe, "prior"))]
    if piece in ("decoder_t", "interp"):
        image = (
            "decoder",
            cascade.decoder.network.model_copy(update={"temporal": "none", "fps": False}),
            stage_path(recipe, "decoder"),
        )
        if cascade.decoder.network.temporal == "none":
            if stills:
                return [image]
            raise UsageError(
                f"recipe `{recipe.name}` has a decoder without temporal layers, which makes pictures and no video",
                hint="--set cascade.decoder.network.temporal=p3d, and train `decoder_t`",
            )
        path = stage_path(recipe, piece)
        widened = ("interp", recipe.cascade.interp_network(), path)
        # ↑F that is told nothing is D^t: one file may serve as both.
        if piece == "interp":
            return [widened]
        return [("decoder_t", cascade.decoder.network, path), widened, image]
    if piece == "sr_h":
        return [("sr_h", cascade.sr_h.network, stage_path(recipe, "sr_h"))]
    spec = cascade.sr_l.network
    image = ("sr_l", spec.model_copy(update={"temporal": "none", "fps": False}), stage_path(recipe, "sr_l"))
    if piece == "sr_l_last":
        # the same network with weights of its own; never inflated: it goes frame by frame, as SR_h does
        return [(image[0], image[1], stage_path(recipe, "sr_l_last"))]
    return [image] if spec.temporal == "none" else [("sr_lt", spec, stage_path(recipe, "sr_lt")), image]


def _missing(recipe: Recipe, piece: Piece, role: str, path: Path) -> tuple[str, str | None]:
    text = f"{path} does not exist, the weights of {PIECES[piece]} (`{role}`) are needed"
    if piece == "sr_l_last":  # nothing here trains it
        return text, "an import of Karlo brings it; `--set cascade.sr_l.last_step=false` does without"
    trained = trained_path(recipe, role)
    if weight_files(trained) and trained != path:
        return text, f"they are trained already: --set weights.dir={trained.parent}"
    return text, _command(recipe, role)


def _wrong_role(
    recipe: Recipe, piece: Piece, path: Path, role: str, wanted: list[str]
) -> tuple[str, str | None]:
    names = "` or `".join(dict.fromkeys(wanted))
    text = f"{path} holds `{role}` weights, {PIECES[piece]} needs `{names}`"
    if role == "decoder":
        text += ": its temporal layers are untrained"
    return text, _command(recipe, wanted[0])


def _command(recipe: Recipe, role: str) -> str:
    """What gets the weights of `role`."""
    families = load_manifest().families
    if recipe.weights.dir in families and getattr(recipe.weights, role) is None:
        return families[recipe.weights.dir].command(role)
    # A recipe of the user's own may still have the name of the one it was copied from.
    shipped = recipe.name in list_recipes() and load_recipe(recipe.name).recipe == recipe
    return command_for(recipe, role, recipe.name if shipped else "RECIPE")
