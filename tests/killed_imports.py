"""What the children of `tests.killed` need, imported once in the process they are forked from.
Importing starts no threads.
"""

import apache_beam
import apache_beam.runners.portability.fn_api_runner
import openai

import beam_llm
import beam_llm.cli.main
import beam_llm.cli.pipeline
import beam_llm.transforms.predict
import tests.collecting
import tests.killed

__all__ = ["apache_beam", "beam_llm", "openai", "tests"]
