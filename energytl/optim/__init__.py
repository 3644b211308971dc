"""On-chip training: stochastic pulses and the Tiki-Taka family, as torch optimizers."""

from energytl.optim.column_read import ColumnRead
from energytl.optim.pulsed_sgd import Hybrid, PulsedSGD
from energytl.optim.pulses import PulseTrain
from energytl.optim.tiki_taka_optimizers import AGAD, CTTv2, TTv1, TTv2

__all__ = ["AGAD", "CTTv2", "ColumnRead", "Hybrid", "PulseTrain", "PulsedSGD", "TTv1", "TTv2"]
