"""Pieces of the engine benchmark: checkpoints, servers and peers, loads, figures."""
