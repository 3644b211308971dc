"""Random streams by name: what draws random numbers has numbers of its own, whatever else is drawn and how often."""

from enum import Enum
from zlib import crc32


class Stream(Enum):
    """What draws random numbers."""

    TRAINING = "order of images, augmentation, dropout and read noise of one epoch"
    STAGE = "a stage's own seed, of those that its recipe gives no seed"
    VALIDATION = "a measurement on the images that training is watched on"
    START = "accuracies before the first epoch, of runs side by side"
    LOADING = "processes that load images"
    CALIBRATION = "images that ranges are calibrated on"
    CONVERSION = "read noise outside an epoch and a measurement"
    PROGRAMMING = "what write errors and stuck cells leave in the cells"
    SEARCH_RHO = "reads that ρ is chosen by"
    CHOICE = "reads that a search chooses by"
    BATCH_NORM = "reads that the norms' statistics are of"
    CONFIRMATION = "reads of the test images that nothing was chosen by"
    CHIPS = "the chips that are measured"
    COST = "reads that a network is priced by"
    OVER_TIME = "reads, and chips, some time after programming"
    EXACT = "a state for every cell"
    FEATURES = "images and chip that features are made from"
    FEATURE_READS = "read noise of the network that makes features"
    SUBSET = "which images a task takes"
    RUN_ORDER = "order of the images of one run of several"
    PROJECTION = "random projections"
    PERMUTATION = "dimensions that a run sees"
    CROPS = "random crops of images that are kept"
    CELLS = "how the cells of a chip differ"
    STATES = "states that cells keep for a whole inference"
    PULSED_CELLS = "cells of an array that trains by pulses"
    PULSES = "pulses of one step of a training on chip"
    SAMPLER = "what a study tries next"


def seed_of(stream: Stream, *seeds: int) -> int:
    """The 62-bit seed of this stream for these numbers (as seed, epoch, rank).

    >>> seed_of(Stream.TRAINING, 0, 2) == seed_of(Stream.CONFIRMATION, 0, 2)
    False
    """
    return fold(crc32(stream.name.encode()), *seeds)


def fold(*seeds: int) -> int:
    """One 62-bit seed from several; different tuples give unrelated streams (splitmix64).

    >>> fold(7) == 7 and fold(1, 2) != fold(2, 1)
    True
    """
    folded = seeds[0]
    for seed in seeds[1:]:
        z = (folded * 0x9E3779B97F4A7C15 + seed + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
        folded = (z ^ z >> 31) % 2**62
    return folded
