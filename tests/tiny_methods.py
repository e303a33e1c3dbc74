"""Two methods of a few weights each, for tests of what surrounds a method, and a cohort of random volumes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from resdm.baselines.per_tracer import PerTracer, TracerModel
from resdm.batch import Batch, Prior
from resdm.checkpoint import save_model
from resdm.method import Method, build_method
from resdm.settings import METHODS, MethodConfig, TrainingConfig
from resdm.training import train as train_method
from resdm_suite.apps.model_folder import source_settings, training_options, write_config
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig

SHAPE = (16, 16, 16)


@dataclass(frozen=True)
class PlainConfig(MethodConfig):
    """A convolution, with noise from the generator, an EMA and a buffer that training changes."""

    kind: str = "tiny_plain"
    learning_rate: float = 1e-2
    decay: str = "cosine"
    ema: float = 0.9
    ema_warmup: int = 2
    width: int = 2
    sampling_steps: int | None = None


@dataclass(frozen=True)
class AdversarialConfig(MethodConfig):
    """Generator with dropout against a discriminator, two optimisers."""

    kind: str = "tiny_adversarial"
    learning_rate: float = 1e-3
    decay: str = "linear_half"
    poison: int = 0  # the step (from 1) at which the generator's loss becomes NaN; 0: never
    pause: float = 0.0  # seconds per step, so that a test can kill the process


class Plain(Method):
    config: PlainConfig

    def __init__(self, config, shape):
        super().__init__(config, shape)
        width = config.width
        self.net = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width), nn.SiLU(), nn.Conv3d(width, 2, 1)
        )
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.alias = self.net[3]  # a module under two names, as the text tower has them
        self.prompt_weights = nn.Parameter(torch.zeros(2))  # weights of age (per century) and sex

    def forward(self, mri, prior, noise):
        sex = [{"F": -1.0, "M": 1.0, None: 0.0}[code] for code in prior.sex]
        fields = torch.tensor([[(age or 0) / 100 for age in prior.age], sex]).T
        return self.net(mri) + (fields * self.prompt_weights).sum(1).view(-1, 1, 1, 1, 1) + 0.01 * noise

    def losses(self, batch, generator):
        noise = torch.randn(batch.pet.shape, generator=generator)
        error = (self(batch.mri, batch.prior, noise) - batch.pet).square().flatten(2).mean(2)
        self.scalars = {"amyloid": error[:, 0].detach().mean()}
        yield "model", (error * batch.present).sum()

    @torch.no_grad()
    def synthesise(self, mri, prior, generator, *, steps=None):
        noise = torch.randn((len(mri), 2, *mri.shape[2:]), generator=generator)
        return self(mri, prior, noise * (steps or 1)).sigmoid()


class Adversarial(Method):
    config: AdversarialConfig

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.generator = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv3d(4, 2, 1), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Conv3d(3, 2, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv3d(2, 1, 3))
        self.steps = 0

    def losses(self, batch, generator):
        time.sleep(self.config.pause)
        fake = self.generator(batch.mri)
        real_score = self.discriminator(torch.cat([batch.mri, batch.pet], 1))
        fake_score = self.discriminator(torch.cat([batch.mri, fake.detach()], 1))
        yield "discriminator", ((real_score - 1).square().mean() + fake_score.square().mean()) / 2
        self.steps += 1
        score = self.discriminator(torch.cat([batch.mri, fake], 1))
        loss = (score - 1).square().mean() + 10 * (fake - batch.pet).abs().mean()
        yield "generator", loss * (torch.nan if self.steps == self.config.poison else 1.0)

    def synthesise(self, mri, prior, generator, *, steps=None):
        with torch.no_grad():
            return self.generator(mri)

    def optimisers(self):
        rate = self.config.learning_rate
        return {
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), rate, betas=(0.5, 0.999)),
            "generator": torch.optim.Adam(self.generator.parameters(), rate, betas=(0.5, 0.999)),
        }


@dataclass(frozen=True)
class PerTracerConfig(MethodConfig):
    """Two models, one per tracer, with one convolution each."""

    kind: str = "tiny_per_tracer"


class OneTracer(TracerModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv3d(1, 1, 1)

    def losses(self, mri, pet, generator):
        yield "model", (self.net(mri) - pet).square().mean()
        yield "model", (self.net(mri) - pet).abs().mean()

    def optimisers(self):
        return {"model": torch.optim.SGD(self.parameters(), 0.1)}


class TwoModels(PerTracer):
    config: PerTracerConfig

    def tracer_model(self):
        return OneTracer()


METHODS.update(
    tiny_plain=f"{__name__}:Plain", tiny_adversarial=f"{__name__}:Adversarial", tiny_per_tracer=f"{__name__}:TwoModels"
)


class Sessions(torch.utils.data.Dataset):
    """N random sessions; augmentation (an offset) is a function of seed, epoch and index."""

    def __init__(self, n=6, seed=0, augment=False):
        self.n, self.seed, self.augment, self.epoch = n, seed, augment, 0

    def __len__(self):
        return self.n

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(1000 * self.seed + i)
        mri = torch.rand((1, *SHAPE), generator=draw)
        pet = torch.cat([mri * 0.5, mri * 0.25 + 0.25])
        if self.augment:
            mri = mri + 0.01 * torch.rand((), generator=torch.Generator().manual_seed(7919 * self.epoch + i))
        present = torch.tensor([True, i % 3 != 0])
        return mri, pet, present, 60.0 + i, "FM"[i % 2]


def collate(items):
    mri, pet, present, age, sex = zip(*items, strict=True)
    return Batch(torch.stack(mri), torch.stack(pet), torch.stack(present), Prior(age, sex))


def make_config(root: Path, *, methods=None, kind="other", **training) -> Config:
    settings = {"epochs": 3, "batch_size": 2, "validate_every": 2, "checkpoint_every": 2}
    settings = TrainingConfig(**settings | {"accelerator": "cpu", "threads": 1} | training)
    cohort = CohortConfig(kind=kind, phantom=PhantomConfig())
    parts = {"preprocess": PreprocessConfig(grid=GridConfig(SHAPE, 12.0)), "training": settings}
    methods = methods or {"Plain": PlainConfig(), "GAN": AdversarialConfig()}
    return Config(profile="tiny", cohort=cohort, methods=methods, root=root, **parts)


def build(config: Config, name: str) -> Method:
    torch.manual_seed(config.seed)
    return build_method(config.method(name), SHAPE)


def train(method, config, name, train_set, validation_set=None, *, folder=None, **options) -> Path:
    """A training of a profile on any sessions, as `resdm_suite.apps.training.train_method` does it."""
    options |= training_options(config, name) | {"folder": folder or config.model(name)}
    run = options.pop("run")
    return write_config(train_method(method, run, train_set, validation_set, **options), config, name)


def with_method(config: Config, name: str, **settings) -> Config:
    return replace(config, methods=config.methods | {name: replace(config.method(name), **settings)})


def save_profile_model(folder, method, config, name, **options):
    """Write a model folder without training; options as in `save_model`."""
    write_config(folder, config, name)
    return save_model(folder, method, name=name, source=source_settings(config), **options)
