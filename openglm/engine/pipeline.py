"""Decoding ahead: while the host reads what one step chose and tells it to the clients, the device computes the next step already.

    host     launch n+1 | wait for n, accept, settle, output | launch n+2 | wait for n+1, ...
    device   ... step n             | step n+1                            | step n+2

A step can be launched before the tokens of the one before it are known to the host, because everything else about it is known: where each
row's KV goes, how long each sequence is, which number u decides its next token. The token itself never leaves the device: the step's
graph takes it from where the sampler put it. So a GPU that would idle while the host works does not, as long as that takes less than a
step.

**When.** A step is followed only where nothing but the next token of each of its sequences can come next: each gets exactly one token
from it (so there are no drafts, and no prompt that goes on), no sequence has a grammar, penalties, bans or a thinking budget (these look
at the last token on the host), nobody decides to draft, no other sequence runs, no waiting one could be admitted, and there are pages for
all. Otherwise nothing is launched, the step in flight is read, and the call after that schedules as usual. That is all that draining
takes.

**State.** There is at most one step that was launched and not read, and it lives here. Nothing else knows of it: `Sequence.computed` and
`tokens`, the published pages and all counts are those of the steps that were read, so aborts, deadlines, preemption and the page
accounting work on true states. A call of `EngineCore.step` returns what exactly one step gave, the oldest; it is the step that the same
call would have returned without a pipeline, but for waiting requests, which may start a call later. Nobody sits on results: who has an
unread token runs, so the engine has work.

**In vain.** A sequence that ends by a token which the host had not seen when the next step was launched, or is aborted, expires or is
preempted meanwhile, has a row in a step that is of no use. It loses its place in the page table (`row` -1) at once, and `take` leaves
such rows out. (An end by length is known beforehand, and costs no row.) Its pages may be given to others right away, although the device
may still write into them: all work runs in one stream in the order in which it was launched, so whatever the next owner writes comes
later, and attention reads nothing of a page that its owner has not written. Published pages are never written, for the row in vain lies
behind the last true position, hence in no complete page. For the same reason copies to and from the host tier, and wiping, need no
waiting.

**Dropping** the unread step is always right, too: its tokens are computed again, from the same state to the same values. That is how a
change of weights and "stop thinking now" take effect at the next token.

**Faults.** A row that is not finite ends its request when it is read; what its next row has written since is wiped with its pages, later
in the same stream. If choosing the tokens of a step cannot be launched, because the parameters of one request are broken, the step is not
followed, and is read as any other: each request is then sampled alone, from logits that nothing has overwritten. Where the device itself
fails, reading raises, and the engine as a whole is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from openglm.engine.device_sampler import DeviceSampler, Draw
from openglm.engine.runner import Batch, Runner
from openglm.engine.sampler import SamplingRow
from openglm.engine.scheduler import Scheduler
from openglm.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Launched(NamedTuple):
    """A step that the device has been told to do."""

    batch: Batch
    hidden: Tensor  # [T, H]
    logits: Tensor | None  # [N, vocab], until the next step is launched; None inside prompts
    draw: Draw | None = None
    """The tokens, where the device chooses them right away."""
    draw_rows: Seq[int] = ()
    """For each span of the batch its row of the draw."""


class Pipeline:
    """Launches steps ahead, and keeps the one that is not read yet."""

    def __init__(self, scheduler: Scheduler, runner: Runner, sampler: DeviceSampler, is_free: Callable[[Sequence], bool]) -> None:
        """`is_free` tells whether a sequence's next token depends on its logits and sampling parameters alone."""
        self._scheduler, self._runner, self._sampler = scheduler, runner, sampler
        self._is_free = is_free
        self._ahead: Launched | None = None

    def take(self) -> Launched | None:
        """The step that was launched ahead, for reading, with the rows of those that still run; None without any."""
        step, self._ahead = self._ahead, None
        if step is None:
            return None
        spans = tuple(span for span in step.batch.spans if span.sequence.row >= 0)
        if len(spans) == len(step.batch.spans):
            return step
        if not spans:
            return None
        rows = [span.first_row for span in spans]
        logits = step.logits if step.draw is not None or step.logits is None else self._runner.take(step.logits, rows)
        return Launched(replace(step.batch, spans=spans), step.hidden, logits, step.draw, rows)

    def drop(self) -> None:
        """Forget the step that was launched ahead; it will be computed again."""
        self._ahead = None

    def start_drawing(self, step: Launched) -> Launched:
        """Let the device choose the step's tokens before anyone asks, if each of its sequences gets exactly one and is free to."""
        spans = step.batch.spans
        if step.logits is None or not all(span.num_logits == 1 and self._is_free(span.sequence) for span in spans):
            return step
        rows = [SamplingRow(span.sequence.params, span.sequence.seed, len(span.sequence.tokens)) for span in spans]
        return self._drawing(step, step.logits, rows)

    def launch_behind(self, step: Launched) -> None:
        """Launch the step that follows `step`, unless it has to wait until `step` is read."""
        spans = step.batch.spans
        if step.draw is None or len(self._scheduler.running) != len(spans):
            return
        going_on = [
            (span.sequence, row)
            for span, row in zip(spans, step.draw_rows, strict=True)
            if len(span.sequence.tokens) + 1 < span.sequence.max_total
        ]
        if not going_on:
            return
        sequences = [sequence for sequence, _ in going_on]
        if not self._scheduler.reserve_ahead(sequences):
            return
        self._runner.transfer(self._scheduler.pool.take_transfers())
        batch = self._runner.prepare_behind(sequences, [row for _, row in going_on], step.draw.tokens)
        if batch is None:
            return
        hidden, logits = self._runner.run(batch)
        assert logits is not None
        rows = [SamplingRow(sequence.params, sequence.seed, len(sequence.tokens) + 1) for sequence in sequences]
        self._ahead = self._drawing(Launched(batch, hidden, logits), logits, rows)

    def _drawing(self, step: Launched, logits: Tensor, rows: Seq[SamplingRow]) -> Launched:
        try:
            draw = self._sampler.start(logits, rows)
        except Exception:
            logger.exception("choosing the tokens of %d requests ahead failed; they are chosen when the step is read", len(rows))
            draw = None
        return step._replace(draw=draw, draw_rows=range(len(rows)))
