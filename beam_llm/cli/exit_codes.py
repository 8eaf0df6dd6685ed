"""The commands' exit codes."""

ALL_ANSWERED, FAILED, WRONG_USAGE, SOME_ERRORS = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 130, 143
"""128 and the number of the signal, as shells have it."""

IN_WORDS = (
    "exit codes: 0 all records answered; 1 the command failed; 2 wrong usage; 3 finished, "
    "but some records ended as errors; 130 stopped by Ctrl-C, 143 by SIGTERM"
)
