"""Small files and folders that are whole or absent: atomic writes, and JSON read within bounds.

In: paths and contents. Out: files under their final names, or a one-line error that leaves what was
there before.
"""
