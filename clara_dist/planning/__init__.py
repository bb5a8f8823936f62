"""What a compression will take, before it is run: plain arithmetic, without torch and without Ray."""

from clara_dist.planning.estimate import Calibration, Lengths, Plan, Workload, estimate
from clara_dist.planning.gpus import GPUS, GpuKind, find_gpu
from clara_dist.planning.shapes import ModelShape

__all__ = ["GPUS", "Calibration", "GpuKind", "Lengths", "ModelShape", "Plan", "Workload", "estimate", "find_gpu"]
