"""What a computation costs, watched while it runs: floating-point operations and live memory.

`Trace` counts on real tensors and on `meta` ones alike; the latter have no memory, so a network of any size can be counted
on any machine. `MetaAutocast` does for `meta` tensors what `torch.autocast` does for those of a GPU, which it has to do
if the bytes are to be right.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from mavcli.models.convolution import direct

# The fused attention of CPUs, which torch's registry lacks (2.14).
flop_registry.setdefault(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, sdpa_flop)
flop_registry.setdefault(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, sdpa_backward_flop
)


class Trace(TorchDispatchMode):
    """Counts what runs inside: `flops`, and which storages lived when.

    FLOPs are those of `torch.utils.flop_counter`: 2 per multiply-add of convolutions, matrix products and attention;
    norms, activations and copies are not counted. Convolutions run, and count, as they are defined. Storages of `known`
    tensors (weights, inputs) are not counted, nor are those of other devices than `device`.
    """

    def __init__(self, *, device: torch.device, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device_type = device.type
        self.flops = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that their ids stay theirs
        self._ids = {id(storage) for storage in self._known}
        self._live: dict[int, tuple[int, Any]] = {}
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes more or less)
        self._count = 0

    def __enter__(self) -> Trace:
        self._definition = direct()
        self._definition.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._definition.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps one Python object for a storage's whole life
        if key in self._ids or key in self._live:
            return
        number, size = self._count, storage.nbytes()
        self._count += 1

        def gone(_: object) -> None:
            if self._live.pop(key, None) is not None:
                self._events.append((number, -size))

        self._live[key] = (number, weakref.ref(storage, gone))
        self._events.append((number, size))

    def peak(self) -> int:
        """The most bytes that lived at once."""
        return max(sum(both) for both in self.curve(()))

    def curve(self, apart: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
        """(bytes of all others, bytes of `apart`) at every moment that no other moment exceeds in both.

        `apart` are tensors that still live. At one of these moments is the peak, however the two are weighed.
        """
        numbers = {self._live[id(t.untyped_storage())][0] for t in apart if self._is_live(t)}
        others = own = 0
        moments = {(0, 0)}
        for number, size in self._events:
            if number in numbers:
                own += size
            else:
                others += size
            moments.add((others, own))
        kept: list[tuple[int, int]] = []
        for moment in sorted(moments, reverse=True):
            if not kept or moment[1] > kept[-1][1]:
                kept.append(moment)
        return tuple(kept)

    def _is_live(self, tensor: Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._live


# What autocast runs in the small type, and what in float32 on CUDA (torch's autocast op reference).
_SMALL: set[Callable[..., Any]] = {
    torch.conv1d,
    torch.conv2d,
    F.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
    torch.mm,
    torch.addmm,
    torch.baddbmm,
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
}
_WIDE: set[Callable[..., Any]] = {
    F.group_norm,
    F.layer_norm,
    torch.softmax,
    Tensor.softmax,
    F.softmax,
    F.cross_entropy,
    F.mse_loss,
}


class MetaAutocast(TorchFunctionMode):
    """`torch.autocast("cuda", dtype)` for `meta` tensors, and CUDA's fused attention, which keeps no scores.

    With `dtype` float32 nothing is cast. A backward pass leaves the mode; `around` brings recomputed blocks back into it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the small copies of the weights, which one forward pass makes however many samples there are."""
        return sum(small.untyped_storage().nbytes() for _, small in self._weights.values())

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, run in this mode wherever it is called."""

        def run(*args: Any, **kwargs: Any) -> Any:  # as the function is called
            with self:
                return function(*args, **kwargs)

        return run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.dtype != torch.float32:
            if func in _SMALL:
                args, kwargs = tree_map(self._to_small, args), tree_map(self._to_small, kwargs)
            elif func in _WIDE:
                args, kwargs = tree_map(_to_wide, args), tree_map(_to_wide, kwargs)
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _to_small(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.device.type != "meta":
            return x
        if not (x.is_leaf and x.requires_grad and torch.is_grad_enabled()):
            return x.to(self.dtype)
        if id(x) not in self._weights:
            self._weights[id(x)] = (x, x.to(self.dtype))
        return self._weights[id(x)][1]


def _to_wide(x: Any) -> Any:
    small = isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if small else x


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    aten = torch.ops.aten
    if attn_mask is None and q.dtype != torch.float32:
        out: Tensor = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p)[0]
        return out
    mask = None if attn_mask is None else attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    out = aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, dropout_p)[0]
    return out
