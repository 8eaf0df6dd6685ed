"""Front ends beside Python: each turns a syntax into `Settings` and the package's transforms, and
has no behaviour of its own.

    yaml, nested_rows     steps of Beam YAML, and answers as rows inside their rows
    yaml_file             a Beam YAML file with these steps
    sql/                  SQL files: CREATE MODEL, ML_PREDICT, and the AI_… functions
"""
