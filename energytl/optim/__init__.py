"""On-chip training: stochastic pulses, the Tiki-Taka family, as torch optimizers."""
