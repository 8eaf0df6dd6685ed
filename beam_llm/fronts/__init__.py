"""Ways in beside Python: a syntax becomes the one Settings and the one transform, with no behaviour
of its own.
"""
