"""Key tables: which tensor of another code is which of ours, and how the numbers are rearranged between the two.

A table is strict. Every tensor of the source is used or dropped by name, every tensor of the target is filled, every
shape agrees; what does not fit is listed before a single number is read. The same table serves both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mavcli.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
_NAMED = 6  # tensors that an error names before it only counts them


class Conversion(Protocol):
    """How one tensor of ours is made of theirs, and back."""

    def ours(self, theirs: Sequence[Tensor]) -> Tensor: ...

    def theirs(self, ours: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class Same:
    """The same tensor under another name."""

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor

    def theirs(self, ours: Tensor) -> list[Tensor]:
        return [ours]


@dataclass(frozen=True)
class PerHead:
    """Rows grouped by head in theirs (h0: q, k, v; h1: q, k, v; ...), all of q, then k, then v in ours.

    guided-diffusion's legacy order; `parts` is 3 for qkv, 2 for the keys and values of a context.
    """

    parts: int
    heads: int

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return _swapped(tensor, self.heads, self.parts)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        return [_swapped(ours, self.parts, self.heads)]


@dataclass(frozen=True)
class Stacked:
    """One tensor each for q, k, v in theirs, their rows one after the other in ours.

    With `heads` the rows in ours are grouped by head. `trailing` ones are appended to the shape of a matrix: a linear
    layer of theirs is a convolution of width 1 in ours.
    """

    parts: int
    heads: int | None = None
    trailing: int = 0

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        import torch

        tensor = torch.cat(list(theirs))
        if self.heads is not None:
            tensor = _swapped(tensor, self.parts, self.heads)
        return tensor.reshape(*tensor.shape, *[1] * (self.trailing if tensor.ndim > 1 else 0))

    def theirs(self, ours: Tensor) -> list[Tensor]:
        if ours.ndim > 2:
            ours = ours.reshape(ours.shape[:2])
        if self.heads is not None:
            ours = _swapped(ours, self.heads, self.parts)
        return [part.contiguous() for part in ours.chunk(self.parts)]


@dataclass(frozen=True)
class Transposed:
    """A matrix that theirs multiplies from the other side."""

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor.T.contiguous()

    def theirs(self, ours: Tensor) -> list[Tensor]:
        return [ours.T.contiguous()]


@dataclass(frozen=True)
class LeadingOne:
    """A vector that theirs keeps as a matrix of one row."""

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor[0] if tensor.ndim == 2 and len(tensor) == 1 else tensor

    def theirs(self, ours: Tensor) -> list[Tensor]:
        return [ours[None]]


@dataclass(frozen=True)
class Constant:
    """A number that the source does not hold because it is known: no source, and none on the way back."""

    value: float

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.tensor(self.value)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        return []


def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows (outer inner r, ...) -> (inner outer r, ...)."""
    return tensor.reshape(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and what it is made of."""

    target: str
    sources: tuple[str, ...]
    conversion: Conversion = Same()


@dataclass(frozen=True)
class KeyTable:
    """All tensors of one network. `dropped` names what the source holds and nobody needs, with the reason."""

    entries: tuple[Entry, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)

    def check(self, found: Shapes, wanted: Shapes, *, source: str, what: str) -> None:
        """Nothing missing, nothing left over, every shape as `wanted`; reads no tensor.

        `source` and `what` (`a Karlo decoder`) are for the message. Raises WeightsError, which names all that is amiss.
        """
        import torch

        used = [name for entry in self.entries for name in entry.sources]
        missing = [name for name in used if name not in found]
        left = sorted(set(found) - set(used) - set(self.dropped))
        targets = {entry.target for entry in self.entries}
        faults = [
            _list(missing, "is missing", "are missing"),
            _list(left, "is left over", "are left over"),
            _list(sorted(set(wanted) - targets), "of ours is not filled", "of ours are not filled"),
            _list(sorted(targets - set(wanted)), "has no place in ours", "have no place in ours"),
        ]
        wrong = []
        for entry in self.entries:
            if entry.target not in wanted or any(name not in found for name in entry.sources):
                continue
            shapes = [found[name] for name in entry.sources]
            try:
                made = tuple(
                    entry.conversion.ours([torch.empty(shape, device="meta") for shape in shapes]).shape
                )
            except (RuntimeError, ValueError, IndexError):
                made = None
            if made != wanted[entry.target]:
                held = ", ".join(f"`{n}` {list(s)}" for n, s in zip(entry.sources, shapes, strict=True))
                wrong.append(f"{held} does not make {list(wanted[entry.target])}")
        if wrong:
            more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            faults.append(f"wrong shapes: {'; '.join(wrong[:_NAMED])}{more}")
        told = [fault for fault in faults if fault]
        if told:
            raise WeightsError(
                f"{source} does not hold {what} as described: {'; '.join(told)}",
                hint="--config FILE gives the source's own configuration, --as another layout",
            )

    def convert(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Ours, made one at a time when asked for; `check` comes first."""
        return _Converted(self, theirs)

    def invert(self, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Theirs, one at a time; what was dropped on the way in does not come back."""
        for entry in self.entries:
            tensors = entry.conversion.theirs(ours[entry.target]) if entry.sources else []
            yield from zip(entry.sources, tensors, strict=True)


class _Converted(Mapping[str, "Tensor"]):
    def __init__(self, table: KeyTable, theirs: Mapping[str, Tensor]) -> None:
        self._entries = {entry.target: entry for entry in table.entries}
        self._theirs = theirs

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry.conversion.ours([self._theirs[source] for source in entry.sources])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _list(names: Sequence[str], one: str, many: str) -> str:
    """`3 tensors are missing (`a`, `b`, `c`)`, or nothing."""
    if not names:
        return ""
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = one if len(names) == 1 else many
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {verb} ({shown}{more})"
