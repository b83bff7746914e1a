"""Metrics and reward functions: numbers for generated texts.

In: predictions and references as texts. Out: dictionaries of percentages, or one reward per text;
with them the calculator, the reading of numbers, and the tokenizers of BLEU and ROUGE.
"""
