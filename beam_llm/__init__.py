"""beam_llm."""
