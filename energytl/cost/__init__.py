"""Cells, reads, latency and energy of an analog network, per layer and in all."""
