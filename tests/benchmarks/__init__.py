"""Benchmarks: `python -m tests.benchmarks` prints ratios against the ideal, Beam's floor and
hand-written clients, measured in one run.

`python -m tests.benchmarks openaivec` compares whole processes with openaivec, which packs records
as well: 10,000 records, 20 a prompt, 300 ms a call, 64 in flight, the same server. openaivec is
installed in a virtual environment of its own under `~/.cache/beam-llm-benchmarks`, or taken from the
Python that `OPENAIVEC_PYTHON` names.

`python -m tests.benchmarks.arrow RECORDS BYTES` compares our columns with Arrow tables.
"""
