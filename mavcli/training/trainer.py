"""One step of training: the network, its moving average and its optimisers, on one process or on many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mavcli.engine.backend import Backend
from mavcli.models.unet import UNet
from mavcli.training.batches import Batches
from mavcli.training.checkpoint import Checkpoint
from mavcli.training.distributed import Group, local
from mavcli.training.draws import Draws
from mavcli.training.dropout import dropping, own_dropout
from mavcli.training.optim import InheritedColumns, build_optimizers, choose_trained, learning_rate
from mavcli.training.parallel import Layout
from mavcli.training.stage import Batch, Stage, Task

_HELD_OUT_STEPS = 4


@dataclass(frozen=True)
class Step:
    """What a step came to: its mean loss and its gradient's norm over all processes, and the rows whose loss is no number.

    A step whose loss or gradient is not finite has changed nothing.
    """

    loss: float
    norm: float
    bad_rows: tuple[int, ...] = ()

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Trainer:
    """The network in training, its exponential moving average and its optimisers."""

    def __init__(
        self,
        task: Task,
        stage: Stage,
        backend: Backend,
        *,
        inherited: bool = False,
        widened: bool = False,
    ) -> None:
        self.task, self.stage, self.backend, self.config = task, stage, backend, task.config
        self.group: Group = task.group
        self.network = task.network
        self.dropouts = own_dropout(self.network)
        choose_trained(self.network, task.config, widened=widened)  # DDP looks at it once, when it is made
        self.layout = Layout(self.network, task.config, task.group)
        self.optimizers, self.count = build_optimizers(
            task.network, task.config, inherited=inherited, widened=widened
        )
        self.inherited = None
        if widened and task.config.train == "temporal" and isinstance(task.network, UNet):
            self.inherited = InheritedColumns(task.network)
        self.trained = [p for p in task.network.parameters() if p.requires_grad]
        self.smooth = float("nan")
        self.average: dict[str, Tensor] = {}
        self.reset_average()

    def reset_average(self) -> None:
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def step(self, step: int, batch: Batch) -> Step:
        """One update; where the loss or the gradient is not finite, none."""
        factor = learning_rate(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
        losses = self._backward(step, batch, exchange=not self.config.sam_rho)
        if self.config.sam_rho:
            foot = self._climb()
            self._backward(step, batch)
            torch._foreach_copy_([p.data for p in foot], list(foot.values()))
        if self.inherited is not None:
            self.inherited.forget_gradient()
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.clip_grad)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        rows = len(losses) * self.group.world
        result = Step(float(self.group.sum(losses.sum())) / rows, float(norm))
        if result.finite:
            with nullcontext() if self.inherited is None else self.inherited.held():
                for optimizer in self.optimizers:
                    optimizer.step()
            self._update_average(step)
            old = self.smooth
            self.smooth = result.loss if math.isnan(old) else 0.98 * old + 0.02 * result.loss
        else:
            mine = (batch.first + (~torch.isfinite(losses)).nonzero().flatten()).tolist()
            bad = tuple(row for rows in self.group.gather(mine) for row in rows)
            result = Step(result.loss, result.norm, bad)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return result

    def _backward(self, step: int, batch: Batch, *, exchange: bool = True) -> Tensor:
        """Gradients of the mean loss of all rows of all processes, or without `exchange` of this one's; the losses (b,) of
        this process's rows. With pictures beside clips the mean is over frames, as VDM has it, and the losses are the clips'."""
        if batch.beside is None:
            return self._summed(step, batch, share=1.0, exchange=exchange)
        frames, pictures = batch.pixels.shape[0] * batch.pixels.shape[1], len(batch.beside.pixels)
        share = frames / (frames + pictures)
        self._summed(step, batch.beside, share=1 - share, exchange=False)
        return self._summed(step, batch, share=share, exchange=exchange)

    def _summed(self, step: int, batch: Batch, *, share: float, exchange: bool) -> Tensor:
        """Add `share` of the gradient of the mean loss of the rows, some at once; their losses (b,)."""
        whole = len(batch.pixels)
        rows = whole if self.config.micro_batch is None else self._micro_rows(whole)
        losses = []
        for start in range(0, whole, rows):
            part = batch.rows(start, min(start + rows, whole))
            draws = self.draws(step, part)
            with (
                self.layout.gradients(exchange=exchange and start + rows >= whole),
                dropping(self.dropouts, draws.seeds),
            ):
                with self.backend.autocast():
                    loss = self.layout.run(self.stage.loss, self.task, part, draws)
                (loss.sum() * share / whole).backward()  # processes are averaged over by DDP and FSDP
            losses.append(loss.detach())
        return torch.cat(losses)

    def _climb(self) -> dict[nn.Parameter, Tensor]:
        """Go from the weights w to w + rho g / |g|, g the gradient of this process's rows, which is forgotten (SAM, arXiv
        2010.01412, equation 2; each replica for itself, as in unCLIP's appendix C). Returns w, to come back to its very bits.

        Stays at w where g is zero or not finite: the loss there tells.
        """
        climbing = {p: p.grad for p in self.trained if p.grad is not None}
        norm = float(nn.utils.get_total_norm(list(climbing.values()))) if climbing else 0.0
        foot = {p: p.detach().clone() for p in climbing}
        if math.isfinite(norm) and norm > 0:
            torch._foreach_add_(
                [p.data for p in climbing], list(climbing.values()), alpha=self.config.sam_rho / norm
            )
        for p in climbing:
            p.grad = None
        return foot

    def _micro_rows(self, whole: int) -> int:
        """Rows at once: a step of stills has several rows for each sample of the recipe."""
        share = self.config.batch_size // self.group.world
        return max(1, (self.config.micro_batch or share) * whole // share)

    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        state = self.network.state_dict()
        names = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [local(self.average[k]) for k in names], [local(state[k]).detach() for k in names], 1 - decay
        )
        for k in state.keys() - set(names):
            self.average[k].copy_(state[k])

    def draws(self, step: int, batch: Batch, *, held_out: bool = False) -> Draws:
        return Draws(
            self.task.recipe.train.seed,
            stage=self.stage.name,
            step=step,
            first=batch.first,
            count=len(batch.pixels),
            held_out=held_out,
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its moving average as weights."""
        state = self.network.state_dict()
        own = {k: local(v).detach().clone() for k, v in state.items()}
        _put(state, {k: local(v) for k, v in self.average.items()})
        self.network.eval()
        try:
            with torch.no_grad(), self.backend.autocast():
                yield
        finally:
            _put(state, own)
            self.network.train()

    def held_out_loss(self, batches: Batches) -> float:
        """Mean loss of the averaged network on samples that training never draws, always the same.

        NaN where the stage compares rows and none of these has another to be compared with.
        """
        total = torch.zeros(2)
        with self.averaged():
            for i in range(_HELD_OUT_STEPS):
                batch = batches[i]
                draws = self.draws(i, batch, held_out=True)
                losses = self.layout.run(self.stage.loss, self.task, batch, draws)
                told = torch.ones_like(losses)
                if self.stage.comparable is not None:
                    told = self.stage.comparable(self.task, batch).to(losses)
                total += torch.stack([(losses * told).sum(), told.sum()]).float().cpu()
        loss, rows = self.group.sum(total)
        return float(loss / rows) if rows else math.nan

    def preview(self, batch: Batch, draw: Callable[[Task, Batch, torch.Generator], Tensor]) -> Tensor:
        """`draw` with the averaged network; with FSDP all processes take part."""
        generator = torch.Generator().manual_seed(self.task.recipe.train.seed)
        with self.averaged():
            return self.layout.run(draw, self.task, batch, generator)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on; shares of it with FSDP."""
        state = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"average/{k}": v for k, v in self.average.items()}
        for name, values in self._moments():
            state |= {f"optimizer/{name}/{k}": v for k, v in values.items()}
        return state

    def _moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.network.named_parameters()}
        for optimizer in self.optimizers:
            for parameter, values in optimizer.state.items():
                yield names[parameter], values

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, whatever the number of processes that wrote it."""
        owners = {
            p: optimizer for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]
        }
        parameters = dict(self.network.named_parameters())
        for key, shape in checkpoint.shapes().items():
            kind, name, *moment = key.split("/")
            if (
                kind == "optimizer"
                and (parameter := parameters.get(name)) in owners
                and parameter is not None
            ):
                like = parameter.detach()
                owners[parameter].state[parameter][moment[0]] = (
                    torch.zeros_like(like)
                    if shape == tuple(like.shape)
                    else torch.zeros(shape, device=like.device)
                )
        with torch.no_grad():
            checkpoint.read_into(self.tensors())
        loss = checkpoint.manifest["loss"]
        self.smooth = math.nan if loss is None else float(loss)

    def exported(self) -> dict[str, Tensor]:
        """The averaged weights in bfloat16, whole, on the CPU; every process must ask, the first one gets them.

        Buffers (the statistics of P's embeddings, of batch norms) stay in float32: they are few, and no weights.
        """
        weights, exact = {}, {name for name, _ in self.network.named_buffers()}
        for name, value in self.average.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.group.first:
                rounded = whole.is_floating_point() and name not in exact
                weights[name] = (whole.bfloat16() if rounded else whole).cpu()
        return weights


def _put(state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        local(state[name]).detach().copy_(value)
