"""A provider on loopback, with scripted faults, that counts what it bills."""
