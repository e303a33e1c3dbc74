"""DDPM: a conditional denoising diffusion model, one for both tracers, sampled by DDIM."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.batch import TRACERS, Batch, Prior
from resdm.layers.wavelet import haar, inverse_haar
from resdm.method import Method
from resdm.settings import SEXES, Demand, MethodConfig


@dataclass(frozen=True)
class DDPMConfig(MethodConfig):
    """A conditional DDPM (Ho et al. 2020): one model, MRI concatenated, tracer as class label."""

    kind: str = "ddpm"
    ema: float = 0.9999
    ema_warmup: int = 0  # plain copies before
    steps: int = 1000  # T
    beta_range: tuple[float, float] = (1e-4, 0.02)
    prediction: Literal["epsilon", "sample"] = "epsilon"  # sample: x_0, useful after hundreds of steps, not 100,000s
    sampling_steps: int = 50  # of DDIM; a divisor of T
    eta: float = 0.0  # DDIM's η: 0 deterministic; 1 with all T steps is the paper's ancestral sampler
    channels: tuple[int, ...] = (32, 64, 128, 256)  # multiples of the first, itself a multiple of 4
    blocks: int = 1  # residual blocks a level on the way down; one more on the way up
    attention_levels: tuple[int, ...] = (3,)
    stem: Literal["haar", "none"] = "none"  # haar: 8 channels at half resolution, as in NetworkConfig
    labels: tuple[Literal["sex", "age"], ...] = ()  # what the class label says beside the tracer
    age_edges: tuple[float, ...] = (60.0, 65.0, 70.0, 75.0, 80.0, 85.0)  # of the age bins, in years

    def check(self, at: str, demand: Demand) -> None:
        """Ranges and combinations that types cannot say."""
        super().check(at, demand)
        demand(
            self.sampling_steps >= 1 and self.steps % self.sampling_steps == 0,
            f"{at}.sampling_steps is {self.sampling_steps}; expected a divisor of {self.steps}",
        )
        demand(
            self.channels[0] % 4 == 0 and all(c % self.channels[0] == 0 for c in self.channels),
            f"{at}.channels {self.channels}: multiples of the first, itself one of 4",
        )


class LabelEmbedding(nn.Embedding):
    """The sum of a label's rows. All but the tracers' start at 0."""

    def reset_parameters(self) -> None:
        """N(0, 1) for the tracers, 0 for the rest."""
        super().reset_parameters()
        nn.init.zeros_(self.weight[len(TRACERS) :])

    def forward(self, labels: Tensor) -> Tensor:
        """(N, fields) → (N, dim)."""
        return super().forward(labels).sum(1)


class DDPM(Method):
    """Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, conditioned on the MRI.

    Facts from `hojonathanho/diffusion`, and from the ResDM authors' own conditional model, `Ouzaixin/IL-CLDM`.

    Notes
    -----
    Kept: T = 1000, β from 1e-4 to 0.02, ε predicted under plain MSE at a uniform t, x̂_0 clipped to [−1, 1] when
    sampling, group norm over at least 4 channels, single-head attention, embedding added to each residual block,
    EMA 0.9999. From IL-CLDM: AdamW at 1e-4, MRI concatenated with the noisy PET, a class label added to the time
    embedding.

    Readings and departures:

    - The label is the tracer; ``labels`` adds sex and age bin, the information of ResDM's prompt: the paper has DDPM
      integrate text as discrete vectors and says no more. Each field has its own rows, which are added: the product of
      all would leave most rows to a handful of people. Rows of sex and age start at 0, so a value that no training
      person has, unknown among them, adds nothing.
    - MONAI's 3D `DiffusionModelUNet`, (32, 64, 128, 256) channels, one block a level, attention at the last: 28.8 M
      weights. Group norm stands before each convolution, as in the original, and takes mean and amplitude of a group
      out of each volume: how bright the MRI is passes the bottleneck in what differs between voxels alone. The norms
      have a quarter as many groups as the first level has channels: with MONAI's 32 each of the first level's channels
      would be a group, and the norm would take the embedding out again. The last convolution of each residual block and
      of the network starts at 0, as the original's do: weights before them get their first gradient at the second step.
    - ``prediction: sample`` lets the network predict x_0, which Ho et al. (§3.2) found worse: for small budgets only.
      An error of ε̂ enters x̂_0 times √(1 − ᾱ)/√ᾱ, 157 at t = T − 1, so ε̂ must be nearly exact before a sample is any
      good, whereas x̂_0 starts as a regression from the MRI.
    - Grids are padded to what the U-Net halves evenly, and cut again. ``stem: haar`` lets the U-Net work on the
      orthonormal Haar bands, as ResDM's may: white noise and its squared error are the same there.
    - T forward passes a volume are too many: DDIM (Song et al. 2021) with ``sampling_steps``, t = T − 1, T − 1 − T/n,
      … . MONAI's scheduler spaces its list by (T − 1)/(n − 1) but steps by T/n, which agree at n = T alone, and clips
      x̂_0 without its ε; here the list follows the step, and x̂_0 is clipped before the step derives ε from it.
    """

    config: DDPMConfig

    def __init__(self, config: DDPMConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        channels, fold = config.channels, 8 if config.stem == "haar" else 1
        from monai.networks.nets import DiffusionModelUNet  # here: MONAI takes seconds to import
        from monai.networks.schedulers import DDPMScheduler

        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2 * fold,
            out_channels=fold,
            channels=channels,
            num_res_blocks=config.blocks,
            attention_levels=[level in config.attention_levels for level in range(len(channels))],
            num_head_channels=channels,  # one head
            norm_num_groups=channels[0] // 4,
            num_class_embeds=len(TRACERS) + 1 + len(SEXES) + 2 + len(config.age_edges),
        )
        self.unet.class_embedding = LabelEmbedding(*self.unet.class_embedding.weight.shape)
        self.schedule = {
            "num_train_timesteps": config.steps, "schedule": "linear_beta", "beta_start": config.beta_range[0],
            "beta_end": config.beta_range[1],
        }  # fmt: skip
        self.scheduler = DDPMScheduler(**self.schedule)

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """MSE of the prediction over every PET in the batch, each at its own t; nothing where there is none."""
        self.scalars = {}
        people, tracers = batch.present.nonzero(as_tuple=True)  # (N,) each
        if not len(people):
            return
        x0 = 2 * batch.pet[people, tracers].unsqueeze(1) - 1  # (N, 1, X, Y, Z)
        t = torch.randint(self.config.steps, (len(x0),), generator=generator, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        x_t = self.scheduler.add_noise(x0, noise, t)
        labels = self.labels(batch.prior).to(x0.device)[people, tracers]
        target = noise if self.config.prediction == "epsilon" else x0
        loss = F.mse_loss(self.predict(x_t, batch.mri[people], t, labels), target)
        self.scalars = {"mse": loss.detach()}
        yield "model", loss

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Both tracers in one DDIM chain of ``steps`` steps (configuration's where ``None``), a divisor of T."""
        total, steps = self.config.steps, steps or self.config.sampling_steps
        if total % steps:
            raise ValueError(f"DDIM cannot take {steps} steps of T = {total}; ask for a divisor of {total}")
        from monai.networks.schedulers import DDIMScheduler

        ddim = DDIMScheduler(**self.schedule, prediction_type="sample", clip_sample=False)
        ddim.set_timesteps(steps)
        n = len(TRACERS)
        mri = mri.repeat_interleave(n, 0)  # (2B, 1, X, Y, Z), person by person
        labels = self.labels(prior).to(mri.device).flatten(0, 1)  # (2B, 3)
        x = torch.randn(mri.shape, generator=generator, device=mri.device)
        for t in range(total - 1, -1, -(total // steps)):
            output = self.predict(x, mri, torch.full((len(x),), t, device=x.device), labels)
            x, _ = ddim.step(self.x0(x, output, t).clamp(-1, 1), t, x, self.config.eta, generator)
        return ((x + 1) / 2).clamp(0, 1).squeeze(1).unflatten(0, (-1, n))  # (B, 2, X, Y, Z)

    def predict(self, x_t: Tensor, mri: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """ε̂ (or x̂_0) of N volumes, (N, 1, X, Y, Z), at steps ``t`` (N,) under ``labels`` (N, 3)."""
        folded = self.config.stem == "haar"
        multiple = 2 ** (len(self.config.channels) - 1 + folded)
        padding = [voxels for n in reversed(self.shape) for voxels in (0, -n % multiple)]
        volumes = F.pad(torch.cat([x_t, 2 * mri - 1], 1), padding)  # (N, 2, X', Y', Z')
        if folded:
            output = inverse_haar(self.unet(haar(volumes), t, class_labels=labels))
        else:
            output = self.unet(volumes, t, class_labels=labels)  # (N, 1, X', Y', Z')
        x, y, z = self.shape
        return output[..., :x, :y, :z].float()

    def x0(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """x̂_0 = (x_t − √(1 − ᾱ_t) ε̂) / √ᾱ_t, or the output itself where that is x̂_0."""
        if self.config.prediction == "sample":
            return output
        kept = self.scheduler.alphas_cumprod[t]
        return (x_t - (1 - kept).sqrt() * output) / kept.sqrt()

    def labels(self, prior: Prior) -> Tensor:
        """Rows of the label table for each person and tracer: tracer, sex, age bin; (B, 2, 3), int."""
        config = self.config
        first_sex, first_age = len(TRACERS), len(TRACERS) + 1 + len(SEXES)  # the rows that say unknown
        rows = []
        for age, sex in zip(prior.age, prior.sex, strict=True):
            sex_row = 0 if sex is None or "sex" not in config.labels else 1 + SEXES.index(sex)
            age_row = 0 if age is None or "age" not in config.labels else 1 + bisect_right(config.age_edges, age)
            rows.append([(tracer, first_sex + sex_row, first_age + age_row) for tracer in range(len(TRACERS))])
        return torch.tensor(rows)
