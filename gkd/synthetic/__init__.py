"""Problems that are made from a seed, and the small vocabulary that they are written in.

In: sizes and a seed. Out: problems with their solutions, the same on every machine, and the
sentencepiece model of their words.
"""
