"""Runs a Beam YAML pipeline from the command line: the pipeline is Beam's own; shows its first
requests, and says how it ended.
"""
