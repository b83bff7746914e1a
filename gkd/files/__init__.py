"""Small files and folders: atomic writes, and JSON read within bounds.

In: paths and contents. Out: complete files under their final names, or a one-line error and the
former files.
"""
