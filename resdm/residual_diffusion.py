"""ResDM: scheduler, prior module, U-Net and losses together (§3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from resdm.attributes import draw_priors
from resdm.batch import PROMPT_FIELDS, TRACERS, Batch, Prior
from resdm.layers.paths import LinearPath
from resdm.losses import total_loss
from resdm.method import Method
from resdm.open_prior import prior_module
from resdm.pretraining import pretrain_text_tower
from resdm.prior import PriorConfig, prompts
from resdm.scheduler import ResidualScheduler
from resdm.settings import MethodConfig, further, require
from resdm.unet import NetworkConfig, UNet


@dataclass(frozen=True)
class ResidualDiffusionConfig(MethodConfig):
    """ResDM. Defaults are those of the released code (T, η, κ, λ, optimiser)."""

    kind: str = "residual_diffusion"
    steps: int = 15  # T
    eta: Literal["linear", "geometric"] = "linear"
    eta_range: tuple[float, float] = (0.04, 0.999)  # η_1, η_T
    eta_power: float = 0.3  # p of the geometric sequence (ResShift)
    kappa: float = 0.1
    lambda_high: float = 0.1
    start_share: float = 0.0  # chance of training at t = T − 1, beyond uniform draws; 0 as the paper
    sampling_steps: int | None = None  # None: T
    ema: float = 0.9999
    ema_warmup: int = 2000  # plain copies before
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.eta_range
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(0 < low < high <= 1, "eta_range", self.eta_range, "0 < low < high ≤ 1")
        require(self.eta_power > 0, "eta_power", self.eta_power, "more than 0")
        require(self.kappa > 0, "kappa", self.kappa, "more than 0")
        chosen = self.sampling_steps is None or 1 <= self.sampling_steps <= self.steps
        require(chosen, "sampling_steps", self.sampling_steps, f"1 to {self.steps}")
        require(0 <= self.start_share <= 1, "start_share", self.start_share, "0 to 1")


class PriorGuided(Method):
    """The part that ResDM and its regression control share: network, text, both tracers of a batch in one pass."""

    config: ResidualDiffusionConfig
    shared_draws = True

    def __init__(self, config: ResidualDiffusionConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.prior = prior_module(config.prior)
        self.unet = None if self.closed_form else UNet(config.network, config.prior.dim)
        width = self.prior.tower.positional_embedding.shape[1]
        self.linear = LinearPath(shape, width) if config.network.linear_path else None

    def prepare(self, seed: int, folder: Path | None = None, train: Iterable[Batch] = ()) -> None:
        """Pretrain a small text tower, then fit the network's additional paths to the training images."""
        sessions = list(train) if self.linear is not None else train  # the linear path alone needs all images at once
        if more := further(self.config.prior.fields):
            priors, people = zip(*((one.prior, one.people) for one in sessions), strict=True)  # read once
            self.prior.learn(Prior.joined(priors), seed, [who for session in people for who in session])
        pretrain_text_tower(self.prior, seed, folder=folder)
        if (path := getattr(self.unet, "global_path", None)) is not None:
            path.fit(one.mri for one in sessions)
        if self.linear is not None and sessions:
            drawn, content = draw_priors(4 * self.linear.text.shape[1], seed, self.prior.known)
            self.linear.fit_text(self.features(drawn), content)
            self.prior.clear_cache()  # of the random prompts
            self.linear.fit_sessions(sessions, self.features, self.config.prior.dropout, (*PROMPT_FIELDS, *more))

    def features(self, prior: Prior) -> Tensor:
        """Sentence features (B, width) of each person, for the linear path."""
        return self.prior.sentence_features(prompts(self.prior.mask_fields(prior))[:: len(TRACERS)])

    def estimate(self, mri: Tensor, prior: Prior, rows: Tensor | None = None) -> Tensor | None:
        """The linear path's PETs (B, 2, X, Y, Z), or None without one; ``rows`` as in `LinearPath.forward`."""
        return None if self.linear is None else self.linear(mri, self.features(prior), rows)

    def context(self, prior: Prior) -> Tensor:
        """Text context (2B, tokens, dim), person by person, tracers in order."""
        return self.prior(prompts(self.prior.mask_fields(prior)))

    def predict(self, x_t: Tensor, mri: Tensor, t: Tensor, context: Tensor, estimate: Tensor | None = None) -> Tensor:
        """x̂_0 (B, 2, X, Y, Z) of both tracers in one pass, from x_t (B, 2, X, Y, Z), MRI (B, 1, X, Y, Z), t (B,),
        context (2B, tokens, dim) and, with a linear path, its `estimate` (B, 2, X, Y, Z).
        """  # noqa: D205
        n = len(TRACERS)
        volumes = x_t.flatten(0, 1).unsqueeze(1)  # (2B, 1, X, Y, Z)
        maps = None if estimate is None else self.linear.maps(mri, estimate).flatten(0, 1)  # (2B, 2, X, Y, Z)
        x0_hat = self.unet(volumes, mri.repeat_interleave(n, 0), t.repeat_interleave(n, 0), context, maps)
        x0_hat = x0_hat.unflatten(0, (-1, n)).squeeze(2)
        return x0_hat if estimate is None else estimate + self.linear.scale * x0_hat


class ResidualDiffusion(PriorGuided):
    """The paper's method: predicts x_0 at every step of a residual diffusion from MRI to PET, guided by text.

    Both tracers of a person share t and have independent noise, as in the released code. ``start_share`` is an
    addition, off by default: with κ = 0.1 every x_t but the last reveals the uptake of x_0, so only one uniform draw in
    T trains the first step of sampling, and short trainings need more.
    """

    config: ResidualDiffusionConfig

    def __init__(self, config: ResidualDiffusionConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.scheduler = ResidualScheduler(config.steps, config.eta, config.eta_range, config.kappa, config.eta_power)

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Eq. 7 at a uniformly drawn step or, with probability ``start_share``, at the last one."""
        mri, x0, draw = batch.mri, batch.pet, {"generator": generator, "device": batch.mri.device}
        local, n = batch.prior.local, batch.prior.global_size  # drawn for the people of all processes
        t = local(torch.randint(self.scheduler.steps, (n,), **draw))
        if self.config.start_share:
            t = t.masked_fill(local(torch.rand(n, **draw)) < self.config.start_share, self.scheduler.steps - 1)
        noise = local(torch.randn((n, *x0.shape[1:]), **draw))
        x_t = self.scheduler.add_noise(x0, mri.expand_as(x0), noise, t)  # (B, 2, X, Y, Z)
        prior = self.prior.mask_fields(batch.prior, generator)
        estimate = self.estimate(mri, prior, batch.rows)
        x0_hat = self.predict(x_t, mri, t, self.context(prior), estimate)
        loss, self.scalars = total_loss(x0_hat, x0, batch.present, self.config.lambda_high)
        yield "model", loss

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Both PETs (B, 2, X, Y, Z): the last state of `reverse`, clipped to [0, 1]."""
        for _, _, x0 in self.reverse(mri, prior, generator, steps=steps):  # noqa: B007 (a list would keep all states)
            pass
        return x0.clamp(0, 1)

    @torch.no_grad()
    def reverse(
        self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Sampling: from the noisy MRI (Eq. 2) step by step to the PETs (Eq. 3).

        Yields the index t, x̂_0 predicted there, and the next x, both (B, 2, X, Y, Z); the last x is x_0.
        """
        context, estimate = self.context(prior), self.estimate(mri, prior)
        x = self.scheduler.start(mri.expand(-1, len(TRACERS), -1, -1, -1), generator)
        for t in self.scheduler.set_timesteps(self.config.sampling_steps if steps is None else steps):
            x0_hat = self.predict(x, mri, torch.full((len(mri),), t, device=mri.device), context, estimate)
            x = self.scheduler.step(x0_hat, t, x, generator)
            yield t, x0_hat, x
