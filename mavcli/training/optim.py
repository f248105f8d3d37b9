"""Optimisers: AdamW, and Muon for hidden matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

Muon steps along the nearest semi-orthogonal matrix to the momentum. PyTorch's own takes 2-D parameters only; a
convolution's kernel is one too, flattened to (out, in * k * k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mavcli.models.unet import UNet, is_temporal
from mavcli.recipe.schema import StageTraining
from mavcli.training.distributed import local
from mavcli.weights.locate import STEM, mask_columns

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz, tuned for slope at zero


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps; `lr` is the size of a step per unit of spectral norm."""

    def __init__(self, params: Iterable[dict[str, object]], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                update = whole(p.grad.add(momentum, alpha=group["momentum"])).flatten(1)  # Nesterov
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.add_(cut_like(orthogonalise(update).view(p.shape), p), alpha=-group["lr"] * scale)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP cut: a direction for a matrix cannot be found from a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, the same in every process, cut over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def orthogonalise(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """About U V^T of matrix = U S V^T (m, n): singular values are brought to 0.7 ... 1.2."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for the convolutions and linear maps between hidden layers: not stems, outputs, embeddings, norms, biases."""
    if parameter.ndim < 2 or parameter.flatten(1).shape[1] < 16:
        return False
    outer = (
        "input_blocks.0.",
        "out.",
        "embedding",
        "time_embed",
        "fps_embed",
        "_emb",
        "emb_layers",
        "cf_param",
    )
    return not any(part in name if part != "out." else name.startswith("out.") for part in outer)


def build_optimizers(
    network: nn.Module, config: StageTraining, *, inherited: bool, widened: bool = False
) -> tuple[list[torch.optim.Optimizer], int]:
    """The optimisers of a stage, and how many parameters they train.

    With `config.train` = "temporal" only what inflation added is trained; `inherited` layers learn at `spatial_lr` times
    the rate. The stem of a `widened` network is new too, as its columns for the mask start at zero; for the others of its
    columns see `InheritedColumns`. Every group keeps its
    full rate as `base_lr` for the schedule.
    """
    choose_trained(network, config, widened=widened)
    adam: dict[float, list[nn.Parameter]] = {}
    muon: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = config.spatial_lr if inherited and not is_new(name, widened=widened) else 1.0
        hidden = config.optimizer == "muon" and is_hidden_matrix(name, parameter)
        (muon if hidden else adam).setdefault(factor, []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if adam:
        groups = [{"params": p, "lr": config.lr * f, "base_lr": config.lr * f} for f, p in adam.items()]
        optimizers.append(
            torch.optim.AdamW(
                groups,
                betas=config.betas,
                eps=config.adam_eps,
                weight_decay=config.weight_decay,
                fused=True,
            )
        )
    if muon:
        groups = [
            {"params": p, "lr": config.muon_lr * f, "base_lr": config.muon_lr * f} for f, p in muon.items()
        ]
        optimizers.append(Muon(groups, lr=config.muon_lr))
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return optimizers, count


def choose_trained(network: nn.Module, config: StageTraining, *, widened: bool) -> None:
    """Freeze what `config.train` leaves as it is."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(config.train == "all" or is_new(name, widened=widened))


class InheritedColumns:
    """The columns of a widened stem that it has from its parent, held still where `train` is "temporal".

    A parameter trains whole or not at all, and the stem's new columns must: so the others lose their gradient before it
    counts, and are put back after the step, which decays weights too.
    """

    def __init__(self, network: UNet) -> None:
        self.stem = network.get_parameter(STEM)
        new = set(mask_columns(network.spec))
        self.columns = [i for i in range(self.stem.shape[1]) if i not in new]

    @torch.no_grad()
    def forget_gradient(self) -> None:
        if self.stem.grad is not None:
            local(self.stem.grad)[:, self.columns] = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """A step that leaves them as they are, to the bit."""
        own = local(self.stem).detach()
        before = own[:, self.columns].clone()
        yield
        own[:, self.columns] = before


def is_new(name: str, *, widened: bool) -> bool:
    """Whether a parameter is one that inflation or widening added to an image network."""
    return is_temporal(name) or (widened and name == STEM)


def learning_rate(step: int, config: StageTraining) -> float:
    """Factor on the rate at `step`: linear warm-up, constant, decay to zero over the last `decay` share.

    `decay: 1` and `decay_shape: cosine` are the usual cosine schedule.
    """
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    tail = config.decay * config.steps
    fall = 1.0 if tail == 0 else max(0.0, min(1.0, (config.steps - step) / tail))
    if config.decay_shape == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    return rise * fall
