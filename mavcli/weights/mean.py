"""The mean of weights of one network: of two trainings that began at the same weights, or of two moments of one.

Where they began together they mostly lie in one basin, and their mean is often better than either at what each has learnt (model
soups, arXiv 2203.05482); where they did not, it is noise. Nothing here can tell which: `mav eval` can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mavcli.errors import UsageError, WeightsError
from mavcli.weights.provenance import (
    Met,
    StoredWeights,
    WeightsHeader,
    compare_specs,
    read_header,
    read_index,
    refuse_existing,
    save_weights,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """What `mean_file` wrote. `apart` has for every source but the first its distance from the first, over the first's norm."""

    files: tuple[Path, ...]
    header: WeightsHeader
    shares: tuple[float, ...]
    apart: tuple[float, ...]


class MeanWeights(Mapping[str, "Tensor"]):
    """Tensors that are weighted means of those of `sources`, each made when it is asked for and not kept.

    `shares` add up to 1. They are added up in float64 and have the type of the first source; whole numbers are the first's.
    """

    def __init__(self, sources: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> None:
        self._sources, self._shares = sources, shares

    def __getitem__(self, name: str) -> Tensor:
        first = self._sources[0][name]
        if not first.is_floating_point():
            return first
        total = first.double() * self._shares[0]
        for source, share in zip(self._sources[1:], self._shares[1:], strict=True):
            total += source[name].double() * share
        return total.to(first.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources[0])

    def __len__(self) -> int:
        return len(self._sources[0])


def mean_file(
    sources: Sequence[Path],
    out: Path,
    *,
    shares: Sequence[float] | None = None,
    force: bool = False,
    command: str = "",
) -> Mean:
    """Write the mean of `sources` (two or more, of one stage and network) into the folder `out` under the stage's name.

    `shares` are above 0, one for each source, and need not add up to 1; without them all count alike. Tensors are handled one
    at a time. The header names all of them as parents. Raises UsageError for too few sources or shares that cannot be,
    WeightsError where the sources are not of one network, DiskError where the target exists and `force` is not given.
    """
    if len(sources) < 2:
        raise UsageError("a mean needs weights of two trainings or more")
    shares = tuple(shares) if shares else (1.0,) * len(sources)
    if len(shares) != len(sources) or min(shares) <= 0:
        raise UsageError(
            f"the shares {', '.join(f'{s:g}' for s in shares)} do not fit {len(sources)} weights: one above 0 for each"
        )
    shares = tuple(share / sum(shares) for share in shares)
    headers = [read_header(path) for path in sources]
    for path, header in zip(sources[1:], headers[1:], strict=True):
        _check_alike(sources[0], headers[0], path, header)
    first = headers[0]
    target = out / f"{first.role}.safetensors"
    refuse_existing(target, force=force)
    stored = [
        StoredWeights(path, sha256=header.content_sha256)
        for path, header in zip(sources, headers, strict=True)
    ]
    header = first.model_copy(
        update={
            "step": max(h.step for h in headers),
            "samples_seen": max(h.samples_seen for h in headers),
            "parents": tuple(h.as_parent() for h in headers),
            "licence": " and ".join(dict.fromkeys(h.licence for h in headers)),
            "source": command or "mav weights mean",
            "recipe_sha256": first.recipe_sha256 if len({h.recipe_sha256 for h in headers}) == 1 else "",
            "met": _met_by_all(headers),
            "inflation": None if any(h.inflation is None for h in headers) else first.inflation,
        }
    )
    apart = _apart(stored)  # before the target is written, which may be one of the sources
    files = save_weights(target, MeanWeights(stored, shares), header)
    return Mean(tuple(files), read_header(target), shares, apart)


def _met_by_all(headers: Sequence[WeightsHeader]) -> Met | None:
    """What the trainings of all of them met; None where one does not say."""
    found = [header.met for header in headers if header.met is not None]
    if len(found) < len(headers):
        return None
    skips = set.intersection(*(set(met.frame_skips) for met in found))
    low, high = max(met.fps[0] for met in found), min(met.fps[1] for met in found)
    return Met(fps=(low, high), frame_skips=tuple(sorted(skips))) if low <= high else None


def _check_alike(one: Path, first: WeightsHeader, other: Path, header: WeightsHeader) -> None:
    """Raises WeightsError where two files are not of one network that was trained to say the same."""
    faults = []
    if header.role != first.role:
        faults.append(f"they are weights of `{header.role}` and of `{first.role}`")
    else:
        faults += compare_specs(header.spec, first.spec)
    if header.schedule != first.schedule and not faults:
        faults.append("their diffusion schedules differ")
    if not faults:
        shapes = [{name: info.shape for name, info in read_index(path).items()} for path in (one, other)]
        differing = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        faults += [f"the tensor `{differing[0]}` is not in both of one shape"] if differing else []
    if faults:
        raise WeightsError(
            f"{one} and {other} have no mean: {'; '.join(faults)}", hint="mav weights show FILE"
        )


def _apart(stored: Sequence[Mapping[str, Tensor]]) -> tuple[float, ...]:
    """||other - first|| / ||first|| over all tensors that are not whole numbers."""
    norm, distances = 0.0, [0.0] * (len(stored) - 1)
    for name in stored[0]:
        first = stored[0][name]
        if not first.is_floating_point():
            continue
        norm += float(first.double().square().sum())
        for place, other in enumerate(stored[1:]):
            distances[place] += float((other[name].double() - first.double()).square().sum())
    return tuple((distance / norm) ** 0.5 if norm else 0.0 for distance in distances)
