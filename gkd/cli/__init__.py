"""The command line: arguments, gin files and overrides become one call of a verb.

In: `python -m gkd VERB …`. Out: the verb's exit code, and one line on stderr for every error that a
user can mend. A process of a job of several runs under a supervisor, which explains its end.
"""
