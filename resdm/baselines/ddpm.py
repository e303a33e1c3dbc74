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
from resdm.settings import SEXES, MethodConfig, require


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
    blocks: int = 1  # residual blocks per level of the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = (3,)
    stem: Literal["haar", "none"] = "none"  # haar: 8 channels at half resolution, as in NetworkConfig
    labels: tuple[Literal["sex", "age"], ...] = ()  # in the class label, in addition to the tracer
    age_edges: tuple[float, ...] = (60.0, 65.0, 70.0, 75.0, 80.0, 85.0)  # of the age bins, in years

    def __post_init__(self) -> None:
        super().__post_init__()
        divides = self.sampling_steps >= 1 and self.steps % self.sampling_steps == 0
        require(divides, "sampling_steps", self.sampling_steps, f"a divisor of {self.steps}")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        first = self.channels[0] if self.channels else 0
        multiples = first > 0 and first % 4 == 0 and all(channels % first == 0 for channels in self.channels)
        require(multiples, "channels", self.channels, "multiples of the first, itself a multiple of 4")
        require([*self.age_edges] == sorted(self.age_edges), "age_edges", self.age_edges, "ages in ascending order")


class LabelEmbedding(nn.Embedding):
    """Labels (N, fields) → the sum of their rows (N, dim). Rows of tracers start at N(0, 1), all others at 0."""

    def reset_parameters(self) -> None:
        """Initial weights."""
        super().reset_parameters()
        nn.init.zeros_(self.weight[len(TRACERS) :])

    def forward(self, labels: Tensor) -> Tensor:
        """Look up and add."""
        return super().forward(labels).sum(1)


class DDPM(Method):
    """Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, conditioned on the MRI.

    From `hojonathanho/diffusion` and the ResDM authors' `Ouzaixin/IL-CLDM`; departures: ``docs/baselines.md``. Group
    norms have a quarter as many groups as the first level has channels. With as many groups as channels, the norm would
    remove the embedding again. The last convolution sees groups of channels of a fixed mean and variance.
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
        beta_start, beta_end = config.beta_range
        self.schedule = {"num_train_timesteps": config.steps, "schedule": "linear_beta"}
        self.schedule |= {"beta_start": beta_start, "beta_end": beta_end}
        self.scheduler = DDPMScheduler(**self.schedule)

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """MSE of the prediction over every PET in the batch, each at a separate t; no loss if there is none."""
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
        """Both tracers in one DDIM chain (Song et al. 2021) of ``steps`` steps, a divisor of T (else `ValueError`).

        It visits t = T − 1, T − 1 − T/n, …. MONAI's list has the spacing (T − 1)/(n − 1) but steps of T/n, and its
        scheduler clips x̂_0 without changing ε. Here x̂_0 is clipped before the step derives ε from it.
        """
        total, steps = self.config.steps, self.config.sampling_steps if steps is None else steps
        if steps < 1 or total % steps:
            raise ValueError(f"DDIM cannot take {steps} steps of T = {total}; choose a divisor of {total}")
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
        multiple = 2 ** (len(self.config.channels) - 1 + folded)  # sizes that the U-Net halves evenly
        padding = [voxels for n in reversed(self.shape) for voxels in (0, -n % multiple)]
        volumes = F.pad(torch.cat([x_t, 2 * mri - 1], 1), padding)  # (N, 2, X', Y', Z')
        output = self.unet(haar(volumes) if folded else volumes, t, class_labels=labels)
        output = inverse_haar(output) if folded else output  # (N, 1, X', Y', Z')
        x, y, z = self.shape
        return output[..., :x, :y, :z].float()

    def x0(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """x̂_0 = (x_t − √(1 − ᾱ_t) ε̂) / √ᾱ_t, or the output itself where that is x̂_0."""
        if self.config.prediction == "sample":
            return output
        alpha = self.scheduler.alphas_cumprod[t]
        return (x_t - (1 - alpha).sqrt() * output) / alpha.sqrt()

    def labels(self, prior: Prior) -> Tensor:
        """Rows of the label table for each person and tracer: tracer, sex, age bin; (B, 2, 3), int."""
        config = self.config
        first_sex, first_age = len(TRACERS), len(TRACERS) + 1 + len(SEXES)  # the rows for unknown
        rows = []
        for age, sex in zip(prior.age, prior.sex, strict=True):
            sex_row = 0 if sex is None or "sex" not in config.labels else 1 + SEXES.index(sex)
            age_row = 0 if age is None or "age" not in config.labels else 1 + bisect_right(config.age_edges, age)
            rows.append([(tracer, first_sex + sex_row, first_age + age_row) for tracer in range(len(TRACERS))])
        return torch.tensor(rows)
