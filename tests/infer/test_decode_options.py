"""Settings of decoding that do not fit together."""

import pytest

from gkd.infer.decode_options import Decoding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0: use 1 or more"),
        ({"temperature": float("inf")}, "temperature is inf: use 0"),
        ({"top_p": 0.0}, "top_p is 0.0: use a probability"),
        ({"length_penalty": 0.6}, "length_penalty belongs to a beam search"),
        ({"samples": 2}, "2 greedy samples are all the same"),
        ({"top_k": 5}, "top_k and top_p belong to sampling"),
        ({"beams": 4, "temperature": 1.0}, "set one or the other"),
        ({"beams": 2, "samples": 3}, "at most 2 completions per input"),
        ({"beams": 2, "length_penalty": -0.1}, "length_penalty is -0.1: use 0"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)


def test_the_length_penalty_of_a_beam_search_is_t5s():
    assert Decoding(beams=4).penalty == 0.6
    assert Decoding(beams=4, length_penalty=0.0).penalty == 0.0
    assert Decoding().penalty is None
