"""The training loop: losses in, optimiser steps out. Every method and every stage of pre-training runs on it.

What is special about a method is a function `losses(index, generator) -> {name: term}`; the loop sums the terms, steps,
reports, checkpoints, stops when asked to and stops by itself when a loss is no longer a number. Chance comes from one
`torch.Generator` per step, seeded by (seed, step), so a resumed run draws exactly what an uninterrupted one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note, OnEvent, StepDone, ignore
from trainers.distributed import ALONE, Processes
from trainers.loop.checkpoints import Checkpoint, Log
from trainers.loop.cuda_graphs import CudaGraphStep, set_rate
from trainers.loop.muon import Muon
from trainers.loop.schedule import Schedule

Losses = Callable[[int, torch.Generator], dict[str, Tensor]]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one step; the same for a run that was resumed."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (1 << 63))


def optimise(
    losses: Losses,
    optimizers: list[torch.optim.Optimizer],
    schedule: Schedule,
    *,
    rate: Callable[[int, int], float] = lambda step, steps: 1.0,
    after_step: Callable[[int], dict[str, float] | None] = lambda step: None,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
    scaler: torch.amp.GradScaler | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Run the loop and return the steps done.

    Args:
        losses: gives the named loss terms of a batch, by its index from 0; called `schedule.accumulate` times a step
            with the generator of that step.
        optimizers: all stepped each step; their learning rates are those set on them times `rate(step, steps)`.
        schedule: steps, seed, accumulation, clipping, reporting.
        rate: learning-rate factor.
        after_step: called with the steps done (moving averages, previews); figures it returns join the report.
        checkpoint: state to resume from and to keep.
        processes: those that train together; gradients and reports are their means, the main one keeps the state.
        scaler: scales losses up before they are differentiated, for networks in float16.
        on_event: receives `StepDone` and `Note`.
        should_stop: asked once a step; true leaves the loop with `Cancelled`, state kept.

    Raises:
        Cancelled: if `should_stop` said so.
        ConfigError: if a loss is not finite, naming the terms; what is trained is then as it was last kept. Or if more
            steps are done than asked for.
    """
    base = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
    stepper = _Stepper(optimizers, schedule.clip, processes, scaler, on_event)
    keeper = _Keeper(checkpoint, stepper, _Means(), processes, on_event)
    begun, report, start = keeper.begun(schedule), keeper.report, time.monotonic()
    for step in range(begun, schedule.steps):
        if processes.any(should_stop()):
            raise Cancelled(f"stopped after step {step} of {schedule.steps}.", keeper.stopped(step))
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, value in zip(optimizer.param_groups, rates, strict=True):
                set_rate(group, value * rate(step, schedule.steps))
        generator = step_generator(schedule.seed, step)
        for part in range(schedule.accumulate):
            terms = losses(step * schedule.accumulate + part, generator)
            stepper.backward(torch.stack(list(terms.values())).sum() / schedule.accumulate)
            report.add(terms)
        stepper.step()
        done = step + 1
        figures = after_step(done) or {}
        last = done == schedule.steps
        if done % schedule.report == 0 or last:
            means = processes.mean(report.take())
            keeper.require_finite(means, done, weights=last)
            keeper.log.append({"step": done, **means})
            on_event(StepDone(done, schedule.steps, means | figures, time.monotonic() - start))
        if checkpoint and (last or (done % checkpoint.every == 0 and processes.broadcast(checkpoint.due(done)))):
            keeper.keep(done)
    return schedule.steps


class _Means:
    """Means of named terms, summed on their device so that nothing waits for it before they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        self.count += 1
        for name, term in terms.items():
            before = self.sums.get(name)
            self.sums[name] = (term.new_zeros(()) if before is None else before.to(term)) + term.detach()

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        means = self.means()
        self.sums, self.count = {}, 0
        return means


class _Stepper:
    """Differentiates losses and steps the optimizers."""

    def __init__(
        self,
        optimizers: list[torch.optim.Optimizer],
        clip: float | None,
        processes: Processes,
        scaler: torch.amp.GradScaler | None,
        on_event: OnEvent,
    ) -> None:
        self.optimizers, self.clip, self.processes, self.scaler = optimizers, clip, processes, scaler
        self.parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        recordable = any(isinstance(one, Muon) for one in optimizers) and all(p.is_cuda for p in self.parameters)
        self.recorded = CudaGraphStep(optimizers, clip, on_event) if recordable and scaler is None else None

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> None:
        self.processes.average(self.parameters)
        if self.recorded is not None:
            self.recorded()
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            return
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimizer in self.optimizers:
            optimizer.step() if self.scaler is None else self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()

    def finite(self) -> bool:
        """Return whether no parameter has an invalid value; one question to the device for all of them."""
        largest = torch._foreach_norm([parameter.detach() for parameter in self.parameters], float("inf"))
        return bool(torch.isfinite(torch.stack([one.float() for one in largest])).all())


class _Keeper:
    """The checkpoints of a loop; never of a state with invalid values."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        stepper: _Stepper,
        report: _Means,
        processes: Processes,
        on_event: OnEvent,
    ) -> None:
        self.checkpoint, self.stepper, self.report, self.processes = checkpoint, stepper, report, processes
        self.on_event = on_event
        self.log: Log = []
        self.kept = 0

    def begun(self, schedule: Schedule) -> int:
        """Restore the saved state; return the steps it had done."""
        begun = self._restore()
        if begun > schedule.steps:
            raise ConfigError(
                f"{begun} steps are done already, {schedule.steps} were asked for.", "Ask for more, or begin anew."
            )
        if begun:
            self.on_event(Note(f"resumed after step {begun}"))
        return begun

    def _restore(self) -> int:
        if self.checkpoint is None:
            return 0
        begun, loop, self.log = self.checkpoint.load(self.on_event)
        for group in (group for optimizer in self.stepper.optimizers for group in optimizer.param_groups):
            group["lr"] = float(group["lr"])  # the state of recorded steps holds tensors
        if self.processes.broadcast(begun) != begun:
            raise ConfigError(
                f"This process found a state of step {begun}, the main one another.",
                f"Let all processes see the same {self.checkpoint.path}.",
            )
        if loop:
            self.report.sums, self.report.count = dict(loop["sums"]), loop["count"]
            if self.stepper.scaler is not None and loop["scaler"]:
                self.stepper.scaler.load_state_dict(loop["scaler"])
        self.kept = begun
        return begun

    def keep(self, step: int) -> None:
        """Save the state; a full disk is reported and does not stop the training."""
        self.require_finite(self.processes.mean(self.report.means()), step, weights=True)
        if self.checkpoint is None or not self.processes.main:
            return
        scaler = self.stepper.scaler
        loop = {
            "sums": self.report.sums,
            "count": self.report.count,
            "scaler": {} if scaler is None else scaler.state_dict(),
        }
        try:
            self.checkpoint.save(step, loop, self.log)
            self.kept = step
        except OSError as error:
            self.on_event(
                Note(
                    f"the state of step {step} could not be kept ({error.strerror or error}); training goes on. "
                    f"{_kept(self.kept)}; make room in {self.checkpoint.path.parent}"
                )
            )

    def stopped(self, step: int) -> str:
        """Save the state of a run that is stopped; return a sentence on how to resume it."""
        if self.checkpoint is None:
            return ""
        if step != self.kept:
            self.keep(step)
        return f"The same command goes on from step {self.kept}." if self.kept else "Nothing was done yet."

    def require_finite(self, means: dict[str, float], step: int, weights: bool) -> None:
        """Stop before an infinite loss or weight is saved; parameters go back to the saved state."""
        broken = [name for name, value in means.items() if not abs(value) < float("inf")]
        if not broken and not (weights and not self.stepper.finite()):
            return
        what = f"the loss ({', '.join(broken)})" if broken else "what is trained"
        back = self._restore()
        gone, saved = "", ""
        if back:
            gone = f" The state of step {back}, before it happened, is kept."
            saved = f" --steps {back} gives what was learned until then."
        raise ConfigError(
            f"{what} stopped being a number by step {step}: a step was too large, or the precision too low.{gone}",
            f"Lower the learning rate or train in float32, beginning anew.{saved}",
        )


def _kept(step: int) -> str:
    return f"The state of step {step} is still there" if step else "No state is kept yet"
