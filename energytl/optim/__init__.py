"""Training on chip, as torch optimizers: by stochastic pulses, Tiki-Taka, rewriting, resets."""

from energytl.optim.column_read import ColumnRead
from energytl.optim.pulsed_sgd import Hybrid, PulsedSGD
from energytl.optim.pulses import PulseTrain
from energytl.optim.tiki_taka_optimizers import AGAD, CTTv2, TTv1, TTv2
from energytl.optim.transfer import MultilevelRefresh, ResetPair

__all__ = [
    "AGAD",
    "CTTv2",
    "ColumnRead",
    "Hybrid",
    "MultilevelRefresh",
    "PulseTrain",
    "PulsedSGD",
    "ResetPair",
    "TTv1",
    "TTv2",
]
