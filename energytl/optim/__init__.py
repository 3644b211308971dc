"""On-chip training: stochastic pulses and the Tiki-Taka family, as torch optimizers."""

from energytl.optim.column_read import ColumnRead
from energytl.optim.optimizers import AGAD, CTTv2, Hybrid, PulsedSGD, TTv1, TTv2
from energytl.optim.pulses import PulseTrain

__all__ = ["AGAD", "CTTv2", "ColumnRead", "Hybrid", "PulseTrain", "PulsedSGD", "TTv1", "TTv2"]
