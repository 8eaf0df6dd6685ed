"""Runs a SQL file's plans: tables are files, answers are kept until all are there, as `predict`
keeps them.
"""
