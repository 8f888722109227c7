"""Benchmarks: ``make bench`` runs each; they measure, print and leave nothing behind. Alone on the machine."""
