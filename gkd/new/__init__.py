"""The verb `new`: writes the run files of a distillation on one's own pairs of texts.

In: a data file with its columns, a teacher, a student. Out: a folder with a task file and one run
file per training, and the commands that follow.
"""
