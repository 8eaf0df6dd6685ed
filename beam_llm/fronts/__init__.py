"""Ways in beside Python: a syntax becomes the one Settings and the one transform, with no behaviour
of its own.

    yaml, nested_rows     steps of Beam YAML, and answers as rows inside of their rows
    yaml_file             a Beam YAML file with these steps
    sql/                  SQL files: CREATE MODEL, ML_PREDICT, and the AI_… functions
"""
