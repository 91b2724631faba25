"""Benchmarks: each prints a table that anyone can reproduce with one command, losses included."""
