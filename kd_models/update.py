"""The updates of one iteration: forwards, losses, the generator's and the discriminator's phase, in one order of three.

    simultaneous    both phases see the student's output from before the generator's update, as BasicSR's SRGANModel
    g_first         the discriminator sees the output of the generator just updated
    d_first         the generator is judged by the discriminator just updated
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_models.averaging import forget
from kd_models.ema import update_ema
from kd_models.forwards import Forward, run
from kd_models.stages import Stage
from kd_models.step import Step
from kd_models.terms import Term
from kd_models.training import Training


def losses_on(terms: Mapping[str, Term], stage: Stage, iteration: int) -> tuple[str, ...]:
    """The generator's losses of an iteration in the order of their sum, whatever their order in the YAML file."""
    return tuple(name for name, term in terms.items()
                 if term.side == 'generator' and name in stage.losses and iteration >= term.starts)


def begin_stage(training: Training, terms: Mapping[str, Term], stage: Stage) -> None:
    """What a stage does once, before its first iteration."""
    if stage.optimizer == 'fresh':
        for optimizer in training.optimizers:
            forget(optimizer)
    if stage.ema == 'fresh' and training.net_g_ema is not None:
        update_ema(training.net_g_ema, training.net_g, 0)
    if stage.adaptors == 'fresh':
        _renew(training, [aux for name, aux in training.aux.items() if name in terms and terms[name].reads_features])


def _renew(training: Training, adaptors: list[nn.Module]) -> None:
    """Starts modules anew, and forgets what the optimizers know of them."""
    for adaptor in adaptors:
        for module in adaptor.modules():
            if callable(reset := getattr(module, 'reset_parameters', None)):
                reset()
        for optimizer in training.optimizers:
            for parameter in adaptor.parameters():
                optimizer.state.pop(parameter, None)
    training.runtime.synchronize(*adaptors)


class Update:
    """The updates of one iteration.

    Args:
        training: What is trained.
        terms: The losses by name, in the order of their sum.
        forwards: The table of forwards.
    """

    def __init__(self, training: Training, terms: Mapping[str, Term], forwards: Mapping[str, Forward]) -> None:
        self.training, self.terms, self.forwards = training, terms, forwards
        train_opt = training.opt['train']
        self.order = train_opt.get('update_order', 'simultaneous')
        self.net_d_iters = train_opt.get('net_d_iters', 1)
        self.net_d_init_iters = train_opt.get('net_d_init_iters', 0)

    def __call__(self, step: Step) -> OrderedDict[str, Tensor]:
        """Updates what the stage trains; log name -> value, without graph."""
        logs: OrderedDict[str, Tensor] = OrderedDict()
        self.forward(step)
        if self.order == 'd_first':
            self._update_discriminator(step, logs)
            self._update_generator(step, logs)
            return logs
        updated = bool(step.losses)
        self._update_generator(step, logs)
        if self.order == 'g_first' and updated and self._updates_discriminator(step):
            with torch.no_grad():
                step.losses, step.wanted = (), frozenset({'student'})
                run(self.forwards, self.training, step)
        self._update_discriminator(step, logs)
        return logs

    def forward(self, step: Step) -> None:
        """The student, and what else the losses of the stage read; without a graph where nothing is to be updated."""
        in_turn = self._is_generators_turn(step)
        step.losses = losses_on(self.terms, step.stage, step.iteration) if in_turn else ()
        step.wanted = frozenset({'student'}).union(*(self.terms[name].forwards for name in step.losses))
        with torch.set_grad_enabled(bool(step.losses)):
            run(self.forwards, self.training, step)

    def _is_generators_turn(self, step: Step) -> bool:
        """BasicSR's net_d_iters and net_d_init_iters hold while the discriminator is trained."""
        in_turn = step.iteration % self.net_d_iters == 0 and step.iteration > self.net_d_init_iters
        return in_turn or not self._updates_discriminator(step)

    def _updates_discriminator(self, step: Step) -> bool:
        return self.training.net_d is not None and step.stage.train_d

    def _update_generator(self, step: Step, logs: OrderedDict[str, Tensor]) -> None:
        if not step.losses:
            return
        training, optimizer = self.training, self.training.optimizers[0]
        if training.net_d is not None:
            training.net_d.requires_grad_(False)
        optimizer.zero_grad()
        total: Tensor | float = 0
        for name in step.losses:
            for log_name, value in self.terms[name](step).items():
                if log_name.startswith('l_'):
                    value = value * step.stage.weights[name] if name in step.stage.weights else value
                    total = total + value
                logs[log_name] = value.detach()
        step.features.clear()  # nobody reads them any more, and the discriminator's phase needs the memory
        step.upcycled = None
        training.runtime.backward(total)  # type: ignore[arg-type]
        training.runtime.step(optimizer)

    def _update_discriminator(self, step: Step, logs: OrderedDict[str, Tensor]) -> None:
        if not self._updates_discriminator(step):
            return
        training = self.training
        training.net_d.requires_grad_(True)
        distances: list[Any] = [term for term in self.terms.values()
                                if term.side == 'discriminator' and step.stage.distill_d]
        of_d = training.adversary.update_discriminator(step, training.optimizers[1], self.terms['gan'].criterion,
                                                       distances)
        logs.update((name, value.detach()) for name, value in of_d.items())
