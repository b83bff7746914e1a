"""The verb `infer`: writes a model's completions, or scores given targets, for a file of inputs.

In: a checkpoint, and inputs as text, TSV, JSONL or a task's split. Out: a JSONL file with one line
per sample, in the order of the inputs; an interrupted job continues at the last whole window.
"""
