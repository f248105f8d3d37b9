"""How a network is laid over processes and memory: DDP or FSDP2, recomputation of blocks, compilation of blocks, CUDA graphs.

Everything happens outside the network: its names, and so its checkpoints, stay those of the plain one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mavcli.errors import RecipeError
from mavcli.models.transformer import Block
from mavcli.models.unet import Stage, UNet
from mavcli.recipe.schema import StageTraining
from mavcli.training.distributed import Group
from mavcli.training.graphs import Recorded

_FORMS = 4
"""In which a block is compiled at most: for clips, for stills, and each for the rest of a step that micro batches leave."""


class Objective(nn.Module):
    """Calls a function with the network inside, so that what wraps this module sees every use of a parameter.

    A loss may use its network in more ways than `network(x)`: two towers, a temperature.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(*arguments)


class Layout:
    """A network on its processes. `run` calls a loss or a preview; `gradients` says when gradients are exchanged."""

    def __init__(self, network: nn.Module, config: StageTraining, group: Group) -> None:
        self.group = group
        self.sharded = group.world > 1 and config.sharding == "fsdp"
        self.ddp: DistributedDataParallel | None = None
        if config.compile:
            _allow_forms(len(blocks(network)) * _FORMS)
        for block in blocks(network):
            # Around `forward` and not around the module: FSDP's own hooks stay outside.
            if config.compile:
                block.forward = _compiled(block.forward)
            if config.recompute:
                block.forward = functools.partial(_again, block.forward)
        if config.cuda_graphs and isinstance(network, UNet) and next(network.parameters()).is_cuda:
            network.forward = Recorded(network)  # type: ignore[method-assign]
        if group.world > 1:
            sync_batch_norms(network)
        self.objective = Objective(network)
        if self.sharded:
            for block in blocks(network):
                fully_shard(block, mesh=group.shards())
            # Resharded, so that no stale full copy outlives a change of the shards (`Trainer.averaged`).
            fully_shard(self.objective, mesh=group.shards(), reshard_after_forward=True)
        elif group.world > 1:
            # A kernel of one frame has strides that mean nothing, and DDP warns of them in the middle of the progress.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # Which parameters take part differs from step to step: stills skip the temporal layers.
            self.ddp = DistributedDataParallel(
                self.objective,
                gradient_as_bucket_view=True,
                find_unused_parameters=True,
            )

    def run(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)`; with FSDP every process must call this equally often."""
        training = self.ddp is not None and torch.is_grad_enabled()
        module = self.ddp if training and self.ddp is not None else self.objective
        return module(function, *arguments)

    @contextmanager
    def gradients(self, *, exchange: bool) -> Iterator[None]:
        """A forward and backward pass, after which gradients are summed up here or over all processes."""
        if isinstance(self.objective, FSDPModule):
            self.objective.set_requires_gradient_sync(exchange)
            yield
        elif self.ddp is not None and not exchange:
            with self.ddp.no_sync():
                yield
        else:
            yield


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: what is sharded, recomputed and compiled one by one."""
    return [
        module
        for module in network.modules()
        # open_clip's by its name: importing it takes seconds
        if isinstance(module, Stage | Block) or type(module).__name__ == "ResidualAttentionBlock"
    ]


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward`, compiled where gradients are wanted. Previews and held-out losses have shapes of their own, seldom.

    Shapes are compiled as they are: a training has few, and a kernel for all of them is slower than one for each.
    """
    compiled = torch.compile(forward, dynamic=False)

    def run(*arguments: Any, **named: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        try:
            return compiled(*arguments, **named)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise RecipeError(
                f"`compile: true` cannot be had on this machine: {reason}",
                hint="install a C++ compiler (`apt install g++`), or set `compile: false` for this stage",
            ) from error

    return run


def _allow_forms(count: int) -> None:
    """Let torch compile one function so often. Blocks share the code of their class, and of 8 forms on it gives up quietly."""
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, count)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, count)


def _again(forward: Callable[..., Tensor], *arguments: Any, attn_mask: Tensor | None = None) -> Tensor:
    if attn_mask is not None:  # open_clip's blocks get theirs by name
        forward = functools.partial(forward, attn_mask=attn_mask)
    if not torch.is_grad_enabled():
        return forward(*arguments)
    # Dropout draws from the samples' own generators, so there is no random state to put back.
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes; torch's own wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """x (b, c, h, w); every process has equally many values."""
        if not self.training:
            return super().forward(x)
        flat = x.float()
        world = torch.distributed.get_world_size()
        mean = differentiable.all_reduce(flat.mean((0, 2, 3))) / world
        centred = flat - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().mean((0, 2, 3))) / world
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            n = world * x.numel() / x.shape[1]
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * n / (n - 1), share)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


def sync_batch_norms(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
