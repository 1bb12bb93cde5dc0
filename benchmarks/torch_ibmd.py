"""One IBMD iteration in PyTorch, for benchmarks/throughput.py, which runs it by itself.

    TORCH_PYTHON benchmarks/torch_ibmd.py INPUTS.npz OUTPUT.json WAY ITERATIONS

Needs torch and numpy, no jax. INPUTS.npz: what benchmarks/torch_unet.py's `load` takes, x_T [L + 1, B, H, W, C], and,
for a comparison of the losses before any update, eps [B, H, W, C] and t [B]. WAY: eager, channels_last or compile.
Bridge: I2SB, whose network predicts (x_t - x_0) / rho_t; one step, x_T noisy, lambda = 1 and 10^(2 (1 - t)).
"""

import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_unet import load

BETA_MIN, BETA_MAX = 0.1, 1.0


def rho(t: Tensor) -> Tensor:
    """Of I2SB: the root of R(t), the integral of (m + d min(t, 1 - t))^2 from 0 to t."""
    m, d = BETA_MIN**0.5, BETA_MAX**0.5 - BETA_MIN**0.5

    def half(t: Tensor) -> Tensor:
        return m * m * t + m * d * t**2 + d * d * t**3 / 3

    return torch.where(t <= 0.5, half(t), 2 * half(torch.tensor(0.5)) - half(1 - t)).sqrt()


def estimate(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    return x_t - rho(t)[:, None, None, None] * network(x_t, 1000 * t)


def noised(x_0: Tensor, x_T: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    r, whole = rho(t)[:, None, None, None] ** 2, rho(torch.ones(1)) ** 2
    a = r / whole
    return a * x_T + (1 - a) * x_0 + (r * (1 - a)).sqrt() * eps


def error(network: nn.Module, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    return ((estimate(network, x_t, t) - x_0) ** 2).mean((1, 2, 3))


def stratified(n: int) -> Tensor:
    return 1e-3 + (1 - 1e-3) * (torch.randperm(n) + torch.rand(n)) / n


class Iteration:
    """Teacher, student, auxiliary, average and optimisers, and one iteration on them."""

    def __init__(self, network: nn.Module, compiled: bool):
        self.teacher = network.requires_grad_(False)
        self.student, self.auxiliary = (copy.deepcopy(network).requires_grad_(True) for _ in range(2))
        self.average = copy.deepcopy(network)
        self.student_optimizer = torch.optim.Adam(self.student.parameters(), 2e-4, (0.0, 0.999))
        self.auxiliary_optimizer = torch.optim.Adam(self.auxiliary.parameters(), 1e-3, (0.0, 0.999))
        if compiled:
            for name in ("teacher", "student", "auxiliary"):
                getattr(self, name).compile()

    def auxiliary_loss(self, x_T: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        with torch.no_grad():
            x_0 = estimate(self.student, x_T, torch.ones(len(x_T)))
            x_t = noised(x_0, x_T, t, eps)
        return error(self.auxiliary, x_t, x_0, t).mean()

    def student_loss(self, x_T: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        x_0 = estimate(self.student, x_T, torch.ones(len(x_T)))
        x_t = noised(x_0, x_T, t, eps)
        return (10 ** (2 * (1 - t)) * (error(self.teacher, x_t, x_0, t) - error(self.auxiliary, x_t, x_0, t))).mean()

    @torch.no_grad()
    def losses(self, x_T: Tensor, t: Tensor, eps: Tensor) -> list[float]:
        """Both, for an auxiliary whose weights are all 0.9 of the student's."""
        for p in self.auxiliary.parameters():
            p.mul_(0.9)
        found = [float(loss(x_T, t, eps)) for loss in (self.auxiliary_loss, self.student_loss)]
        self.auxiliary.load_state_dict(self.student.state_dict())
        return found

    def run(self, x_T: Tensor) -> None:
        """x_T: [L + 1, B, C, H, W]."""
        for part in x_T[:-1]:
            self.auxiliary_optimizer.zero_grad()
            self.auxiliary_loss(part, stratified(len(part)), torch.randn_like(part)).backward()
            self.auxiliary_optimizer.step()
        self.auxiliary.requires_grad_(False)
        self.student_optimizer.zero_grad()
        self.student_loss(x_T[-1], stratified(x_T.shape[1]), torch.randn_like(x_T[-1])).backward()
        self.student_optimizer.step()
        self.auxiliary.requires_grad_(True)
        with torch.no_grad():
            for average, p in zip(self.average.parameters(), self.student.parameters(), strict=True):
                average.lerp_(p, 0.01)


def main() -> None:
    inputs, output, way, iterations = sys.argv[1:]
    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = np.load(inputs)
    x_T, eps = (torch.from_numpy(np.moveaxis(data[name], -1, -3).copy()) for name in ("x_T", "eps"))
    network, t = load(data), torch.from_numpy(data["t"])
    if way != "eager":
        network = network.to(memory_format=torch.channels_last)
        x_T = torch.stack([part.to(memory_format=torch.channels_last) for part in x_T])
    run = Iteration(network, way == "compile")
    losses = run.losses(x_T[0], t, eps)
    seconds = []
    for _ in range(1 + int(iterations)):  # the first warms up
        begin = time.perf_counter()
        run.run(x_T)
        seconds.append(time.perf_counter() - begin)
    Path(output).write_text(json.dumps({"torch": torch.__version__, "losses": losses, "seconds": seconds[1:]}))


if __name__ == "__main__":
    main()
