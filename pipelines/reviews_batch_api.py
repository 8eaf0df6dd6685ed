"""The same job at half price: reviews through the provider's batch API, waited for in one pipeline.

    python -m pipelines.reviews_batch_api --input 'reviews-*.jsonl' --output labelled \\
        --staging_location gs://bucket/llm

Twenty reviews share one prompt and each prompt is one line of a batch job, so both savings
multiply. If the pipeline dies, run it again: what has been submitted is found in the staging
location and is not paid for twice, whatever the order of the input.
"""

from __future__ import annotations

import sys

from pipelines import reviews_batch

if __name__ == "__main__":
    reviews_batch.run(["--mode", "batch_api", *sys.argv[1:]])
