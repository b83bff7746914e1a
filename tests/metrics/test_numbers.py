"""Numbers in answers: every way of writing one, and what is no number, worked out by hand."""

import re
import time
from fractions import Fraction

import pytest

from gkd.metrics import metrics, reward_functions
from gkd.metrics.calculator import final_number
from gkd.metrics.numbers import boxed, read_number


def _check(text, value):
    assert final_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        # Signs, with and without a currency.
        ("-5", -5), ("–5", -5), ("−5", -5), ("\u20115", -5), ("－５", -5), ("- 5", -5), ("+5", 5),
        ("-$5", -5), ("$-5", -5), ("- $ 5", -5), ("−€5", -5), ("negative 5", -5), ("minus 5", -5),
        ("($5)", -5), ("($1,234.50)", "-1234.5"), ("(5)", 5), ("(-5)", -5), ("(-$5)", -5),
        # Thousands and decimals.
        ("1,234.50", "1234.5"), ("1 234", 1234), ("1\u2009234", 1234), ("1\u202f234", 1234),
        ("1\u00a0234\u00a0567", 1234567), ("12 345 678", 12345678), ("1 000.50", "1000.5"),
        ("1 234,56", "1234.56"), ("1'234", 1234), ("1’234", 1234), ("1_000", 1000),
        ("1.234,50", "1234.5"), ("1.234.567", 1234567), ("12,34,567", 1234567), ("3,5", "3.5"),
        ("0,125", "0.125"), ("0,75", "0.75"), ("3,1416", "3.1416"), ("€5,00", 5), (".5", "0.5"),
        ("-.5", "-0.5"), ("5.", 5), ("5.0", 5), ("1,234.50.", "1234.5"), ("1１２", 112),
        # Fractions and mixed numbers.
        ("3/4", "3/4"), ("-3/4", "-3/4"), ("3 / 4", "3/4"), ("3⁄4", "3/4"), ("½", "1/2"),
        ("2½", "5/2"), ("2 ½", "5/2"), ("2 1/2", "5/2"), ("-2 1/2", "-5/2"), ("12/3", 4),
        ("\\frac{1}{-2}", "-1/2"), ("1\\frac12", "3/2"), ("¹⁄₂", "1/2"), ("2 ³⁄₄", "11/4"),
        # LaTeX's commands end before a digit, digits of other scripts.
        ("1.5\\times10^{3}", 1500), ("6\\div2 = 3", 3), ("\\approx5", 5), ("\\pounds5", 5),
        ("\\euro 5", 5), ("٣٤", 34), ("١٬٢٣٤٫٥", "1234.5"), ("१२३", 123), ("𝟏𝟐", 12),
        # Exponents and scales.
        ("1.5e6", 1500000), ("1.5E-3", "0.0015"), ("1.5 × 10^6", 1500000), ("1.5·10⁻³", "0.0015"),
        ("10⁶", 1000000), ("5²", 25), ("-2^2", -4), ("$1.5 million", 1500000), ("2 thousand", 2000),
        ("5k", 5000), ("$5k", 5000), ("$3bn", 3 * 10**9), ("$2M", 2 * 10**6),
        ("3 Millionen", 3000000),
        # Units, which are dropped, and what may follow.
        ("50%", 50), ("-5%", -5), ("5 percent", 5), ("5 km", 5), ("5m", 5), ("5kg", 5), ("5€", 5),
        ("USD 5", 5), ("US$5", 5), ("Rs. 500", 500), ("5元", 5), ("90°", 90), ("18-year-old", 18),
        ("5 apples and 3 pears", 5), ("$1,800 and 3", 1800), ("5 (3 + 2 = 5)", 5), ("7:00 pm", 7),
        ("7. 5 * 3 = 15", 7), ("5 - that is 3 more", 5), ("4 #### 5", 4), ("**5**", 5), ('"5"', 5),
        # What may stand before, and equations.
        ("about 5", 5), ("≈ 5.2", "5.2"), ("x = 5", 5), ("\\(5\\)", 5), ("The answer is 5", 5),
        ("3 + 4 = 7", 7), ("2*(3+4) = 14", 14), ("5*3 = 5x3 = $15 in all", 15), ("3^2 = 9", 9),
        # LaTeX.
        ("$9{,}500", 9500), ("\\$9{,}500", 9500), ("9\\,500", 9500), ("9,\\!500", 9500),
        ("\\frac{3}{4}", "3/4"), ("-\\dfrac{3}{4}", "-3/4"), ("\\frac34", "3/4"),
        ("2\\frac{1}{2}", "5/2"), ("2\\frac12", "5/2"), ("1.5 \\times 10^{6}", 1500000),
        ("\\frac{-1}{2}", "-1/2"), ("\\frac{1.5}{3}", "1/2"), ("1\\text{,}234", 1234),
        ("\\mathbf 5", 5), ("\\mathbf{5}", 5), ("{5}", 5), ("3/1.5", 2), ("33 1/3%", "100/3"),
        ("10^{-2}", "0.01"), ("50\\%", 50), ("90^\\circ", 90), ("-\\$5", -5),
    ],
)  # fmt: skip
def test_one_number_after_the_marker_and_in_a_box(written, value):
    _check(f"#### {written}", value)
    if not re.search("and 3|####|that is 3|3 [+] 2", written):  # a box holds the answer alone
        _check(f"so with 3 of 8, \\boxed{{{written}}}. It is 9.", value)


@pytest.mark.parametrize(
    "written",
    [
        "5:30", "7:00:30", "3:4", "3/4/2024", "3-5", "3–5", "3 + 4", "2 * 7", "1/0", "5 3/2",
        "1,2,3",
        "1.2.3", "1,234,56", "1e999999999", "10^999999999", "2^-999999999", "0^-1", "5 √2",
        "±5", "\\pm5", "2\\pi", "3\\sqrt{2}", "9" * 101,
    ],
)  # fmt: skip
def test_a_stated_answer_that_is_no_number_is_none(written):
    # Not one of its parts, and not another number of the text.
    assert final_number(f"7 of 8 #### {written}") is None
    assert final_number(f"7 of 8, \\boxed{{{written}}}") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # A box with words; several numbers in one are no answer.
        ("\\boxed{5 \\text{ apples}}", 5), ("\\boxed{\\text{The answer is } 5}", 5),
        ("\\boxed{5\\text{ cm}^2}", 5), ("\\boxed{5 \\mathrm{cm}^{2}}", 5), ("\\fbox{5}", 5),
        ("\\boxed{3, 4}", None), ("\\boxed{(3, 4)}", None), ("\\boxed{\\sqrt{2}}", None),
        ("\\boxed{\\dfrac{\\pi}{2}}", None), ("3 \\boxed{\\text{yes}}", None),
        ("\\boxed{3} then \\boxed{4}", 4), ("\\boxed{12", 12), ("\\boxed{9} #### 8", 8),
        # What a text says its answer is, where no equation follows.
        ("The answer is 5, because 3 is less.", 5), ("Answer: 5 apples for 3 people", 5),
        ("the final answer is: **1,234**, not 7.", 1234), ("Die Antwort lautet 29, nicht 3.", 29),
        ("The answer is -5.", -5), ("答案是5。", 5),
        ("the answer is 15 gallons * 8 pints = 120 pints", 120),
        ("The answer is found with 3 and 4: 7", 7), ("The answer is:\n15 * 8 = 120", 120),
        ("The answer is **18**.\n\nCheck: 9 * 2 = 18 dollars a day, 7 days a week.", 18),
        ("The final answer is 18.\nVerification: 16 - 7 = 9 eggs, sold at $2.", 18),
        ("Answer: 18\n(where n = 3)", 18), ("The answer is 4. (n = 18)", 4),
        ("The answer is 4 * 2 = 8. The answer is 7.", 7),
        # Otherwise the last number.
        ("it is −3", -3), ("so she has −$1,200", -1200), ("from 5-3", 3), ("districts 1 - 3", 3),
        ("it was - 7 degrees", -7), ("N = - 51", -51), ("left (4 + 5 = 8)", 8), ("(costs $5)", 5),
        ("He has less ($5) now", 5),
        ("He ran 5 1/2 miles", "5.5"), ("The total is 1 000 people, all", 1000),
        ("The total is 12 500.", 12500), ("$12 500 in all", 12500), ("in 3 200 g bags", 200),
        ("16 21 24 118", 118), ("12 of H2O", 12), ("CO2", None), ("5 m^2", 5), ("at 5:30", None),
        ("#### none, 7", 7), ("#### Step 1: add #### 5", 5), ("共5个", 5),
    ],
)  # fmt: skip
def test_where_the_answer_is_found(text, value):
    _check(text, value)


def test_read_number_is_the_whole_text():
    assert read_number("-$1,234.50") == Fraction("-1234.5")
    assert read_number("it is 2 1/2 cups") == Fraction(5, 2)
    assert read_number("3, 4") is read_number("none") is read_number("\\sqrt{2}") is None
    assert boxed("\\boxed{a{b}c} \\boxed{d") == "a{b}c"
    assert boxed("{}") is None


def test_the_metric_and_the_reward_read_the_same():
    targets = ["#### -5", "#### 2.5", "#### 1000", "#### 3", "none"]
    predictions = ["#### –$5", "\\boxed{2\\frac{1}{2}}", "1 000.", "#### 3-5", "#### 1"]
    wanted = [1, 1, 1, 0, 0]
    assert reward_functions.exact_number([""] * 5, predictions, targets) == wanted
    assert metrics.final_answer(targets, predictions)["exact_match"] == 60


def test_the_shared_cases(shared):
    path = shared / "cases/answers.tsv"
    if not path.exists():
        pytest.skip(f"needs {path}")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) >= 7
    for text, value in rows:
        _check(text, 1500000 if "state which" in value else value)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 20000, "1 " * 10000, " " * 20000, "-" * 20000, "1/" * 10000, "{" * 20000,
        "\\boxed{" * 3000, "1," * 10000, "answer is " * 2000, "####" * 5000,
        "#### " + "1 000" * 5000, "\\frac{1}" * 3000, "1^" * 9000, "$" * 9000,
        "#### 1" + "+1" * 9000,        "x =" * 5000, "(" * 9000,
    ],
)  # fmt: skip
def test_no_text_takes_long(text):
    start = time.process_time()
    final_number(text, calculator=True)
    assert time.process_time() - start < 5  # milliseconds; quadratic searches took 20 s


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Numbers of headings.
        ("#### 1. Cost of the pens\n3 * 4 = 12\n#### 2. Total\n12 + 8 = 20\nThe answer is 20.", 20),
        ("#### 1) Find x\nx = 4\n#### 2) Find y\n\\boxed{20}", 20),
        ("#### **1. Cost**\n12\n#### **2. Total**\nIn all they pay 20 dollars.", 20),
        ("#### 1: Cost\nThe answer is 20.", 20),
        ("#### 1. Cost\n12\n#### 20", 20),
        ("#### 18. So she sells 18 eggs of 20.", 18),
        # Several numbers: a statement decides.
        ("#### 12\n#### 20\nThe answer is 20.", 20),
        ("#### 12\n#### 20", 12),
        ("#### 12\nThe answer is 20.", 12),
        # Reasoning is no answer.
        ("<think>\n#### 3 apples, \\boxed{4}\n</think>\n\nThe answer is 7.", 7),
        ("<think>#### 3</think>", None),
        ("<think>So it is 5", 5),
    ],
)
def test_headings_and_reasoning_state_no_answer(text, value):
    _check(text, value)
    assert final_number(text, calculator=True) == final_number(text)
