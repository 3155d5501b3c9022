"""Measurements: ``bench.harness`` compares over loopback, ``bench_*.py`` time parts in process."""
