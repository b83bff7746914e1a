"""Rows of the data files that people have, whatever their format.

In: paths of JSON, CSV, TSV, Parquet and Arrow files, compressed or not. Out: rows with the name of
their place, and their fields as checked texts.
"""
