"""SQL files are read, checked and planned before anything runs: what each statement comes to, and
the one clear line for what isn't run.
"""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_llm.errors import UsageError
from beam_llm.fronts.sql.compute import Compute, Evaluator
from beam_llm.fronts.sql.functions import (
    AGGREGATES,
    CLOCKS,
    FUNCTIONS,
    NOT_CALLS,
    WINDOWS,
    WITH_A_SYNTAX,
)
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.script import Job, Listing, Script, read_script
from beam_llm.fronts.sql.tables import Permissions
from beam_llm.fronts.sql.types import SqlType, to_json, value_of

HEAD = """CREATE TABLE t (id STRING, title STRING, text STRING, n INT, x DOUBLE, day DATE,
  tags ARRAY<STRING>, r ROW<a INT, b STRING>) WITH ('connector'='filesystem', 'path'='in/', 'format'='json');
CREATE TABLE out (id STRING, mood STRING) WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
CREATE MODEL m INPUT (text STRING) OUTPUT (mood STRING) WITH ('provider'='openai', 'model'='gpt-4', 'base.url'='http://127.0.0.1:9/v1');
CREATE MODEL two INPUT (a STRING, b STRING) OUTPUT (mood STRING, score DOUBLE) WITH ('model'='openai:gpt-4', 'base.url'='http://127.0.0.1:9/v1');
"""
FIRST = HEAD.count("\n") + 1


def read(sql: str, **permissions: bool) -> Script:
    return read_script(HEAD + sql, "file.sql", Permissions(**permissions))


def plans(sql: str) -> list[Plan]:
    return [plan for step in read(sql).steps if isinstance(step, Job) for plan in step.plans]


def printed(sql: str) -> list[tuple[str, ...]]:
    (step,) = [step for step in read(sql).steps if isinstance(step, Listing)]
    return list(step.rows)


def settings_of(sql: str) -> Any:
    (plan,) = plans(sql)
    return plan.asks[0].branches[0].settings


# What isn't run is refused by name, with its place and what to write instead
# ─────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "a join": ("SELECT id FROM t JOIN out ON t.id = out.id", 18, "join.*join the tables before"),
    "UNNEST": ("SELECT id FROM t CROSS JOIN UNNEST(tags) AS u(a)", 18, "UNNEST.*ARRAY_JOIN"),
    "UNNEST by comma": ("SELECT id FROM t, UNNEST(tags) AS u(a)", 17, "UNNEST.*ARRAY_JOIN"),
    "a table of a query": ("CREATE TABLE a AS SELECT id FROM t", 16, "AS of a table.*INSERT INTO"),
    "a forgotten semicolon": ("SELECT id FROM t INSERT INTO out SELECT id FROM t", 18, "';' is mis"),
    "a model without quotes": (
        "SELECT ML_PREDICT(m, text) FROM t", 19, "'m' is a model, not a column: 'm'; write 'm'"
    ),
    "a call of Databricks": ("SELECT AI_QUERY('m', text) FROM t", 8, "write AI_COMPLETE"),
    "a call of BigQuery's in FROM": (
        "SELECT * FROM ML.PREDICT(MODEL m, TABLE t)", 18, "table function.*ML_PREDICT"
    ),
    "a call of BigQuery": ("SELECT AI.GENERATE_TEXT(text) FROM t", 11, "write AI_COMPLETE"),
    "a join by comma": ("SELECT id FROM t, out", 17, "join.*LATERAL TABLE"),
    "a cross join with answers": (
        "SELECT id FROM t, LATERAL TABLE(ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(text)))",
        17,
        "cross join of a table with all answers.*LATERAL",
    ),
    "ORDER BY inside": (
        "SELECT id FROM (SELECT id FROM t ORDER BY id) WHERE id > ''", 43, "inside of a query that filters",
    ),
    "ORDER BY of VALUES": ("VALUES (2), (1) ORDER BY 1", 17, "write SELECT"),
    "ORDER BY no place": ("SELECT id FROM t ORDER BY 2", 27, "no column of this place.*1 to 1"),
    "ORDER BY a ROW": ("SELECT id FROM t ORDER BY r", 27, "not sorted by ROW.*name a part"),
    "ORDER BY an unknown column": ("SELECT id FROM t ORDER BY txt", 27, "column 'txt'.*'text'"),
    "ORDER BY NULLS": ("SELECT id FROM t ORDER BY id NULLS", 35, "NULLS is missing|LAST is missing"),
    "LIMIT of sorted groups that are asked": (
        "SELECT ML_PREDICT('m', id) FROM t GROUP BY id ORDER BY COUNT(*) LIMIT 2", 65,
        "LIMIT is not run where groups",
    ),
    "a window function": ("SELECT ROW_NUMBER() OVER (ORDER BY id) FROM t", 8, "window functions"),
    "DISTINCT answers": ("SELECT DISTINCT ML_PREDICT('m', text) FROM t", 8, "DISTINCT.*asked once"),
    "DISTINCT of groups": ("SELECT DISTINCT id FROM t GROUP BY id", 8, "DISTINCT of groups"),
    "DISTINCT *": ("SELECT DISTINCT * FROM t", 8, "write the columns"),
    "UNION": ("SELECT id FROM t UNION SELECT id FROM t", 18, "write UNION ALL: INSERT"),
    "UNION ALL alone": ("SELECT id FROM t UNION ALL SELECT id FROM t", 28, "in INSERT.*read the table"),
    "UNION ALL inside": ("SELECT * FROM (SELECT 1 UNION ALL SELECT 2)", 35, "UNION ALL is run in INSERT"),
    "LIMIT of a UNION": (
        "INSERT INTO out SELECT id, id FROM t UNION ALL SELECT id, id FROM t LIMIT 1", 48, "parentheses around",
    ),
    "ORDER BY before a UNION": (
        "INSERT INTO out SELECT id, id FROM t ORDER BY 1 UNION ALL VALUES ('', '')", 17, "parentheses around",
    ),
    "a subquery": ("SELECT (SELECT 1) FROM t", 9, "a query inside an expression"),
    "WITH RECURSIVE": ("WITH RECURSIVE a AS (SELECT 1) SELECT * FROM a", 6, "WITH RECURSIVE is not"),
    "WITH before INSERT": (
        "WITH a AS (SELECT 1) INSERT INTO out SELECT * FROM a", 22, "INSERT INTO t WITH x AS",
    ),
    "WITH out of reach": ("SELECT * FROM (WITH a AS (SELECT 1) SELECT * FROM a) AS b, a", 58, "a join"),
    "WITH, an unknown table": ("WITH abc AS (SELECT 1) SELECT * FROM abd", 38, "did you mean 'abc'"),
    "a clock": ("SELECT ML_PREDICT('m', CURRENT_TIMESTAMP)", 24, "another value at every run"),
    "an unknown function": ("SELECT UPER(id) FROM t", 8, "UPER is not known.*'UPPER'"),
    "a function that reads files": ("SELECT read_text('/etc/passwd') FROM t", 8, "not known here"),
    "a function of the engine": ("SELECT current_setting('x') FROM t", 8, "not known here"),
    "a file as a table": ("SELECT * FROM '/etc/passwd'", 15, "the table's name"),
    "a format that is none": (
        "SELECT DATE_FORMAT(day, 'YYYY') FROM t", 8, "can't read 'YYYY'.*'yyyy-MM-dd"
    ),
    "a unit that is none": (
        "SELECT TIMESTAMPDIFF(DAYS, day, day) FROM t", 22, "can't read DAYS.*SECOND, MINUTE"
    ),
    "an unknown column": ("SELECT txt FROM t", 8, "unknown column 'txt'.*'text'"),
    "an unknown table": ("SELECT id FROM tt", 16, "unknown table 'tt'.*'t'"),
    "a quoted one": ("INSERT INTO `tt` SELECT id FROM t", 13, "unknown table 'tt': '`tt`'"),
    "SET of nothing": ("SET;", 4, "SET needs an option"),
    "an unknown table's column": ("SELECT a.id FROM t AS b", 8, "unknown column 'a'"),
    "an unknown column of a table": ("SELECT b.txt FROM t AS b", 8, "column 'txt'.*'text'"),
    "an unknown field": ("SELECT r.c FROM t", 8, "no field 'c' in ROW.*fields: a, b"),
    "an unknown model": ("SELECT ML_PREDICT('mm', text) FROM t", 19, "unknown model 'mm'.*'m'"),
    "an unknown option": (
        "SELECT ML_PREDICT('m', text, MAP['batch.sise', '5']) FROM t",
        34,
        "unknown option 'batch.sise'.*'batch.size'",
    ),
    "a value out of its range": (
        "SELECT ML_PREDICT('m', text, MAP['batch.size', '0']) FROM t",
        48,
        "'batch.size' is '0'.*at least 1",
    ),
    "an unknown type": ("CREATE TABLE a (id STRNG) WITH ('connector'='print')", 20, "'STRING'"),
    "an unknown connector": (
        "CREATE TABLE a (id STRING) WITH ('connector'='filesystm')",
        46,
        "'filesystem'",
    ),
    "Kafka": ("CREATE TABLE a (id STRING) WITH ('connector'='kafka')", 46, "ReadFromKafka.*allow"),
    **{
        f"the connector {name}": (
            f"CREATE TABLE a (id STRING) WITH ('connector'='{name}')",
            46,
            f"'beam'.*Beam's own .{own}.*--allow-code",
        )
        for name, own in {
            "upsert-kafka": "ReadFromKafka", "jdbc": "ReadFromJdbc", "pubsub": "ReadFromPubSub",
            "bigquery": "ReadFromBigQuery", "iceberg": "a Managed transform", "datagen": "Create",
        }.items()
    },
    "an unknown format": (
        "CREATE TABLE a (id STRING) WITH ('connector'='filesystem', 'path'='a', 'format'='jsn')",
        81,
        "'json'",
    ),
    "an option of a table": (
        "CREATE TABLE a (id STRING) WITH ('connector'='filesystem', 'pth'='a', 'format'='json')",
        60,
        "'path'",
    ),
    "a CSV with semicolons": (
        ("CREATE TABLE a (id STRING) WITH ('connector'='filesystem', 'path'='a', 'format'='csv', "
        "'csv.field-delimiter'=';')"),
        88,
        "a CSV file has commas",
    ),
    "a Beam source without leave": (
        "CREATE TABLE a (id STRING) WITH ('connector'='beam', 'transform'='os.system')",
        46,
        "runs code.*--allow-code",
    ),
    "a parser without leave": (
        "SELECT ML_PREDICT('m', text, MAP['response.format', 'os.system']) FROM t",
        53,
        "can't name code",
    ),
    "a key in a file": (
        "CREATE MODEL a WITH ('model'='openai:gpt-4', 'api.key'='file:/etc/passwd')",
        56,
        "names a file.*--allow-key-files",
    ),
    "a literal key": (
        "CREATE MODEL a WITH ('model'='openai:gpt-4', 'api_key'='sk-abcdefgh12345678')",
        56,
        "literal value.*env:NAME",
    ),
    "a reference in an address": (
        "CREATE MODEL a WITH ('model'='openai:gpt-4', 'base.url'='http://${HOST}/v1')",
        57,
        "reference, which only 'api.key' can",
    ),
    "a reference in a path": (
        ("CREATE TABLE a (id STRING) WITH ('connector'='filesystem', 'path'='${HOME}/a', "
        "'format'='json')"),
        67,
        "holds a reference",
    ),
    "too few columns for INPUT": (
        "SELECT ML_PREDICT('two', text) FROM t",
        8,
        "has 2 INPUT columns, and is given 1.*give a, b",
    ),
    "another type than INPUT's": (
        "SELECT ML_PREDICT('m', n) FROM t",
        24,
        "INPUT text of 'm' is STRING, and this is INT.*CAST",
    ),
    "another type than the table's": (
        "INSERT INTO out SELECT id, n FROM t",
        17,
        "column 'mood' of 'out' is STRING, and is given INT.*CAST",
    ),
    "too many columns": (
        "INSERT INTO out SELECT id, text, title FROM t",
        17,
        "takes 2 columns, and is given 3",
    ),
    "a condition that isn't one": ("SELECT id FROM t WHERE n + 1", 24, "this condition is INT"),
    "types that don't fit": ("SELECT n + tags FROM t", 8, "No function matches"),
    "a column of two tables": (
        ("SELECT value FROM t, LATERAL TABLE(ML_PREDICT('m', text)) AS a(value), "
        "LATERAL TABLE(ML_PREDICT('m', title)) AS b(value)"),
        8,
        "a column of several tables",
    ),
    "a named argument": (
        "SELECT id FROM ML_PREDICT(INPT => TABLE t, MODEL => MODEL m, ARGS => DESCRIPTOR(text))",
        27,
        "no argument INPT.*'INPUT'",
    ),
    "vectors of a model that answers": (
        "SELECT AI_EMBED('m', text, MAP['system.prompt', 'x']) FROM t",
        49,
        "system.prompt' is 'x': it is an option of LLMPredict",
    ),
    "answers of a model that embeds": (
        "SELECT ML_PREDICT('m', text, MAP['dimension', '8']) FROM t",
        47,
        "dimensions is 8: it is an option of LLMEmbed alone",
    ),
    "another engine's function": ("SELECT AI_SENTIMENT(text) FROM t", 8, "AI_CLASSIFY"),
    "not a statement": ("SELEC 1", 1, "not a statement.*'SELECT'"),
    "INSERT OVERWRITE": ("INSERT OVERWRITE out SELECT id, text FROM t", 8, "--force"),
    "a text without an end": ("SELECT 'a FROM t", 8, "without its closing '"),
    "a comment without an end": ("/* SELECT", 1, "comment without"),
    "a model twice": ("CREATE MODEL m WITH ('model'='openai:a')", 1, "exists already.*DROP MODEL m"),
    "LIMIT inside": ("SELECT COUNT(*) FROM (SELECT id FROM t LIMIT 1)", 40, "inside of a query that"),
    "LIMIT of a view": (
        "CREATE VIEW v AS SELECT id FROM t LIMIT 2; SELECT id FROM v LIMIT 1", 35, "inside of a query that",
    ),
    "LIMIT after an answer": (
        "SELECT id FROM t WHERE ML_PREDICT('m', text) = 'a' LIMIT 2",
        52,
        "LIMIT is not run where WHERE looks at",
    ),
    "a table that is read and written": ("INSERT INTO t SELECT * FROM t", 1, "table that it writes"),
    "writing into a pattern": (
        ("CREATE TABLE p (id STRING) WITH ('connector'='filesystem', 'path'='a/*.json', "
        "'format'='json'); INSERT INTO p SELECT id FROM t"),
        109,
        "is a pattern",
    ),
    "a row of VALUES": ("VALUES (1, 2), (3)", 16, "another number of values"),
    **{
        f"{join} JOIN": (f"SELECT id FROM t {join} JOIN out ON TRUE", 18, "join.*with a database")
        for join in ("INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL")
    },
    **{
        words: (f"SELECT id FROM t {words}", 18, instead)
        for words, instead in {
            "WINDOW w AS (ORDER BY id)": "window functions.*one by one",
            "QUALIFY n = 1": "QUALIFY.*filter with WHERE",
            "INTERSECT SELECT id FROM t": "INTERSECT.*with a database",
            "EXCEPT SELECT id FROM t": "EXCEPT.*with a database",
            "MINUS SELECT id FROM t": "MINUS.*with a database",
            "OFFSET 1": "OFFSET.*filter with WHERE",
            "FETCH FIRST 1 ROW ONLY": "FETCH.*write LIMIT",
            "TABLESAMPLE (10)": "TABLESAMPLE.*LIMIT",
            "FOR SYSTEM_TIME AS OF day": "temporal join.*with a database",
            "MATCH_RECOGNIZE ()": "MATCH_RECOGNIZE.*one by one",
        }.items()
    },
    **{
        words: (f"SELECT {words} FROM t", 8, message)
        for words, message in {
            **{f"{name}(n)": f"{name} is an aggregate" for name in sorted(AGGREGATES)},
            **{f"{name}(n)": "window functions" for name in sorted(WINDOWS)},
            **{f"{name}(n)": f"{name} gives another value" for name in sorted(CLOCKS)},
            **{f"{name}(n)": f"{name} is not run here: .*; " for name in NOT_CALLS},
        }.items()
    },
    **{
        f"{word} as a statement": (f"{word} x", 1, f"{word} is not run here.*{instead}")
        for word, instead in {
            "BEGIN": "EXECUTE STATEMENT SET", "EXPLAIN": "--dry-run", "USE": "one catalog", "DELETE": "WHERE", "UPDATE": "insert",
            "MERGE": "insert", "TRUNCATE": "--force", "ANALYZE": "take it out",
            "LOAD": "take it out", "ADD": "loads no code", "CALL": "take it out",
        }.items()
    },
    "a window in FROM": (
        "SELECT id FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(day), INTERVAL '1' DAY))",
        22,
        "window functions are not run here.*one by one",
    ),
    "another engine's function in FROM": (
        "SELECT * FROM ML_EVALUATE('m', TABLE t)", 15, "ML_EVALUATE is not run here.*compare",
    ),
    "an unknown function in FROM": ("SELECT * FROM ML_GUESS(TABLE t)", 15, "ML_PREDICT, AI_COMPL"),
    "CREATE OR REPLACE": ("CREATE OR REPLACE MODEL m WITH ()", 8, "DROP … IF EXISTS"),
    "a function of one's own": ("CREATE FUNCTION f AS 'x'", 8, "kinds: MODEL, TABLE, VIEW"),
    "a table altered": ("ALTER TABLE t SET ('a'='b')", 7, "only a MODEL can be altered"),
    "a watermark": ("CREATE TABLE a (id STRING, WATERMARK FOR id AS id) WITH ()", 28, "WATERMARK"),
    "partitions": ("CREATE TABLE a (id STRING) PARTITIONED BY (id) WITH ()", 28, "by a pattern"),
    "a computed column": ("CREATE TABLE a (id STRING, b AS id) WITH ()", 30, "into the SELECT"),
    "a table as a query": ("CREATE TABLE a (id STRING) AS SELECT id FROM t", 28, "INSERT INTO"),
    **{
        f"{verb} a model that isn't there": (f"{verb} MODEL mm{more}", column, "'mm'.*'m'")
        for verb, column, more in [
            ("DROP", 12, ""), ("DESCRIBE", 16, ""), ("SHOW CREATE", 19, ""),
            ("ALTER", 13, " SET ('batch.size'='1')"),
        ]
    },
    "metadata of INPUT": (
        "CREATE MODEL a INPUT (b STRING METADATA FROM 'error-string') WITH ()",
        32,
        "only in a model's OUTPUT",
    ),
    "unknown metadata": (
        "CREATE MODEL a OUTPUT (b STRING, e STRING METADATA FROM 'error-text') WITH ()",
        57,
        "'error-string'",
    ),
    "too many columns in DESCRIPTOR": (
        "SELECT mood FROM ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(title, text))",
        18,
        "has 1 INPUT columns, and is given 2",
    ),
    "too few columns in DESCRIPTOR": (
        "SELECT mood FROM ML_PREDICT(TABLE t, MODEL two, DESCRIPTOR(text))",
        18,
        "has 2 INPUT columns, and is given 1",
    ),
    "too few names of LATERAL's columns": (
        "SELECT id FROM t, LATERAL TABLE(ML_PREDICT('two', title, text)) AS r(mood)",
        33,
        "1 names are given to 2 columns",
    ),
    "result, of two calls": (
        ("SELECT result.value FROM t, LATERAL TABLE(ML_PREDICT('m', text)), "
        "LATERAL TABLE(ML_PREDICT('m', title))"),
        8,
        "unknown column 'result'",
    ),
    "a model's name that is no text": ("SELECT AI_COMPLETE(n, text, 'x') FROM t", 20, "is STRING"),
    "an expression's unknown model": (
        "SELECT AI_COMPLETE(IF(n > 1, 'm', 'mm'), text, 'x') FROM t", 20, "unknown model 'mm'",
    ),
    "models of several shapes": (
        "SELECT AI_COMPLETE(IF(n > 1, 'm', 'two'), text, 'x') FROM t", 20, "different INPUT or OUT",
    ),
    "AI_CLASSIFY without labels": (
        "SELECT AI_CLASSIFY(MODEL => MODEL m, INPUT => text) FROM t", 8, "needs LABELS",
    ),
    **{
        f"a literal key as {key}": (
            f"CREATE MODEL a WITH ('model'='openai:a', '{key}'='sk-abcdefgh12345678')",
            45 + len(key),
            r"literal value.*'env:NAME' or '\$\{NAME\}'",
        )
        for key in ("api-key", "apiKey", "api_key", "api.key")
    },
    "an option in two spellings": (
        "CREATE MODEL a WITH ('model'='openai:a', 'model-name'='openai:b')", 42, "given twice",
    ),
    "an unknown strategy": (
        "CREATE MODEL a WITH ('model'='openai:a', 'error-handling-strategy'='HOPE')",
        68,
        "strategies: FAILOVER, IGNORE, RETRY",
    ),
    "an unknown provider": (
        "CREATE MODEL a WITH ('provider'='opnai', 'model'='a')", 50, "did you mean 'openai:a'",
    ),
    "no time": ("SELECT ML_PREDICT('m', text, MAP['timeout', 'soon']) FROM t", 45, "'60 s'"),
    # Groups and aggregates
    "a column beside an aggregate": (
        "SELECT id, title, COUNT(*) FROM t GROUP BY id", 12, "'title' is neither in GROUP BY",
    ),
    "a table's column beside one": (
        "SELECT a.title, COUNT(*) FROM t AS a", 8, r"neither in GROUP BY.*write MIN\(a.title\)",
    ),
    "all columns of groups": ("SELECT *, COUNT(*) FROM t GROUP BY id", 8, "these are groups"),
    "an aggregate in WHERE": (
        "SELECT id FROM t WHERE AI_AGG('m', text, 'x') = 'a'", 24, "which can't stand here.*HAVING",
    ),
    "an aggregate in GROUP BY": ("SELECT 1 FROM t GROUP BY COUNT(*)", 26, "can't stand here"),
    "an aggregate in FROM": (
        "SELECT id FROM t, LATERAL TABLE(AI_AGG('m', text, 'x'))", 33, "can't stand in FROM",
    ),
    "an aggregate in VALUES": ("VALUES (COUNT(*))", 9, "COUNT is not called inside of VALUES"),
    "aggregates of aggregates": (
        "SELECT AI_AGG('m', AI_SUMMARIZE_AGG('m', text), 'x') FROM t", 20,
        "AI_SUMMARIZE_AGG is inside AI_AGG.*insert the groups into a table",
    ),
    "groups of groups": (
        "SELECT COUNT(*) FROM (SELECT id FROM t GROUP BY id)", 8, "groups of groups",
    ),
    "groups by answers": (
        "SELECT COUNT(*) FROM t GROUP BY ML_PREDICT('m', text)", 33, "answers are not grouped",
    ),
    "groups of answers": (
        "SELECT COUNT(*) FROM t WHERE ML_PREDICT('m', text) = 'a'", 8, "insert the answers",
    ),
    "an aggregate of answers": (
        "SELECT AI_AGG('m', ML_PREDICT('m', text), 'x') FROM t", 20, "insert the answers",
    ),
    "DISTINCT in AI_AGG": ("SELECT AI_AGG(DISTINCT text, 'x') FROM t", 15, "DISTINCT in AI_AGG"),
    **{
        f"{given} as an instruction": (
            f"SELECT AI_AGG('m', text, {given}) FROM t", 26, "has to be a text in single quotes",
        )
        for given in ("title", "5", "NULL", "' '")
    },
    "AI_AGG without an instruction": ("SELECT AI_AGG(text) FROM t", 8, "needs an instruction"),
    "AI_AGG with a model for an instruction": (
        "SELECT AI_AGG('m', text) FROM t", 20, r"write AI_AGG\('m', column, 'instruction'\)",
    ),
    "AI_SUMMARIZE_AGG of two": (
        "SELECT AI_SUMMARIZE_AGG('m', text, title) FROM t", 8, "takes one input",
    ),
    "AI_AGG without a model": (
        "SELECT AI_AGG(text, 'x') FROM t", 8, "names no model, and there are 'm', 'two'",
    ),
    "AI_AGG of an unknown model": ("SELECT AI_AGG('mm', text, 'x') FROM t", 15, "model 'mm'.*'m'"),
    "AI_AGG of several models": (
        "SELECT AI_AGG(IF(n > 1, 'm', 'two'), text, 'x') FROM t", 8, "one model by its name",
    ),
    "AI_AGG of a number": ("SELECT AI_AGG('m', n, 'x') FROM t", 20, "this is INT.*CAST"),
    "an option that no group has": (
        "SELECT AI_AGG('m', text, 'x', MAP['response.format', 'xml']) FROM t", 54, "leave it out",
    ),
    "an instruction as an option": (
        "SELECT AI_AGG('m', text, 'x', MAP['instruction', 'y']) FROM t", 35, "AI_AGG's last",
    ),
    "a group as an option": (
        "SELECT AI_AGG('m', text, 'x', MAP['group.by', 'id']) FROM t", 35, "GROUP BY says it",
    ),
    "a type of partial answers": (
        "SELECT AI_AGG('m', text, 'x', MAP['partial.output', 'intger']) FROM t", 53,
        "'partial.output' is 'intger'",
    ),
    "a sum of texts": ("SELECT SUM(title) FROM t", 8, "SUM is of numbers, and this is STRING"),
    "RLIKE": ("SELECT text RLIKE 'a' FROM t", 8, "REGEXP"),
    "IS JSON": ("SELECT text IS JSON FROM t", 8, "JSON_EXISTS"),
    "a time of two units": ("SELECT day + INTERVAL '1:30' HOUR TO MINUTE FROM t", 8, "one unit"),
    "a hint": ("SELECT id FROM t /*+ OPTIONS('path'='x') */", 18, "hints.*into WITH"),
    "a column twice": (
        "SELECT q.a FROM (SELECT id AS a, title AS a FROM t) AS q", 8, "several columns 'a'.*AS",
    ),
    "a record id of two columns": (
        ("SELECT ML_PREDICT('m', q.text, MAP['record.id', 'a']) "
        "FROM (SELECT id AS a, title AS a, text FROM t) AS q"),
        8,
        "'record.id' is 'a', and there are several columns.*AS",
    ),
    "a key behind a mistake": (
        "CREATE MODEL a WITH ('keyy'='sk-abcdefgh')", 22, "unknown option 'keyy': \"'keyy'\"",
    ),
    "a mean of texts": ("SELECT AVG(title) FROM t", 8, r"AVG\(CAST\(… AS DOUBLE\)\)"),
    "JSON's ON ERROR": ("SELECT JSON_VALUE(text, '$.a' ERROR ON ERROR) FROM t", 37, "ON ERROR.*COALESCE"),
    "JSON's RETURNING": ("SELECT JSON_VALUE(text, '$.a' RETURNING INT) FROM t", 31, "RETURNING.*CAST"),
    "JSON's paths of many": ("SELECT JSON_VALUE(text, '$.a[*]') FROM t", 19, "'[$].a.{3}' is of several"),
    "FILTER": ("SELECT COUNT(*) FILTER (WHERE n > 1) FROM t", 17, "CASE WHEN"),
    "an aggregate over a window": ("SELECT COUNT(*) OVER (ORDER BY id) FROM t", 17, "window func"),
    **{
        f"GROUP BY {keys}": (f"SELECT 1 FROM t GROUP BY {keys}", 26, message)
        for keys, message in {
            "1": "write the column", "(id, n)": "write GROUP BY a, b", "ALL": "write the columns",
            "ROLLUP (id)": "one INSERT for each", "CUBE (id)": "one INSERT for each",
            "GROUPING SETS ((id))": "one INSERT for each",
        }.items()
    },
    "GROUP BY an alias": ("SELECT id AS a FROM t GROUP BY a", 32, "write what it is the name of"),
    "AI_AGG of too much": ("SELECT AI_AGG('m', id, text, 'x') FROM t", 8, "takes one input"),
    "HAVING without groups": ("SELECT id FROM t HAVING n > 1", 25, "filter with WHERE"),
    "HAVING of a column": (
        "SELECT id FROM t GROUP BY id HAVING n > 1", 37, "'n' is neither in GROUP BY",
    ),
    "HAVING that is no condition": (
        "SELECT id FROM t GROUP BY id HAVING COUNT(*)", 37, "this condition is BIGINT",
    ),
    "GROUP BY behind LIMIT": ("SELECT id FROM t LIMIT 1 GROUP BY id", 26, "GROUP BY can't stand"),
    "LIMIT after HAVING": (
        "SELECT id FROM t GROUP BY id HAVING COUNT(*) > 1 LIMIT 2", 50, "HAVING leaves groups out",
    ),
    "an expression": ("SELECT id + FROM t", 11, "not an expression .something is missing."),
}  # fmt: skip


@pytest.mark.parametrize(("sql", "column", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_run_is_one_line_with_its_place(sql: str, column: int, message: str):
    with pytest.raises(UsageError) as caught:
        read(sql)
    said = str(caught.value)
    assert re.match(rf"file\.sql:{FIRST}:\d+: ", said), said
    assert re.search(message, said), said
    assert "\n" not in said
    assert "sk-abcdefgh" not in said
    assert int(said.split(":")[2]) == column, said


# Models
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_overriding_map_wins_over_the_model_and_the_model_over_set():
    known = settings_of("""SET 'batch.size'='3'; SET 'max.retries'='9';
      ALTER MODEL m SET ('batch.size'='4', 'temperature'='0.5');
      SELECT ML_PREDICT('m', text, MAP['batch.size', '5']) FROM t;""")
    assert (known.batch_size, known.temperature, known.max_retries) == (5, 0.5, 9)


@pytest.mark.parametrize(
    ("reset", "left"),
    [
        ("RESET 'batch-size';", (1, 9)),
        ("RESET;", (1, 3)),
        ("RESET 'table.x';", (3, 9)),
        ("RESET 'seed';", (3, 9)),
    ],
)
def test_reset_takes_back_what_it_names_and_all_where_it_names_nothing(reset, left):
    known = settings_of(
        f"SET 'batch.size'='3'; SET 'max.retries'='9'; {reset} SELECT ML_PREDICT('m', text) FROM t;"
    )
    assert (known.batch_size, known.max_retries) == left


def test_alter_replaces_an_option_whatever_its_spelling_and_reset_takes_it_out():
    known = settings_of("""ALTER MODEL m SET ('batch-size'='4', 'max-tokens'='9');
      ALTER MODEL m SET ('batch.size'='6'); ALTER MODEL m RESET ('max.output.tokens');
      ALTER MODEL m RENAME TO other; SELECT ML_PREDICT('other', text) FROM t;""")
    assert (known.batch_size, known.max_output_tokens) == (6, None)


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ("'api-key'='env:A'", "api_key", "env:A"),
        ("'apiKey'='${A}'", "api_key", "env:A"),
        ("'system-prompt'='Be brief'", "system_prompt", "Be brief"),
        ("'max-tokens'='7'", "max_output_tokens", 7),
        ("'endpoint'='http://127.0.0.1:9/v2/chat/completions'", "base_url", "http://127.0.0.1:9/v2"),
        ("'retry-num'='100'", "max_retries", 20),
        ("'api_key'='env:A'", "api_key", "env:A"),
        ("'system.prompt'='Be brief'", "system_prompt", "Be brief"),
        ("'error-handling-strategy'='IGNORE'", "on_abort", "record"),
        ("'error-handling-strategy'='RETRY'", "on_abort", "raise"),
        ("'error-handling-strategy'='failover'", "on_abort", "raise"),
        ("'response-format'='json_object'", "response_format", "json"),
        ("'response-format'='JSON_OBJECT'", "response_format", "json"),
        ("'response.format'='xml'", "response_format", "xml"),
        ("'temperature'='0.5'", "temperature", 0.5),
    ],
)  # fmt: skip
def test_options_of_other_engines_are_taken_for_ours(written: str, name: str, value: Any):
    known = settings_of(
        f"DROP MODEL m; CREATE MODEL m WITH ('provider'='openai-compat', 'model-name'='gpt-4', "
        f"{'' if 'endpoint' in written else chr(39) + 'base.url' + chr(39) + '=' + chr(39) + 'http://127.0.0.1:9/v1' + chr(39) + ', '}"
        f"{written}); SELECT ML_PREDICT('m', text) FROM t;"
    )
    assert getattr(known, name) == value
    assert known.model == "openai:gpt-4"


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ("'max-concurrent-operations', '5'", "max_concurrency", 5),
        ("'max_parallelism', '5'", "max_concurrency", 5),
        ("'timeout', '60 s'", "request_timeout_ms", 60_000),
        ("'client_timeout', '60'", "request_timeout_ms", 60_000),
        ("'retry_count', '2'", "max_retries", 2),
        ("'timeout', '250'", "request_timeout_ms", 250),
        ("'async', 'true'", "batch_size", 1),
        ("'async_enabled', 'true'", "batch_size", 1),
        ("'output-mode', 'ORDERED'", "batch_size", 1),
        ("'output-mode', 'ALLOW_UNORDERED'", "batch_size", 1),
    ],
)
def test_runtime_options_of_other_engines_are_taken_for_ours(config: str, name: str, value: Any):
    sql = f"SELECT ML_PREDICT('m', text, MAP[{config}]) FROM t;"
    assert getattr(settings_of(sql), name) == value


@pytest.mark.parametrize("provider", ["openai", "openai-compat", "openai-compatible", "bailian"])
@pytest.mark.parametrize("name", ["model", "model-name"])
def test_providers_and_models_of_other_engines_are_ours(provider: str, name: str):
    known = settings_of(
        f"CREATE MODEL a WITH ('provider'='{provider}', '{name}'='q', "
        "'endpoint'='http://127.0.0.1:9/v1/chat/completions'); SELECT ML_PREDICT('a', text) FROM t;"
    )
    assert (known.model, known.base_url) == ("openai:q", "http://127.0.0.1:9/v1")


def test_every_option_of_the_proposal_is_a_model_s_and_a_call_s():
    written = {
        "batch.size": "20",
        "batch.timeout.ms": "50",
        "system.prompt": "You are a sentiment analyzer.",
        "batch.prompt.template": "{% for r in records %}{{ r.index }}: {{ r.text }}{% endfor %}",
        "response.format": "json",
        "response.path": "$[*]",
        "response.index.field": "nr",
        "response.value.field": "entities",
        "max.retries": "5",
        "request.timeout.ms": "9000",
        "api_key": "env:A",
    }
    model = ", ".join(f"'{key}'='{value}'" for key, value in written.items())
    call = ", ".join(f"'{key}', '{value}'" for key, value in written.items())
    of_model = settings_of(
        "DROP MODEL m; CREATE MODEL m WITH ('provider'='openai', 'model'='gpt-4', "
        f"'base.url'='http://127.0.0.1:9/v1', {model}); SELECT ML_PREDICT('m', text) FROM t;"
    )
    of_call = settings_of(f"SELECT ML_PREDICT('m', text, MAP[{call}]) FROM t;")
    for known in (of_model, of_call):
        assert {key: str(getattr(known, re.sub(r"\W", "_", key))) for key in written} == written


@pytest.mark.parametrize(
    "key",
    [
        "task", "retry-fallback-strategy", "context-overflow-action", "max-context-size", "n",
        "stop", "presence-penalty", "top-p",
    ],
)  # fmt: skip
def test_options_of_a_model_of_flink_s_that_mean_nothing_here_are_said(key: str):
    script = read(f"CREATE MODEL a WITH ('model'='openai:gpt-4', '{key}'='x');")
    (notice,) = script.notices
    assert notice.startswith(f"file.sql:{FIRST}:46: {key!r} means nothing here: ")


@pytest.mark.parametrize(
    "key",
    [
        "json.fail-on-missing-field", "parquet.compression", "sink.parallelism", "scan.parallelism",
        "source.monitor-interval", "auto-compaction",
    ],
)  # fmt: skip
def test_options_of_a_table_of_flink_s_that_mean_nothing_here_are_said(key: str):
    script = read(
        f"CREATE TABLE a (id STRING) WITH ('connector'='filesystem', '{key}'='x', 'path'='a', "
        "'format'='json');"
    )
    assert script.notices == (f"file.sql:{FIRST}:60: {key!r} means nothing here",)


def test_what_means_nothing_here_is_said_with_its_place():
    script = read("""SET 'table.exec.state.ttl'='1';
      SELECT ML_PREDICT('m', text, MAP['async', 'true']) FROM t;""")
    first, second = script.notices
    assert first.startswith(f"file.sql:{FIRST}:1: 'table.exec.state.ttl' means nothing here")
    assert "'async' means nothing here: calls are always made side by side" in second


def test_a_call_in_a_branch_of_one_condition_of_several_asks_about_the_rows_that_take_it():
    (plan,) = plans("SELECT id FROM t WHERE x > 1 AND IF(n > 1, ML_PREDICT('m', text) = 'x', TRUE)")
    (ask,) = plan.asks
    assert ask.when is not None


def test_of_a_row_that_is_left_out_it_is_not_reckoned_whether_a_call_is_needed():
    (plan,) = plans(
        "SELECT IF(10 / n > 1, ML_PREDICT('m', title), '') FROM t WHERE ML_PREDICT('m', text) = 'x'"
    )
    assert plan.asks[1].when not in [name for name, _, _ in plan.stages[0].outputs]
    assert plan.asks[1].when in [name for name, _, _ in plan.stages[1].outputs]


def test_of_a_row_that_takes_another_branch_no_argument_is_reckoned():
    (plan,) = plans(
        "SELECT IF(n > 0, ML_PREDICT('m', CAST(6 / n AS STRING)), ''), "
        "IF(n < 0, ML_PREDICT('m', CAST(6 / n AS STRING)), '') FROM t"
    )
    ((_, column, _),) = plan.asks[0].inputs
    rows = Evaluator(plan.stages[0]).rows([{"c.n": n} for n in (3, 0, -2)])
    assert [row and row[column] for row in rows] == ["2", None, "-3"]


def test_of_a_row_that_is_left_out_no_argument_is_reckoned():
    (plan,) = plans(
        "SELECT ML_PREDICT('m', CAST(6 / n AS STRING)) FROM t WHERE ML_PREDICT('m', text) = 'x'"
    )
    assert plan.asks[1].inputs[0][1] in [name for name, _, _ in plan.stages[1].outputs]


# As good as the other query
SAME = {
    "WITH": (
        "WITH a AS (SELECT id, text FROM t WHERE n > 1) SELECT ML_PREDICT('m', text) FROM a WHERE id > ''",
        "SELECT ML_PREDICT('m', text) FROM (SELECT id, text FROM t WHERE n > 1) AS a WHERE id > ''",
    ),
    "WITH, several, columns named": (
        "WITH a (b, c) AS (SELECT id, text FROM t), d AS (SELECT UPPER(a.c) AS e FROM a) SELECT f.e FROM d AS f",
        "SELECT f.e FROM (SELECT UPPER(a.text) AS e FROM (SELECT id, text FROM t) AS a) AS f",
    ),
    "WITH, the name of a table": (
        "WITH t AS (SELECT id, n + 1 AS n FROM t) SELECT n FROM t", "SELECT n FROM (SELECT id, n + 1 AS n FROM t)",
    ),
    "WITH, behind INSERT, in parentheses": (
        "INSERT INTO out (WITH a AS (SELECT id FROM t) SELECT id, id FROM a)",
        "INSERT INTO out SELECT id, id FROM t",
    ),
    "WITH, in the table form and in a view": (
        ("CREATE VIEW v AS WITH a AS (SELECT text FROM t) SELECT * FROM ML_PREDICT(TABLE a, MODEL m, DESCRIPTOR(text)); "
        "WITH a AS (SELECT * FROM v) SELECT * FROM a"),
        "SELECT * FROM ML_PREDICT(TABLE (SELECT text FROM t), MODEL m, DESCRIPTOR(text))",
    ),
    "DISTINCT": (
        "SELECT DISTINCT a.id AS k, 'x' AS l, UPPER(title) FROM t AS a WHERE n > 1 ORDER BY k LIMIT 3",
        "SELECT a.id AS k, 'x' AS l, UPPER(title) FROM t AS a WHERE n > 1 GROUP BY a.id, UPPER(title) ORDER BY k LIMIT 3",
    ),
    "DISTINCT texts that are asked about": (
        "SELECT ML_PREDICT('m', x) FROM (SELECT DISTINCT text AS x FROM t)",
        "SELECT ML_PREDICT('m', text) FROM t GROUP BY text",
    ),
    "LIMIT inside": (
        "WITH a AS (SELECT id, text FROM t ORDER BY n DESC LIMIT 2) SELECT id, ML_PREDICT('m', text) FROM a",
        "SELECT id, ML_PREDICT('m', text) FROM t ORDER BY n DESC LIMIT 2",
    ),
    "UNION ALL": (
        ("INSERT INTO out WITH a AS (SELECT id, text FROM t) SELECT id, 'x' FROM a WHERE id > '1' UNION ALL "
        "(SELECT id, ML_PREDICT('m', text) FROM a LIMIT 2) UNION ALL VALUES ('1', 'y')"),
        ("INSERT INTO out SELECT id, 'x' FROM t WHERE id > '1'; "
        "INSERT INTO out SELECT id, ML_PREDICT('m', text) FROM t LIMIT 2; INSERT INTO out VALUES ('1', 'y')"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sql", "other"), SAME.values(), ids=SAME)
def test_a_query_is_planned_as_another_one(sql: str, other: str):
    found, wanted = plans(sql), plans(other)
    assert len({plan.place for plan in found}) == len(found)
    assert [replace(plan, place="", text="", outputs=()) for plan in found] == [
        replace(plan, place="", text="", outputs=()) for plan in wanted
    ]
    assert [[column for _, column, _ in plan.outputs] for plan in found] == [
        [column for _, column, _ in plan.outputs] for plan in wanted
    ]


NEEDED = {
    "CASE WHEN n > 1 THEN ML_PREDICT('m', text) ELSE 'x' END": [True, False, False],
    "CASE WHEN n > 1 THEN 'x' ELSE UPPER(ML_PREDICT('m', text)) END": [False, True, True],
    "CASE n WHEN 2 THEN 'x' WHEN 1 THEN ML_PREDICT('two', id, text).mood END": [False, True, False],
    "CASE WHEN n > 1 THEN 'x' WHEN ML_PREDICT('m', text) = 'y' THEN 'y' END": [False, True, True],
    "IF(n > 1, 'x', ML_PREDICT('m', text))": [False, True, True],
    "IF(n > 1, ML_PREDICT('m', text), 'x')": [True, False, False],
    "CASE WHEN n > 1 THEN 'x' ELSE IF(title > '', 'y', ML_PREDICT('m', text)) END": [
        False,
        True,
        True,
    ],
    "COALESCE(title, ML_PREDICT('m', text))": [False, True, True],
    "IF(n > 0, IF(title IS NULL, ML_PREDICT('m', text), ''), '')": [False, True, False],
    "IF(n > 1, ML_PREDICT('m', text), '') || IF(n > 0, ML_PREDICT('m', text), '')": [
        True,
        True,
        False,
    ],
    "IF(n > 1, ML_PREDICT('m', text), IF(n IS NULL, ML_PREDICT('m', text), ''))": [
        True,
        False,
        True,
    ],
    "CASE WHEN n > 1 THEN 1 WHEN ML_PREDICT('m', text) = 'x' THEN 2 "
    "WHEN ML_PREDICT('m', text) = 'y' THEN 3 END": [False, True, True],
    "n > 1 AND (ML_PREDICT('m', text) = 'x' OR ML_PREDICT('m', text) = 'y')": [True, False, True],
    "IF(n > 1 AND ML_PREDICT('m', text) = 'x', ML_PREDICT('m', text), 'z')": [True, False, True],
    "IF(IF(n > 1, ML_PREDICT('m', text), 'z') = 'z', ML_PREDICT('m', text), '')": [
        True,
        True,
        True,
    ],
    "IF(n > 1, ML_PREDICT('m', text), '') || ML_PREDICT('m', text)": None,
    "n > 1 OR ML_PREDICT('m', text) = 'x'": [False, True, True],
    "ML_PREDICT('m', text) = 'x' AND n > 1": [True, False, True],
    "ML_PREDICT('m', text) = 'x' OR ML_PREDICT('m', text) = 'y'": None,
    "COALESCE(ML_PREDICT('m', text), title)": None,
    "CASE WHEN ML_PREDICT('m', text) = 'x' THEN 1 ELSE 2 END": None,
    "AI_COMPLETE(IF(n > 1, 'm', 'm'), text, 'x')": None,
}


@pytest.mark.parametrize("expression", NEEDED)
def test_a_call_in_a_branch_asks_about_the_rows_that_take_it(expression: str):
    (plan,) = plans(f"SELECT {expression} AS v FROM t;")
    (ask,) = plan.asks
    rows = [{"c.n": n, "c.title": title} for n, title in ((2, "a"), (1, None), (None, None))]
    found = Evaluator(plan.stages[0]).rows(rows)
    assert (None if ask.when is None else [row and row[ask.when] for row in found]) == NEEDED[
        expression
    ]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Label {{ txt }}", "names the field 'txt', which it isn't given.*did you mean 'text'"),
        ("{{ text }} by {{ author }}", "names the field 'author'.*it is given: text"),
    ],
    ids=["a typo", "one of two"],
)
def test_a_prompt_that_names_what_no_row_has_is_refused_before_anything_runs(prompt, said):
    with pytest.raises(UsageError, match=said) as refused:
        read(f"SELECT ML_PREDICT('m', text, MAP['prompt', '{prompt}']) FROM t;")
    assert str(refused.value).startswith(f"file.sql:{FIRST}:8: ")


@pytest.mark.parametrize(
    "prompt",
    ["{{ element }}", "{{ text }}", "{% if lang is defined %}{{ lang }}{% endif %} {{ text }}"],
    ids=["the whole", "a field", "a field that may be missing"],
)
def test_a_prompt_that_rows_can_fit_is_taken(prompt):
    assert settings_of(f"SELECT ML_PREDICT('m', text, MAP['prompt', '{prompt}']) FROM t;")


def test_a_prompt_keeps_what_looks_like_a_reference():
    sql = "SELECT ML_PREDICT('m', text, MAP['system.prompt', 'Costs ${PRICE}']) FROM t;"
    assert settings_of(sql).system_prompt == "Costs ${PRICE}"


def test_show_and_describe_print_what_there_is():
    assert printed("SHOW MODELS;") == [("m",), ("two",)]
    assert printed("CREATE VIEW v AS SELECT id FROM t; SHOW TABLES;") == [("out",), ("t",), ("v",)]
    assert printed("DESCRIBE MODEL two;")[-1] == ("score", "DOUBLE", "output")
    assert printed("DESC out;") == [("id", "STRING"), ("mood", "STRING")]
    assert printed("CREATE VIEW v AS SELECT n + 1 AS k FROM t; DESCRIBE v;") == [("k", "INT")]
    view = "CREATE VIEW v (k) AS\n  SELECT n FROM t WHERE text <> 'a;b';"
    assert printed(f"{view} SHOW CREATE VIEW v;") == [(view,)]


def test_what_show_create_prints_makes_the_same_model_again():
    sql = """CREATE TEMPORARY MODEL a INPUT (`i``n` STRING) OUTPUT (x ARRAY<ROW<`a``` INT>>,
      e STRING METADATA FROM 'error-string' VIRTUAL) COMMENT 'It''s one'
      WITH ('model'='openai:gpt-4', 'api.key'='${KEY}', 'system.prompt'='It''s');"""
    ((text,),) = printed(sql + "SHOW CREATE MODEL a;")
    assert "'api.key' = '${KEY}'" in text
    assert "COMMENT 'It''s one'" in text
    ((again,),) = printed(text + "SHOW CREATE MODEL a;")
    assert again == text


def test_if_exists_and_if_not_exists_pass_over():
    read("""CREATE MODEL IF NOT EXISTS m WITH ('model'='nobody:x'); DROP MODEL IF EXISTS nobody;
      CREATE TABLE IF NOT EXISTS t (a INT) WITH ('connector'='print'); DROP TABLE out;
      DROP VIEW IF EXISTS v; ALTER MODEL IF EXISTS nobody SET ('batch.size'='1');""")


def test_what_is_temporary_is_made_and_dropped_like_the_rest():
    read("""CREATE TEMPORARY TABLE a (id STRING) COMMENT 'x' WITH ('connector'='print');
      CREATE TEMPORARY VIEW v AS (SELECT id FROM t);
      CREATE TEMPORARY MODEL b WITH ('model'='openai:gpt-4');
      DROP TEMPORARY TABLE a; DROP TEMPORARY VIEW v; DROP TEMPORARY MODEL b; DROP MODEL m;""")


def test_a_statement_set_needs_no_execute_and_holds_several_inserts():
    insert = "INSERT INTO out SELECT id, text FROM t;"
    for head in ("STATEMENT SET BEGIN", "EXECUTE STATEMENT SET BEGIN"):
        assert len(plans(f"{head} {insert} {insert} END;")) == 2


def test_metadata_of_http_is_null_and_said():
    script = read("""CREATE MODEL a OUTPUT (b STRING, `error-string` STRING METADATA,
      s INT METADATA FROM 'http-status-code' VIRTUAL,
      h MAP<STRING, STRING> METADATA FROM 'http-headers-map') WITH ('model'='openai:gpt-4');
      SELECT b, `error-string`, s, h FROM ML_PREDICT(TABLE t, MODEL a, DESCRIPTOR(text));""")
    (step,) = script.steps
    assert isinstance(step, Job)
    types = [str(kind) for _, _, kind in step.plans[0].outputs]
    assert types == ["STRING", "STRING", "INT", "MAP<STRING, STRING>"]
    assert ["s is NULL" in one or "h is NULL" in one for one in script.notices] == [True, True]


# Plans
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_on_columns_is_looked_at_before_the_model_is_asked_also_behind_a_view():
    (plan,) = plans("""CREATE VIEW v AS SELECT id, text, ML_PREDICT('m', text) AS mood FROM t;
      SELECT id, mood FROM v WHERE CHAR_LENGTH(text) > 10 AND mood = 'good' AND id <> '3';""")
    assert len(plan.stages[0].filters) == 2
    assert len(plan.stages[1].filters) == 1


def test_a_group_is_asked_once_and_after_what_having_can_tell_without_an_answer():
    (plan,) = plans(
        "SELECT UPPER(title), COUNT(*), AI_AGG('m', text, 'What?') FROM t WHERE n > 1 "
        "GROUP BY UPPER(title) HAVING COUNT(*) > 1 AND AI_AGG('m', text, 'What?') <> 'none'"
    )
    (ask,) = plan.asks
    settings = ask.branches[0].settings
    assert (settings.task, settings.instruction) == ("reduce", "What?")
    assert [len(stage.filters) for stage in (plan.grouping.compute, *plan.stages)] == [1, 1, 1]
    assert [sql for _, sql, _ in plan.grouping.aggregates.outputs] == ["count(*)"]


@pytest.mark.parametrize("alias", ["", " AS v", " v"])
def test_rows_of_a_query_inside_are_grouped(alias: str):
    (plan,) = plans(
        f"SELECT title, MAX(n) FROM (SELECT title, n FROM t){alias} GROUP BY title HAVING MAX(n) > 1"
    )
    assert plan.grouping.keys == ("c.title",)


@pytest.mark.parametrize(
    "call",
    [
        "AI_AGG(text, 'What?')",
        "AI_AGG('m', text, 'What?')",
        "AI_AGG(MODEL m, text, 'What?')",
        "AI_AGG(MODEL => MODEL m, INPUT => text, INSTRUCTION => 'What?')",
        "AI_AGG(INPUT => text, INSTRUCTION => 'What?', CONFIG => MAP['batch.size', '2'])",
        "AI_AGG(text, 'What?', MAP['batch.size', '2'])",
    ],
)
def test_ai_agg_may_name_its_model_where_there_is_one(call: str):
    (plan,) = plans(f"DROP MODEL two; SELECT {call} FROM t")
    settings = plan.asks[0].branches[0].settings
    assert (settings.instruction, settings.prompt) == ("What?", "{{ text }}")
    assert settings.batch_size == (2 if "2" in call else "auto")


def test_an_answer_over_a_group_has_the_model_s_output_and_a_summary_is_text():
    (plan,) = plans(
        "SELECT r.a, AI_AGG('two', text, 'x'), AI_SUMMARIZE_AGG('two', text) FROM t GROUP BY r.a"
    )
    assert [str(kind) for _, _, kind in plan.outputs] == [
        "INT", "ROW<`mood` STRING, `score` DOUBLE>", "STRING",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("aggregate", "kind"),
    {
        "COUNT(*)": "BIGINT", "COUNT(DISTINCT tags)": "BIGINT", "SUM(n)": "BIGINT",
        "SUM(x)": "DOUBLE", "SUM(CAST(n AS DECIMAL(9, 2)))": "DECIMAL(38, 2)", "MIN(day)": "DATE",
        "MAX(title)": "STRING", "AVG(x)": "DOUBLE", "AVG(DISTINCT n)": "INT",
        "MAX(n) - MIN(n)": "INT",
    }.items(),
)  # fmt: skip
def test_an_aggregate_has_its_type(aggregate: str, kind: str):
    (plan,) = plans(f"SELECT {aggregate} FROM t GROUP BY id, title")
    assert str(plan.outputs[0][2]) == kind


def test_the_same_call_twice_is_one_call():
    (plan,) = plans("""SELECT ML_PREDICT('m', text) AS a, UPPER(ML_PREDICT('m', text)) AS b FROM t
      WHERE ML_PREDICT('m', text) <> 'x';""")
    assert len(plan.asks) == 1


def test_only_columns_that_are_used_are_read():
    (plan,) = plans("SELECT id, ML_PREDICT('m', text) AS a FROM t WHERE n > 1;")
    assert [name for name, _, _ in plan.columns] == ["id", "text", "n"]


def test_a_clash_of_names_gets_an_index():
    (plan,) = plans("""CREATE VIEW v AS SELECT text AS mood FROM t;
      SELECT * FROM ML_PREDICT(TABLE v, MODEL m, DESCRIPTOR(mood));""")
    assert [name for name, _, _ in plan.outputs] == ["mood", "mood0"]


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("CHAR_LENGTH(text)", "BIGINT"),
        ("UPPER(text) || '!'", "STRING"),
        ("n / 2", "INT"),
        ("x * 2", "DOUBLE"),
        ("tags[1]", "STRING"),
        ("r.a + 1", "INT"),
        ("CAST(n AS STRING)", "STRING"),
        ("TRY_CAST(text AS DOUBLE)", "DOUBLE"),
        ("CAST(text AS TIMESTAMP(3))", "TIMESTAMP"),
        ("CAST(text AS DECIMAL)", "DECIMAL(10, 0)"),
        ("IF(n > 1, 'a', 'b')", "STRING"),
        ("CASE WHEN n IS NULL THEN 0 ELSE n END", "INT"),
        ("EXTRACT(YEAR FROM day)", "BIGINT"),
        ("SUBSTRING(text FROM 2 FOR 3)", "STRING"),
        ("POSITION('a' IN text)", "BIGINT"),
        ("TRIM(BOTH ' ' FROM text)", "STRING"),
        ("text LIKE 'a%' AND n BETWEEN 1 AND 3 OR id IN ('1', '2')", "BOOLEAN"),
        ("ARRAY['a', text]", "ARRAY<STRING>"),
        ("MAP['a', n]", "MAP<STRING, INT>"),
        ("DATE '2026-01-01'", "DATE"),
        ("REGEXP_EXTRACT(text, '(a+)', 1)", "STRING"),
        ("SPLIT_INDEX(text, ' ', 0)", "STRING"),
        ("JSON_VALUE(text, '$.a')", "STRING"),
        ("COALESCE(title, text, 'x')", "STRING"),
        ("`text`", "STRING"),
    ],
)
def test_an_expression_has_its_type(expression: str, kind: str):
    (plan,) = plans(f"SELECT {expression} AS v FROM t;")
    assert str(plan.outputs[0][2]) == kind


ANSWERS = {
    "ML_PREDICT('m', text)": "STRING",
    "ML_PREDICT('two', title, text)": "ROW<`mood` STRING, `score` DOUBLE>",
    "ML_PREDICT('two', title, text).score": "DOUBLE",
    "AI_COMPLETE('m', text, 'Label it.')": "STRING",
    "AI_CLASSIFY(MODEL => MODEL m, INPUT => text, LABELS => ARRAY['a', 'b'])": (
        "ROW<`category` STRING, `confidence` DOUBLE>"
    ),
    "AI_CLASSIFY(MODEL m, text, ARRAY['a', 'b']).confidence": "DOUBLE",
}


@pytest.mark.parametrize("call", ANSWERS)
def test_an_answer_has_its_type(call: str):
    (plan,) = plans(f"SELECT {call} AS v FROM t;")
    assert str(plan.outputs[0][2]) == ANSWERS[call]


TYPES = {
    **dict.fromkeys(("STRING", "TEXT", "VARCHAR", "CHAR"), "STRING"),
    "VARCHAR(9)": "VARCHAR(9)", "BOOLEAN": "BOOLEAN", "BOOL": "BOOLEAN", "TINYINT": "TINYINT",
    "SMALLINT": "SMALLINT", "INT": "INT", "INTEGER": "INT", "BIGINT": "BIGINT", "FLOAT": "FLOAT",
    "REAL": "FLOAT", "DOUBLE PRECISION": "DOUBLE", "DECIMAL(10, 2)": "DECIMAL(10, 2)",
    "NUMERIC(5)": "DECIMAL(5)", "DEC": "DECIMAL", "DATE": "DATE", "TIME": "TIME",
    "TIMESTAMP(3)": "TIMESTAMP", "TIMESTAMP(3) WITH LOCAL TIME ZONE": "TIMESTAMP_LTZ",
    "TIMESTAMP_LTZ(3)": "TIMESTAMP_LTZ", "BYTES": "BYTES", "BINARY(2)": "BYTES",
    "VARBINARY(2)": "BYTES", "ARRAY<FLOAT>": "ARRAY<FLOAT>", "MAP<STRING, INT>": "MAP<STRING, INT>",
    "ROW<a INT, b ARRAY<STRING>>": "ROW<`a` INT, `b` ARRAY<STRING>>", "ROW(a INT)": "ROW<`a` INT>",
    "STRING NOT NULL": "STRING",
}  # fmt: skip


@pytest.mark.parametrize("written", TYPES)
def test_a_column_of_a_table_or_of_an_answer_may_have_any_type(written: str):
    table = f"CREATE TABLE a (x {written}) WITH ('connector'='print'); DESCRIBE a;"
    assert printed(table) == [("x", TYPES[written])]
    model = f"CREATE MODEL a OUTPUT (x {written}) WITH ('model'='openai:gpt-4');"
    assert printed(model + "DESCRIBE MODEL a;") == [("x", TYPES[written], "output")]
    (plan,) = plans(model.replace("4');", "4', 'base.url'='http://127.0.0.1:9/v1');")
                    + "SELECT ML_PREDICT('a', text) AS v FROM t;")  # fmt: skip
    assert str(plan.outputs[0][2]) == TYPES[written]


VALUES = {
    "UPPER('aB')": "AB", "LOWER('aB')": "ab", "CHAR_LENGTH('né')": 2, "CHARACTER_LENGTH('né')": 2,
    "LENGTH('né')": 2, "OCTET_LENGTH('né')": 3, "LTRIM(' a ')": "a ", "RTRIM(' a ')": " a",
    "BTRIM(' a ')": "a", "TRIM(LEADING 'x' FROM 'xax')": "ax", "CONCAT('a', 'b')": "ab",
    "CONCAT('a', CAST(NULL AS STRING))": None, "CONCAT_WS('-', 'a', 'b')": "a-b",
    "SUBSTR('abc', 2, 1)": "b", "SUBSTRING('abc' FROM 2)": "bc", "LEFT('abc', 2)": "ab",
    "RIGHT('abc', 2)": "bc", "LPAD('a', 3, 'x')": "xxa", "RPAD('a', 3, 'x')": "axx",
    "REPEAT('ab', 2)": "abab", "REPLACE('aba', 'a', 'x')": "xbx", "REVERSE('abc')": "cba",
    "INSTR('abc', 'c')": 3, "LOCATE('c', 'abc')": 3, "POSITION('c' IN 'abc')": 3, "ASCII('a')": 97,
    "CHR(97)": "a", "MD5('')": "d41d8cd98f00b204e9800998ecf8427e",
    "SHA256('')": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "TO_BASE64('a')": "YQ==", "FROM_BASE64('YQ==')": "a", "REGEXP('abc', 'b')": True,
    "REGEXP_LIKE('abc', 'x')": False, "REGEXP_REPLACE('aba', 'a', 'x')": "xbx",
    r"REGEXP_REPLACE('ab', '(a)', '$1\1')": r"$1\1b",
    "REGEXP_EXTRACT('abc', 'a(b)', 1)": "b", "REGEXP_EXTRACT('abc', 'x')": None,
    "SPLIT('a,b', ',')": ["a", "b"], "SPLIT_INDEX('a,b', ',', 1)": "b",
    "STARTSWITH('abc', 'a')": True, "ENDSWITH('abc', 'a')": False,
    "JSON_VALUE('{\"a\": 1}', '$.a')": "1", "JSON_QUERY('{\"a\": [1]}', '$.a')": "[1]",
    "JSON_EXISTS('{\"a\": 1}', '$.b')": False, "JSON_STRING(ARRAY[1, 2])": "[1,2]",
    "ABS(-2)": 2, "CEIL(1.5)": 2, "CEILING(1.5)": 2, "FLOOR(1.5)": 1, "ROUND(1.25, 1)": 1.3,
    "TRUNCATE(1.9)": 1, "MOD(7, 4)": 3, "POWER(2, 3)": 8, "SQRT(9)": 3, "LN(1)": 0, "LOG10(100)": 2,
    "LOG2(8)": 3, "EXP(0)": 1, "SIGN(-3)": -1, "GREATEST(1, 3)": 3, "LEAST(1, 3)": 1,
    "GREATEST(1, CAST(NULL AS INT))": None, "COALESCE(NULL, 'a')": "a", "IFNULL(NULL, 1)": 1,
    "NULLIF(1, 1)": None, "IF(1 > 2, 'a', 'b')": "b", "CARDINALITY(ARRAY[1, 2])": 2,
    "ARRAY_CONTAINS(ARRAY[1], 2)": False, "ARRAY_POSITION(ARRAY[1, 5], 5)": 2,
    "ARRAY_POSITION(ARRAY[1, 5], 7)": 0,
    "CARDINALITY(ARRAY_DISTINCT(ARRAY[1, 1]))": 1, "ARRAY_CONCAT(ARRAY[1], ARRAY[2])": [1, 2],
    "ARRAY_DISTINCT(ARRAY[3, 1, 3, 2])": [3, 1, 2], "CONCAT('{', 'a', '}')": "{a}",
    "MAP['a', 1]": {"a": 1}, "ARRAY_JOIN(ARRAY['a', 'b'], '-')": "a-b",
    "MAP_KEYS(MAP['a', 1])": ["a"],
    "MAP_VALUES(MAP['a', 1])": [1], "ROW(1, 'a')": {"f0": 1, "f1": "a"},
    "YEAR(DATE '2026-05-04')": 2026, "QUARTER(DATE '2026-05-04')": 2,
    "MONTH(DATE '2026-05-04')": 5, "DAYOFMONTH(DATE '2026-05-04')": 4,
    "HOUR(TIMESTAMP '2026-05-04 03:02:01')": 3, "MINUTE(TIMESTAMP '2026-05-04 03:02:01')": 2,
    "SECOND(TIMESTAMP '2026-05-04 03:02:01')": 1, "EXTRACT(DAY FROM DATE '2026-05-04')": 4,
    "TO_DATE('2026-05-04')": "2026-05-04", "TO_DATE('04.05.2026', 'dd.MM.yyyy')": "2026-05-04",
    "TO_TIMESTAMP('4/5/26 1 PM', 'd/M/yy h a')": "2026-05-04 13:00:00",
    "DATE_FORMAT(TIMESTAMP '2026-05-04 03:02:01.5', 'yyyy-MM-dd''T''HH:mm:ss.SSS')":
        "2026-05-04T03:02:01.500",
    "DATE_FORMAT('2026-05-04 13:02:01', 'EEE, d MMM yy h%')": "Mon, 4 May 26 1%",
    "DATE_FORMAT('no', 'yyyy')": None, "TO_DATE('no', 'yyyy')": None,
    "TIMESTAMPDIFF(MONTH, DATE '2026-01-31', DATE '2026-02-27')": 0,
    "TIMESTAMPDIFF(hour, '2026-05-04 10:30:00', TIMESTAMP '2026-05-04 09:00:00')": -1,
    "JSON_VALUE('{\"a\": 12345678901234567890123}', '$.a')": "12345678901234567890123",
    "TO_TIMESTAMP('2026-05-04 03:02:01')": "2026-05-04 03:02:01",
    "CAST('7' AS INT)": 7, "TRY_CAST('x' AS INT)": None,
    # Where DuckDB does otherwise
    "CAST(-2.7 AS INT)": -2, "CAST('2.7' AS INT)": 2, "CAST(CAST(2.5 AS DOUBLE) AS BIGINT)": 2,
    "CAST('abc' AS VARCHAR(2))": "ab", "CAST('a' AS CHAR(2))": "a ",
    "EXTRACT(DOW FROM DATE '2026-11-30')": 2, "1 IS DISTINCT FROM NULL": True,
    "JSON_QUERY('{\"a\": [1]}', 'lax $.a')": "[1]", "JSON_EXISTS('{\"a\": 1}', 'lax $.a')": True,
    "JSON_VALUE('{\"a\": [1]}', '$.a')": None, "JSON_VALUE('{\"a\": 1}', 'lax $.a')": "1",
    "JSON_VALUE('{\"a\": 1}', 'strict $.a')": "1", "JSON_VALUE('{\"a b\": 1}', '$[''a b'']')": "1",
    "JSON_VALUE('{bad', '$.a')": None, "JSON_QUERY('', '$')": None, "JSON_EXISTS('{bad', '$')": False,
    "JSON_QUERY('{\"a\": \"x\"}', '$.a')": None, "JSON_EXISTS(CAST(NULL AS STRING), '$')": None,
    "SUBSTRING('abc', 0, 2)": "ab", "SUBSTRING('abc' FROM 0)": "abc", "SUBSTR('abc', -2, 1)": "b",
    "SUBSTR('abc', -5, 4)": "", "SUBSTRING('abc', -5)": "", "SUBSTR('abc', 2, -1)": None,
    "LEFT('abc', -1)": "", "RIGHT('abc', -1)": "", "LEFT('abc', CAST(NULL AS INT))": None,
    "LPAD('ab', -1, 'x')": None, "RPAD('abc', 5, '')": None, "LPAD('ab', CHAR_LENGTH('abc'), 'x')": "xab",
    "CHR(-9)": "", "CHR(353)": "a", "SPLIT_INDEX('a,b', ',', -2)": None,
    "SPLIT_INDEX('a,b', CAST(NULL AS STRING), 0)": None, "ARRAY_CONCAT(ARRAY[1], NULL)": None,
    "CARDINALITY(MAP['a', 1])": 1, "FLOOR(9007199254740993)": 9007199254740993,
    "TRUNCATE(1.29, 1)": 1.2, "TO_DATE('no')": None, "TO_TIMESTAMP('2026-13-01')": None,
    "CAST(TRUE AS STRING)": "TRUE", "CAST(1 > 2 AS VARCHAR(3))": "FAL",
    "CAST(CAST('-inf' AS DOUBLE) AS STRING)": "-Infinity", "CAST(SQRT(-1) AS STRING)": "NaN",
    "CAST(CAST('né' AS BYTES) AS STRING)": "né", "7 / 2": 3, "-7 / 2": -3, "7.0 / 2": 3.5,
    "CAST(1 AS DOUBLE) / 0 > 9": True, "DATE '2026-01-31' + INTERVAL '1' MONTH": "2026-02-28",
    "DATE '2026-03-01' - INTERVAL '1' DAY": "2026-02-28",
    "EXTRACT(MILLISECOND FROM TIMESTAMP '2026-05-04 03:02:01.5')": 500,
    "EXTRACT(MICROSECOND FROM TIMESTAMP '2026-05-04 03:02:01.5')": 500000,
    "EXTRACT(EPOCH FROM TIMESTAMP '1970-01-01 00:01:00')": 60,
    "CAST(CAST('2026-05-04 03:02:01' AS TIMESTAMP_LTZ(3)) AS STRING)": "2026-05-04 03:02:01",
}  # fmt: skip


def test_functions_give_what_they_give_in_flink():
    named = set(re.findall(r"([A-Z][A-Z0-9_]*)\(", " ".join(VALUES)))
    assert set(FUNCTIONS) | WITH_A_SYNTAX <= named
    items = ", ".join(f"{text} AS c{number}" for number, text in enumerate(VALUES))
    (plan,) = plans(f"SELECT {items};")
    row = Evaluator(plan.stages[0]).row({})
    assert row is not None
    found = [to_json(kind, row.get(str(column))) for _, column, kind in plan.outputs]
    assert dict(zip(VALUES, found, strict=True)) == VALUES


def test_names_that_differ_by_case_alone_are_two_columns_as_in_flink():
    table = "CREATE TABLE c (id STRING, `Id` STRING) WITH ('connector'='filesystem', 'path'='c.csv', 'format'='csv');"
    (plan,) = plans(f"{table} SELECT UPPER(id) AS a, UPPER(`Id`) AS b FROM c;")
    row = {column: name for name, column, _ in plan.columns}
    found = Evaluator(plan.stages[0]).row({**row, plan.columns[1][1]: "other"})
    assert found is not None
    assert [found[str(column)] for _, column, _ in plan.outputs] == ["ID", "OTHER"]


@pytest.mark.parametrize("value", [Decimal("1.75"), 1.75, True, "1.75", "1_0"], ids=repr)
def test_what_is_not_whole_is_not_an_integer(value: Any):
    with pytest.raises(ValueError, match="it is not INT"):
        value_of(SqlType("INT"), value)


def test_a_time_in_a_zone_is_one_text_whatever_its_zone():
    kind = SqlType("TIMESTAMP_LTZ")
    texts = ["2026-01-01 09:30:00.50+02:00", "2026-01-01T07:30:00.5Z", "2026-01-01 07:30:00.5"]
    assert {value_of(kind, text) for text in texts} == {"2026-01-01 07:30:00.5+00:00"}
    assert value_of(kind, "9999-12-31 23:59:59-05:00") == "9999-12-31 23:59:59-05:00"


@pytest.mark.parametrize("kind", ["DATE", "TIME", "TIMESTAMP", "TIMESTAMP_LTZ", "BYTES"])
def test_what_is_not_of_a_column_s_type_is_told_by_the_type_and_not_by_the_value(kind: str):
    with pytest.raises(ValueError, match=f"^it is not {kind}, such as ") as raised:
        value_of(SqlType(kind), "se-cret")
    assert "se-cret" not in str(raised.value)


def a_map(inner: SqlType) -> SqlType:
    return SqlType("MAP", fields=(("0", SqlType("STRING")), ("1", inner)))


IN_FLIGHT = {
    "bytes": (SqlType("BYTES"), "aGk="),
    "a map": (a_map(SqlType("INT")), {"a": 1, 'b "c"': None}),
    "an empty map": (a_map(SqlType("INT")), {}),
    "a map of bytes": (a_map(SqlType("BYTES")), {"a": "aGk="}),
    "a map of decimals": (a_map(SqlType("DECIMAL", (10, 2))), {"a": "1.25"}),
    "a list of maps": (SqlType("ARRAY", fields=(("0", a_map(SqlType("BYTES"))),)), [{"a": "aGk="}]),
    "a row of bytes": (SqlType("ROW", fields=(("x", SqlType("BYTES")),)), {"x": "aGk="}),
}


@pytest.mark.parametrize(("kind", "value"), IN_FLIGHT.values(), ids=IN_FLIGHT)
def test_a_value_is_the_same_computed_alone_and_among_others(kind: SqlType, value: Any):
    row = {"c": value}
    evaluator = Evaluator(Compute((("c", kind),), (), (("again", '"c"', kind),)))
    (alone,) = evaluator.rows([row])
    for found in (alone, *evaluator.rows([row, row])):
        assert found == {"c": value, "again": value}


# Any text
# ─────────────────────────────────────────────────────────────────────────────────────────────────

OTHER_WORDS = """SELECT FROM WHERE INSERT INTO VALUES VIEW AS TABLE LATERAL ML_PREDICT AI_COMPLETE
  AI_CLASSIFY DESCRIPTOR MAP ARRAY ROW CASE WHEN THEN END NULL NOT AND OR IN IS SHOW MODELS DESCRIBE
  ALTER SET DROP EXECUTE STATEMENT BEGIN LIMIT CAST => [ ] < > * m t text id n 'm' 'x' 1 2.5 ; ( ) ,
  . = + - / || % UPPER JOIN ON TRUE r tags day GROUP BY HAVING COUNT(*) SUM( AI_AGG( AI_SUMMARIZE_AGG
  DISTINCT ALL"""
WORDS = [*re.findall(r"[\w.]+|'[^']*'|[^\s\w]", HEAD), *OTHER_WORDS.split()]
STATEMENTS = [
    "SELECT id, ML_PREDICT('m', text) AS a FROM t WHERE CHAR_LENGTH(text) > 10;",
    (
        "INSERT INTO out SELECT id, r.value FROM t, LATERAL TABLE(ML_PREDICT('m', text, "
        "MAP['batch.size', '50'])) AS r;"
    ),
    "SELECT * FROM ML_PREDICT(INPUT => TABLE t, MODEL => MODEL two, ARGS => DESCRIPTOR(id, text));",
    "SELECT id, COUNT(*), AI_AGG('m', text, 'x') FROM t GROUP BY id HAVING SUM(n + 1) > 2;",
    "CREATE VIEW v AS SELECT * FROM (VALUES ('a', 1)) AS t(k, n);",
    "SELECT CASE WHEN n > 1 THEN UPPER(text) ELSE CAST(n AS STRING) END FROM t;",
    "EXECUTE STATEMENT SET BEGIN INSERT INTO out SELECT id, text FROM t; END;",
]


def check(sql: str) -> None:
    """A file is planned, or refused by one line that names its place."""
    try:
        read_script(sql, "any.sql", Permissions())
    except UsageError as error:
        said = str(error)
        if not re.match(r"any\.sql:\d+:\d+: ", said) or "\n" in said:
            raise AssertionError(said) from error


@given(st.text(max_size=80))
def test_any_text_is_planned_or_refused_with_its_place(text: str):
    check(text)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_any_words_of_sql_are_planned_or_refused_with_their_place(words: list[str]):
    check(HEAD + "SELECT " + " ".join(words))
    check(HEAD + " ".join(words))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    statement=st.sampled_from(STATEMENTS),
    at=st.integers(0, 60),
    length=st.integers(0, 20),
    put=st.sampled_from([*WORDS, "", "\\", "'", '"', "`", "--", "/*", "${A}", "\x00", "\ud800", "é"]),
)  # fmt: skip
def test_a_statement_with_a_mistake_is_planned_or_refused_with_its_place(
    statement: str, at: int, length: int, put: str
):
    check(HEAD + statement[:at] + put + statement[at + length :])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 3000 + "1" + ")" * 3000,
        "SELECT -" + " -".join(["1"] * 3000),
        "SELECT " + " + ".join(["1"] * 20_000),
        "SELECT * FROM " + "(SELECT * FROM " * 500 + "t" + ")" * 500,
        "CREATE TABLE a (b " + "ARRAY<" * 3000 + "INT" + ">" * 3000 + ") WITH ()",
        "SELECT " + "NOT " * 5000 + "TRUE",
        "SELECT " + "CASE WHEN TRUE THEN " * 2000 + "1" + " END" * 2000,
        "SELECT " + "/".join(["1"] * 3000),
        "SELECT " + "SUBSTRING(" * 40 + "text" + ", 1, 2)" * 40 + " FROM t",
        "".join(
            f"CREATE VIEW v{k} AS SELECT a || a AS a FROM {f'v{k - 1}' if k else '(SELECT id AS a FROM t)'};"
            for k in range(40)
        ),
    ],
    ids=[
        "parentheses", "signs", "a sum", "queries", "arrays", "NOT", "CASE", "quotients",
        "functions that double", "views that double",
    ],
)  # fmt: skip
def test_what_is_deep_or_grows_is_planned_or_refused_in_no_time(sql: str):
    check(HEAD + sql)
