"""GPUs that a plan knows."""

from __future__ import annotations

from dataclasses import dataclass

from clara_dist.errors import ConfigError


@dataclass(frozen=True)
class GpuKind:
    """One kind of GPU.

    Attributes:
        name: As it is asked for.
        peak_flops_per_s: bf16 tensor cores with fp32 accumulation, dense, by the vendor's data sheet. Real matrices
            reach about 80 % of it.
        memory_bytes: Of one GPU.
        cost_per_hour: US dollars; an order of magnitude of what clouds ask on demand, not an offer.
    """

    name: str
    peak_flops_per_s: float
    memory_bytes: float
    cost_per_hour: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GpuKind("A100", 312e12, 80e9, 2.0),
        GpuKind("H100", 989e12, 80e9, 3.0),
        GpuKind("H200", 989e12, 141e9, 3.5),
        GpuKind("L40S", 362e12, 48e9, 1.2),
    )
}


def find_gpu(name: str) -> GpuKind:
    """The GPU of that name, in any case.

    Raises:
        ConfigError: It is not known.
    """
    gpu = GPUS.get(name.upper())
    if gpu is None:
        raise ConfigError("this GPU is not known", got=name, expected=", ".join(GPUS))
    return gpu
