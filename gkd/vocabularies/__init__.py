"""Vocabularies: sentencepiece, Hugging Face tokenizers, bytes, and the small arithmetic one.

In: tokenizer files of a checkpoint, or their path. Out: seqio vocabularies, their fingerprints and
differences, and the white space that each can represent.
"""
