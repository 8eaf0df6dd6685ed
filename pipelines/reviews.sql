-- Reviews in, labels out; one file, one command:
--
--   pip install 'beam-llm[sql]'
--   beam-llm run pipelines/reviews.sql --dry-run      -- what would run, and the first request
--   beam-llm run pipelines/reviews.sql
--
-- Options of Beam stand after --, such as -- --runner=FlinkRunner --flink_master=localhost:8081.

CREATE TABLE reviews (id STRING, text STRING, rating DOUBLE)
  WITH ('connector' = 'filesystem', 'path' = 'reviews-*.jsonl', 'format' = 'json');

CREATE TABLE labelled (id STRING, sentiment STRING, score DOUBLE, error STRING)
  WITH ('connector' = 'filesystem', 'path' = 'labelled/', 'format' = 'json');

CREATE MODEL opinion
  INPUT (text STRING)
  OUTPUT (sentiment STRING, score DOUBLE)
  WITH (
    'provider' = 'openai',
    'model' = 'gpt-4.1-mini',
    'api.key' = '${OPENAI_API_KEY}',
    'batch.size' = '20',
    'prompt' = 'Classify the sentiment of this review (positive, negative or neutral) and score it from -1 (most negative) to 1 (most positive):
{{ text }}'
  );

-- For half the price, add MAP['mode', 'batch_api', 'staging.location', 'gs://bucket/llm'].
INSERT INTO labelled
SELECT id, sentiment, score, error
FROM ML_PREDICT(TABLE reviews, MODEL opinion, DESCRIPTOR(text))
WHERE CHAR_LENGTH(text) > 0;
