"""Decoding in one compiled loop: sampling, and beam search.

In: a model's functions, encoded prompts and a PRNG key. Out: token ids through the end of sequence,
0 after it, and their log-probabilities. Pure functions of arrays.
"""
