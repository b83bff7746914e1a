"""Options and stated answers of generated texts, solved by hand; metric and reward agree."""

import pytest

from gkd.metrics import metrics, reward_functions
from gkd.metrics.answers import chosen_letter, stated_answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # After words, with markup, in a box.
        ("Answer: B", "B"), ("ANSWER: B", "B"), ("**Answer:** B", "B"), ("**Answer**: (B)", "B"),
        ("Answer: **B**", "B"), ("Final answer: B.", "B"), ("answer = B", "B"), ("Answer B", "B"),
        ("The correct answer is (B)", "B"), ("The correct option is B", "B"), ("#### B", "B"),
        ("Correct option: B", "B"), ("So the best choice is D.", "D"), ("Option B", "B"),
        ("The answer is option (B).", "B"), ("the answer must be B", "B"), ("the answer is a", "A"),
        ("I think the answer is B", "B"), ("Die richtige Antwort ist B.", "B"), ("答案是B", "B"),
        ("答案：Ｂ", "B"), ("（B）", "B"), ("**B**", "B"), ("**(B)**", "B"),
        ("*B*", "B"), ("_B_", "B"), ("***B***", "B"), ("The answer is *(b)*.", "B"),
        ("\\boxed{\\ B}", "B"), ("The answer is A* search", None), ("`B`", "B"),
        ("<b>B</b>", "B"), ("“B”", "B"), ("[B]", "B"), ("{B}", "B"), ("$B$", "B"), ("- B", "B"),
        ("\\boxed{B}", "B"), ("\\boxed{\\text{B}}", "B"), ("$\\boxed{\\textbf{(B)}}$", "B"),
        ("\\boxed{B. Both}", "B"), ("It is C, \\(\\boxed{B}\\)", "B"),
        ("Ans: B", "B"), ("I would choose (B).", "B"), ("My choice is B", "B"),
        ("Both hold:\nso it is\n(B)", "B"), ("Answer:\nB", "B"), ("B.)", "B"),
        # With words after it.
        ("B Both", "B"), ("B (Both)", "B"), ("B or C", None), ("B Both A and C are right", "B"),
        ("C major", None), ("A Dog", None), ("I Robot", None), ("A (small) dog", None),
        ("(B) Both", "B"), ("B: Both", "B"), ("B - Both", "B"), ("B\nbecause", "B"),
        ("B is correct", "B"), ("A is the right answer.", "A"), ("Option B is correct", "B"),
        ("B, because it is", "B"), ("B, I think", "B"), ("The answer is B because A is wrong", "B"),
        ("The answer is (B) and not (C).", "B"), ("D. All of the above", "D"),
        ("A cat. The answer is B", "B"),
        ("The answer is B. Why: the answer is derived from C", "B"),
        # An article, a pronoun, a part of a word, several, none.
        ("A dog", None), ("a dog", None), ("the answer is A dog", None), ("Answer: A dog", None),
        ("\\boxed{A dog}", None), ("I think it is B", None), ("I'm", None), ("A.I. is", None),
        ("E.g. this", None), ("U.S. law", None), ("X-ray", None), ("C++", None), ("A1", None),
        ("A or B", None), ("A and B", None), ("A, B", None), ("A/B", None), ("(A) or (B)", None),
        ("(A), (B)", None), ("Both A and B", None), ("(A) is wrong", None), ("A is wrong", None),
        ("The answer is not A", None), ("The answer is unclear.", None),
    ],
)  # fmt: skip
def test_chosen_letter(text, letter):
    assert chosen_letter(text) == letter
    reward = reward_functions.multiple_choice([""] * 2, [text] * 2, ["B", "(A)"])
    assert reward == [float(letter == "B"), float(letter == "A")]
    accuracy = metrics.multiple_choice(["B", "(A)"], [text] * 2)["accuracy"]
    assert accuracy == 50 * sum(reward)


def test_the_shared_options(shared):
    path = shared / "cases/options.tsv"
    if not path.exists():
        pytest.skip(f"needs {path}")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) >= 7
    for text, option in rows:
        assert chosen_letter(text) == (None if option == "none" else option)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the answer is **False**.", "false"), ("\\boxed{False}", "false"), ("Answer: yes", "yes"),
        ('the answer is "yes".', "yes"), ("the answer is $\\boxed{\\text{No}}$", "no"),
        ("**Answer:** no", "no"), ("(B)", "(b)"), ("B", "(b)"), ("The answer is (B) Both", "(b)"),
        (") )", ") )"), ("a b c", "a b c"), ("don't", "don't"), ("不是。", "不是"),
        ("cafe\u0301", "caf\xe9"),
    ],
)  # fmt: skip
def test_stated_answer(text, answer):
    assert stated_answer(text) == answer
    assert reward_functions.answer_match([""] * 2, [text] * 2, [answer, "else"]) == [1.0, 0.0]
    assert metrics.answer_match([answer, "else"], [text] * 2) == {"exact_match": 50.0}
