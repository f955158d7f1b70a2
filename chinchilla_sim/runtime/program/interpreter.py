"""The thin interpreter: plays one rank's actions in order over torch.distributed's public calls.

Receives are posted where the program says (early), sends and collectives are issued in one order per rank and run
beside the computation; an action waits only for what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from chinchilla_sim.planner.action import CATEGORY, Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat
from chinchilla_sim.runtime.program.clipping import GradientNorm
from chinchilla_sim.runtime.program.gradients import SharedWeights, StageGradients
from chinchilla_sim.runtime.program.messages import Messages
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.passes import Loss, Passes, last_backward_of
from chinchilla_sim.runtime.stage.stages import Stage


class Interpreter:
    """One rank of a program."""

    def __init__(
        self,
        plan: Plan,
        actions: Sequence[Action],
        seat: Seat,
        stages: Sequence[Stage],
        loss: Callable[[Any, Any], Tensor],
        updates: Mapping[int, StageUpdate],
        groups: Groups,
        recorder: Recorder,
        device: torch.device,
        norm_limit: float | None = None,
        local_actions: Sequence[Action] = (),
    ) -> None:
        """`local_actions` are those of a step without exchange, where only some exchange."""
        self.plan, self.actions, self.seat, self.recorder, self.loss = plan, actions, seat, recorder, loss
        self.stages = {stage.number: stage for stage in stages}
        self.last = plan.stage_count - 1 in self.stages
        self.messages = Messages(plan, seat, self.stages, groups, recorder, device)
        self.passes = {number: Passes(stage, last_backward_of(actions, number)) for number, stage in self.stages.items()}
        self.gradients = {
            number: StageGradients(plan, self.stages[number], seat, groups, recorder, update) for number, update in updates.items()
        }
        self.shared = _shared_weights(plan, seat, self.stages, updates, groups)
        self._microbatches = plan.global_batch_size // plan.microbatch_size
        self._averaged = plan.microbatches_of(seat.replica) if plan.local_steps > 1 else self._microbatches
        """Microbatches of a step, and those whose mean loss is minimized."""
        self.norm = GradientNorm(plan, seat, self.stages, updates, groups, norm_limit) if norm_limit and plan.clips_gradients else None
        self.inputs: Sequence[tuple[Tensor, ...]] = ()
        self.targets: Sequence[Any] = ()
        self.step_loss = 0.0
        self.outputs: dict[int, Any] = {}
        self.beat: Callable[[str], None] = lambda _: None
        """Told the label of every action when it begins."""
        self._rows = {True: _labelled(actions), False: _labelled(local_actions)}
        self._play = self._players()

    def _players(self) -> dict[Op, Callable[[Action], None]]:
        """What plays each kind of action."""
        return {
            Op.F: self._forward,
            Op.B: self._backward,
            Op.I: self._backward,
            Op.W: self._weight_gradients,
            Op.SEND_F: self.messages.send,
            Op.SEND_B: self.messages.send,
            Op.RECV_F: self.messages.post,
            Op.RECV_B: self.messages.post,
            Op.ENCODE_F: self.messages.encode,
            Op.ENCODE_B: self.messages.encode,
            Op.DECODE_F: self.messages.decode,
            Op.DECODE_B: self.messages.decode,
            Op.ENCODE_GRAD: lambda action: self.gradients[action.stage].encode(),
            Op.REDUCE_GRAD: lambda action: self.gradients[action.stage].reduce(),
            Op.DECODE_GRAD: lambda action: self.gradients[action.stage].decode(),
            Op.REDUCE_SHARED: self._reduce_shared,
            Op.NORM_GRAD: self._add_squares,
            Op.REDUCE_NORM: self._reduce_norm,
            Op.OPTIM: self._optimize,
            Op.AGREE: self._agree,
            Op.UNSHARD: lambda action: self.gradients[action.stage].gather(),
        }

    def replace_player(self, op: Op, around: Callable[[Callable[[Action], None]], Callable[[Action], None]]) -> None:
        """Let actions of a kind be played by what `around` makes of their player."""
        self._play[op] = around(self._play[op])

    def step(
        self, inputs: Sequence[tuple[Tensor, ...]], targets: Sequence[Any], begun_s: float | None = None, *, exchanging: bool = True
    ) -> float:
        """Play one step on this rank's microbatches; returns its share of the global mean loss.

        The step is recorded from `begun_s` on, when the rank began to get them. Behind one that is not `exchanging` replicas differ.
        """
        self.inputs, self.targets, self.step_loss = inputs, targets, 0.0
        self.outputs = {}
        for shared in self.shared.values():
            shared.open = True
        if self.norm:
            self.norm.begin_step()
        if exchanging:
            for gradients in self.gradients.values():
                gradients.begin_step()
        self.messages.begin_step()
        self.recorder.begin_step()
        if begun_s is not None:
            self.recorder.compute("INPUT", "input", begun_s)
        for action, label in self._rows[exchanging]:
            self.beat(label)
            self._play[action.op](action)
        self.messages.end_step()
        for gradients in self.gradients.values():
            gradients.end_step()
        self.recorder.end_step()
        return self.step_loss

    def _record(self, action: Action, start_s: float) -> None:
        divider = self.stages[action.stage].divider
        waited_s, sent_bytes = divider.lanes.take_waited() if divider else (0.0, 0.0)
        self.recorder.compute(str(action), CATEGORY[action.op], start_s, waited_s, sent_bytes)

    # Computation

    def _forward(self, action: Action) -> None:
        stage, microbatch = action.stage, action.microbatch
        assert microbatch is not None
        taken = self.messages.take(True, stage, microbatch) if stage else []
        start_s = monotonic()
        inputs = tuple(self.messages.join(True, stage, microbatch, taken)) if stage else self.inputs[microbatch]
        if not self.plan.training:
            outputs = self.passes[stage].infer(inputs)
        else:
            outputs = self.passes[stage].forward(microbatch, inputs, self._loss_of(microbatch) if self.stages[stage].last else None)
        if self.stages[stage].last:
            self._keep(microbatch, outputs)
        else:
            self.messages.leave(True, stage, microbatch, outputs)
        self._record(action, start_s)

    def _loss_of(self, microbatch: int) -> Loss:
        """The mean over the global batch is the mean of the means of equal microbatches; a local step's is over the replica's own."""
        restore = self.stages[self.plan.stage_count - 1].restore
        return lambda outputs: self.loss(restore(outputs), self.targets[microbatch]) / self._averaged

    def _keep(self, microbatch: int, outputs: tuple[Tensor, ...]) -> None:
        if self.plan.training:
            self.step_loss += float(outputs[0].detach()) * self._averaged / self._microbatches
        else:
            self.outputs[microbatch] = outputs

    def _backward(self, action: Action) -> None:
        stage, microbatch = action.stage, action.microbatch
        assert microbatch is not None
        taken = [] if self.stages[stage].last else self.messages.take(False, stage, microbatch)
        start_s = monotonic()
        gradients = None if self.stages[stage].last else self.messages.join(False, stage, microbatch, taken)
        passes = self.passes[stage]
        if action.op is Op.I:
            found = passes.input_gradients(microbatch, gradients)
            self._record(action, start_s)
        else:
            found = self._with_buckets(action, start_s, lambda leave: passes.backward(microbatch, gradients, leave))
        if stage:
            self.messages.leave(False, stage, microbatch, found)

    def _weight_gradients(self, action: Action) -> None:
        microbatch = action.microbatch
        assert microbatch is not None
        passes = self.passes[action.stage]
        self._with_buckets(action, monotonic(), lambda leave: passes.weight_gradients(microbatch, leave))

    def _with_buckets(self, action: Action, start_s: float, run: Callable[[Callable[[int], None]], Any]) -> Any:
        """Run a pass whose buckets leave on the way; each part of it is a span."""
        gradients, begun = self.gradients[action.stage], [start_s]

        def leave(bucket: int) -> None:
            if gradients.split:
                self._record(action, begun[0])
                gradients.leave(bucket)
                begun[0] = monotonic()

        result = run(leave)
        if begun[0] == start_s:
            self._record(action, start_s)
        return result

    # Gradients and update

    def _reduce_shared(self, action: Action) -> None:
        assert action.microbatch is not None
        self._complete_all(action.microbatch)
        self.shared[action.microbatch].reduce(self.recorder, str(action))

    def _complete(self, stage: int) -> None:
        """Wait until a stage's gradients are sums over its replicas."""
        self.gradients[stage].wait()
        self.gradients[stage].finish()
        self.gradients[stage].update.collect()

    def _complete_all(self, number: int) -> None:
        """The same for this rank's stages that share a set of weights."""
        for stage in self.plan.shared_stages[number]:
            if stage in self.gradients:
                self._complete(stage)

    def _complete_with_shared(self, stage: int) -> None:
        """Wait until a stage's gradients are sums over its replicas, and over the stages that it shares weights with."""
        for number, shared in self.shared.items():
            if shared.open and stage in self.plan.shared_stages[number]:
                self._complete_all(number)
                shared.finish(self.recorder)
        self._complete(stage)

    def _add_squares(self, action: Action) -> None:
        self._complete_with_shared(action.stage)
        start_s = monotonic()
        if self.norm:
            self.norm.add(action.stage)
        self._record(action, start_s)

    def _reduce_norm(self, action: Action) -> None:
        if self.norm:
            self.norm.reduce(self.recorder, str(action))

    def _agree(self, action: Action) -> None:
        gradients = self.gradients[action.stage]
        gradients.wait()
        start_s = monotonic()
        gradients.finish()
        gradients.agree()
        self._record(action, start_s)

    def _optimize(self, action: Action) -> None:
        self._complete_with_shared(action.stage)
        if self.norm:
            self.norm.wait(self.recorder)
        start_s = monotonic()
        if self.norm:
            self.norm.scale(action.stage)
        self.gradients[action.stage].optimize()
        self._record(action, start_s)


def _labelled(actions: Sequence[Action]) -> list[tuple[Action, str]]:
    return [(action, str(action)) for action in actions]


def _shared_weights(
    plan: Plan, seat: Seat, stages: Mapping[int, Stage], updates: Mapping[int, StageUpdate], groups: Groups
) -> dict[int, SharedWeights]:
    """Sets of weights that stages of this rank share with others (of this rank or elsewhere), by number."""
    found = {}
    for number, group in enumerate(plan.shared_stages):
        here = [stage for stage in group if stage in stages]
        if here:
            copies = [[updates[stage].master_of(one) for one in stages[stage].shared[number]] for stage in here]
            dtype = stages[here[0]].dtype
            found[number] = SharedWeights(plan, number, copies, dtype, seat, groups)
    return found
