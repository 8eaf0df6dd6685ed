"""Records in, a request out; a reply in, answers out. Pure: no I/O, no clock, no Beam."""
