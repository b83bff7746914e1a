"""The verb `convert`: writes a checkpoint in another format.

In: a run directory, a Hugging Face directory or a T5X checkpoint. Out: a new folder in the format
asked for, with its tokenizer, whole or not at all.
"""
