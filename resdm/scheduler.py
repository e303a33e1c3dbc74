"""Residual diffusion between PET and MRI: Eq. 1–3. Time steps are indices t = 0 … T−1 (the paper's 1 … T)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ResidualScheduler:
    """Shifts a PET x_0 towards its MRI y_0 in T steps, and back. Defaults: released code (`Ouzaixin/ResDM`).

    ``steps`` is T, ``kappa`` κ; noise at step t has SD κ√η_t. ``eta`` (`ValueError` for another) is the shape of the
    shifting sequence: ``linear`` from η_1 to η_T (``eta_range``), or ``geometric`` as in `zsyOAOA/ResShift`,
    √η_t = s·b^{τ_t} with s = min(m/κ, m), ``eta_range`` = (m, √η_T) and τ_t = (T−1)((t−1)/(T−1))^p, p = ``power``.
    """

    def __init__(
        self, steps: int = 15, eta: str = "linear", eta_range: tuple[float, float] = (0.04, 0.999), kappa: float = 0.1,
        power: float = 0.3,
    ) -> None:  # fmt: skip
        low, high = eta_range
        if eta == "linear":
            # A single step must start at the MRI, so T = 1 takes the last value.
            etas = torch.linspace(low, high, steps, dtype=torch.float64) if steps > 1 else torch.tensor([high])
        elif eta == "geometric":
            start = min(low / kappa, low)
            base = (high / start) ** (1 / max(steps - 1, 1))
            tau = (steps - 1) * torch.linspace(0, 1, steps, dtype=torch.float64) ** power
            etas = (start * base**tau) ** 2 if steps > 1 else torch.tensor([high**2])
        else:
            raise ValueError(f"eta is {eta!r}; expected 'linear' or 'geometric'")
        self.steps, self.kappa = steps, kappa
        self.etas = etas.float()  # (T,)
        self._eta = [0.0, *etas.tolist()]  # η by paper index 0 … T, on the host
        self.set_timesteps()

    def set_timesteps(self, n: int | None = None) -> list[int]:
        """Choose ``n`` (T) indices of a reverse pass, in equal strides down from T−1; `ValueError` unless 1 ≤ n ≤ T."""
        n = self.steps if n is None else n
        if not 1 <= n <= self.steps:
            raise ValueError(f"{n} sampling steps; expected 1 to T = {self.steps}")
        self.timesteps = [math.ceil(self.steps * k / n) - 1 for k in range(n, 0, -1)]
        return self.timesteps

    def add_noise(self, x0: Tensor, y0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Eq. 1: x_t = x_0 + η_t (y_0 − x_0) + κ√η_t ε, for indices ``t`` (B,) of volumes (B, C, X, Y, Z)."""
        self.etas = self.etas.to(x0.device)
        eta = self.etas[t].view(-1, *[1] * (x0.ndim - 1))
        return x0 + eta * (y0 - x0) + self.kappa * eta.sqrt() * noise

    def start(self, y0: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 2: x_T = y_0 + κ√η_T ε, the noisy MRI where the reverse process starts."""
        return y0 + self.kappa * math.sqrt(self._eta[-1]) * _noise_like(y0, generator)

    def step(self, x0_hat: Tensor, t: int, x_t: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 3: draw x at the next visited index from p(x_{t−1} | x_t, x̂_0); after the last one return x̂_0."""
        mean, variance = self.posterior(x0_hat, t, x_t)
        return mean + math.sqrt(variance) * _noise_like(x_t, generator) if variance > 0 else mean

    def posterior(self, x0_hat: Tensor, t: int, x_t: Tensor) -> tuple[Tensor, float]:
        """Mean (B, C, X, Y, Z) and variance of Eq. 3: (η_{t−1}/η_t) x_t + ((η_t − η_{t−1})/η_t) x̂_0, and
        κ² (η_{t−1}/η_t)(η_t − η_{t−1}), with η_{t−1} at the next visited index of a pass with fewer steps.
        """  # noqa: D205
        later = [s for s in self.timesteps if s < t]
        eta, eta_next = self._eta[t + 1], self._eta[later[0] + 1] if later else 0.0
        ratio = eta_next / eta
        return ratio * x_t + (1 - ratio) * x0_hat, self.kappa**2 * ratio * (eta - eta_next)


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
