"""The engine process with a scripted choice of tokens: `python -m clients.scripted_engine SOCKET`, in the place of
`openglm.engine.process`.

Scheduling, prefill, forward, sampling, drafts and their verification, stops and logprobs are the real ones. The script enters at
the two places where the engine asks what comes next: it lifts the logit of its token above all others (a grammar still rules it
out, and another is drawn), and it drafts its own continuation, so that several tokens of a reply arrive in one step.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from torch import Tensor

from openglm.config.engine import EngineConfig, model_directory
from openglm.engine import process
from openglm.engine.adjust import LogitAdjuster
from openglm.engine.core import EngineCore
from openglm.engine.protocol import EngineInfo
from openglm.engine.sequence import Sequence
from openglm.engine.speculation import Proposer, Settled
from openglm.text.tokenizer import Tokenizer

from .script import reply, turns_of

_LIFT = 1e4


class ScriptedAdjuster(LogitAdjuster):
    """The adjustments that requests ask for, and then the script's."""

    def __init__(self, core: EngineCore, tokenizer: Tokenizer) -> None:
        super().__init__(core.num_tokens, core.adjuster.thinking, core.runner.device)
        self._tokenizer = tokenizer
        self._scripts: dict[str, list[int]] = {}

    def add(self, sequence: Sequence, stop_ids: Iterable[int]) -> None:
        super().add(sequence, stop_ids)
        try:
            text = reply(turns_of(sequence.tokens[: sequence.num_prompt], self._tokenizer))
        except Exception as error:  # an agent's answer shows it better than the end of the engine does
            text = f"The script failed: {type(error).__name__}: {error}<|user|>"
        if text is not None:
            self._scripts[sequence.id] = self._tokenizer.encode_raw(text)

    def remove(self, request_id: str) -> None:
        super().remove(request_id)
        self._scripts.pop(request_id, None)

    def following(self, sequence: Sequence, count: int) -> list[int]:
        """The script's next tokens, at most `count`; none when it has no more to say, or has been led away from its words."""
        script, said = self._scripts.get(sequence.id, []), sequence.num_output
        if sequence.tokens[sequence.num_prompt :] != script[:said]:
            return []
        return script[said : said + count]

    def adjust(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor | None:
        adjusted = super().adjust(logits, sequences)
        first = 0
        for sequence in sequences:
            wanted = self.following(sequence, 1 + len(sequence.drafts))
            if wanted and adjusted is None:
                adjusted = logits[:, : self._num_tokens].clone()
            for i, token in enumerate(wanted):
                adjusted[first + i, token] += _LIFT
            first += 1 + len(sequence.drafts)
        return adjusted


class ScriptedProposer:
    """The engine's own proposer, whose drafts are replaced by the script's where there is one."""

    def __init__(self, plain: Proposer, script: ScriptedAdjuster) -> None:
        self._plain = plain
        self._script = script

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> list[list[int] | None]:
        drafts = self._plain.propose(settled, hidden)
        return [
            own if own is None else self._script.following(item.sequence, item.depth) or own
            for item, own in zip(settled, drafts, strict=True)
        ]


def load(config: EngineConfig, on_phase: process.OnPhase) -> tuple[EngineCore, EngineInfo]:
    """The real engine, with the script put in."""
    core, info = process.load_core(config, on_phase)
    core.adjuster = script = ScriptedAdjuster(core, Tokenizer.from_dir(model_directory(config.model)))
    if core.proposer is not None:
        core.proposer = ScriptedProposer(core.proposer, script)
    return core, info


class ScriptedProcess(process.EngineProcess):
    """Loads that engine."""

    def load(self, config: EngineConfig, load_core: process.Loader) -> None:
        del load_core
        super().load(config, load)


if __name__ == "__main__":
    process.EngineProcess = ScriptedProcess
    process.main()
