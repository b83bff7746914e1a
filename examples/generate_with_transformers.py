"""Generates an output with a converted student in transformers, without gkd.

    python examples/generate_with_transformers.py FOLDER "text of the input"

FOLDER is what `python -m gkd convert` wrote. Needs torch, transformers and sentencepiece.
"""

import sys

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def main(folder: str, text: str) -> str:
    """Returns the greedy output of the model in a folder for an input."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return tokenizer.decode(output[0], skip_special_tokens=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
