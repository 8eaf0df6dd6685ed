"""Benchmarks: `python -m tests.benchmarks` prints ratios against the ideal, Beam's floor and
hand-written clients, measured in one run.
"""
