"""Simulated clocks and paths, and other projects' filters as yardsticks: for tests and benches."""
