"""The quickstart: a teacher, an SFT-initialised student, two distillation runs, and their table.

In: a directory and a seed. Out: four run directories, a table, a figure and a JSON file.
"""
