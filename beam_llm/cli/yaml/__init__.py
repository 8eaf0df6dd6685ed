"""Runs a Beam YAML pipeline, which is Beam's own: `command` builds and runs it, and says how it
ended; `dry_run` shows its steps and first requests.
"""
