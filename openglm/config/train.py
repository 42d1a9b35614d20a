"""Training settings, and the recipe of the embedded model. Frozen; a run writes its own into its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run. Rates are per step, weights are dimensionless, `progress` means the share of steps done.

    Defaults are the recipe of `glm-nano`. Where the GLM-4.5 report (arXiv 2508.06471, section 2.4) states a value, it is used
    (Muon momentum, update RMS, weight decay, MTP weights, balance rates); the learning rate is that of small models.
    """

    num_steps: int = 3000
    tokens_per_step: int = 8192  # whole documents, so a batch overshoots by less than one document
    max_document_tokens: int = 1024
    seed: int = 1
    learning_rate: float = 3e-3
    final_lr_ratio: float = 0.03  # cosine from learning_rate down to this share of it
    warmup_steps: int = 60
    weight_decay: float = 0.1
    muon_momentum: float = 0.95
    muon_update_rms: float = 0.2
    adam_betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    mtp_weight: float = 0.3
    late_mtp_weight: float = 0.1
    bias_update_rate: float = 1e-3  # loss-free balance; 0 in the late phase
    late_start: float = 2 / 3  # progress at which the late phase begins
    balance_weight: float = 1e-4
    prompt_weight: float = 0.2  # loss on prompt tokens, so that schemas are read; it fades to 0 at `prompt_until`
    prompt_until: float = 0.3
    mixture_from: float = 0.0  # progress at which the mixture of tasks begins; steps cover the rest of the way to 1
    refine_steps: int = 800  # steps of a second stage: the late mixture again, from a lower peak
    refine_learning_rate: float = 1e-3
    draft_steps: int = 240  # steps of a last stage that trains the MTP layer alone, chained on its own state
    draft_depth: int = 3
    draft_learning_rate: float = 1e-3
    eval_every: int = 400
    eval_episodes: int = 32  # held-out episodes per task, teacher-forced
    save_every: int = 100
    log_every: int = 20

    @property
    def all_steps(self) -> int:
        """Steps of the three stages together."""
        return self.num_steps + self.refine_steps + self.draft_steps

    def shortened(self, num_steps: int) -> TrainConfig:
        """The same run with so many steps in the first stage, and the others in proportion."""
        share = num_steps / self.num_steps
        refine_steps, draft_steps = (max(1, round(steps * share)) if steps else 0 for steps in (self.refine_steps, self.draft_steps))
        return replace(self, num_steps=num_steps, refine_steps=refine_steps, draft_steps=draft_steps)

    def refining(self) -> TrainConfig:
        """The settings of the second stage: all of it is late phase."""
        stage = self._later_stage(self.refine_steps, self.refine_learning_rate, seed=self.seed + 2)
        return replace(stage, late_start=0.0)

    def drafting(self) -> TrainConfig:
        """The settings of the last stage, which trains the MTP layer."""
        return self._later_stage(self.draft_steps, self.draft_learning_rate, seed=self.seed + 1)

    def _later_stage(self, num_steps: int, learning_rate: float, *, seed: int) -> TrainConfig:
        """Other data of the late mixture, no prompt loss."""
        return replace(
            self,
            num_steps=num_steps,
            seed=seed,
            learning_rate=learning_rate,
            warmup_steps=min(10, num_steps),
            mixture_from=self.late_start,
            prompt_weight=0.0,
        )

    def phase(self, progress: float) -> tuple[float, float]:
        """(MTP loss weight, router bias update rate) at this point of the run."""
        if progress < self.late_start:
            return self.mtp_weight, self.bias_update_rate
        return self.late_mtp_weight, 0.0

    def prompt_loss_weight(self, progress: float) -> float:
        """Weight of prompt tokens in the loss; trained tokens weigh 1."""
        return self.prompt_weight * max(0.0, 1.0 - progress / self.prompt_until) if self.prompt_until > 0 else 0.0
