"""Evaluates and corrects arithmetic in generated chains of thought, without eval, within bounds."""

from __future__ import annotations

import re
from fractions import Fraction

from gkd.metrics import numbers

MAXIMUM_CHARACTERS = 200
MAXIMUM_DIGITS = 15
MAXIMUM_DEPTH = 20

_NUMBER = r"(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+)"
_TOKEN = re.compile(rf"\s*(?:\$?\s*({_NUMBER})|([-+*/()%]))")
# "3 x 4", and "3 • 4" on one line: on the next it is a list's mark.
_TIMES = re.compile(r"(?<=[\d)%])(\s*[xX]|[ \t]*•)(?=\s*[\d($.])")
_EQUATION = re.compile(rf"=\s*\$?\s*(-?{_NUMBER})")
# A number that continues ("= 2*7 = 14", "= 1/2", "= 5%", "= 3,5") is not the whole right side.
_GOES_ON = re.compile(
    r"\s*(?:[-+*/^]\s*[\d($.]|%|\\|[{½¼¾]|(?:hundred|thousand|million|billion|trillion|k)\b)"
    r"|[.,:'’_eE]\d|\s\d{3}(?!\d)|\s\d+/\d|,\\!",
    re.IGNORECASE,
)
# An expression does not start inside a word or number ("mp3 + 4", "1{,}000 + 5").
_GLUED = re.compile(r"[A-Za-z\d_}^'’]$")
_EXPRESSION = re.compile(r"[\d.,+\-*/()%$\s]*$")
_SENTENCE_END = re.compile(r"[.,;:!?]\s")
# "15% of 20 + 4 = 7" is arithmetic in words: its tail is not the intended expression; nor is what
# follows a root or a LaTeX command that `_normal` does not translate.
_WORD_OPERATOR = re.compile(r"\b(?:of|plus|minus|times|by|than|from|to)\s*$", re.IGNORECASE)
_OPEN = re.compile(r"(?:\\(?:[A-Za-z]+|.)?|[√∛∜∑∏])\s*$")
# "100 - 15% = 85" takes the percentage of the number before it, which a calculator does not.
_PERCENT_OFF = re.compile(rf"[-+]\s*{_NUMBER}\s*%")
_OPERATORS = {"+", "-", "*", "/", "%"}
_LATEX = (
    (re.compile(r"\\\\"), ";"),  # a line ends
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\left\s*\("), "("),
    (re.compile(r"\\right\s*\)"), ")"),
    (re.compile(r"\\q?quad(?![A-Za-z])|\\[()\[\]]|(?<!\d)\\[,;: ]|\\[,;: ](?!\d{3})|&"), " "),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[cdt]?frac\s*\{([^{}\\]*)\}\s*\{([^{}\\]*)\}"), r"((\1)/(\2))"),
)


def _normal(text: str) -> str:
    """Replaces signs and LaTeX by their ASCII forms, each padded with spaces to its length."""
    text = numbers.with_commas(text)
    if "\\" in text:
        for pattern, form in _LATEX:
            text = pattern.sub(lambda m, form=form: m.expand(form).ljust(len(m.group())), text)
    return _TIMES.sub(lambda m: m[1][:-1] + "*", text.translate(numbers.SIGNS))


def calculate(expression: str) -> Fraction:
    """Evaluates an arithmetic expression exactly.

    The expression may have + - * / and parentheses, decimals, commas between thousands, `$` before
    a number, `%` after one (which divides it by 100), and the signs `x`, `×`, `÷` and `−`.

    Args:
      expression: at most 200 characters, numbers of at most 15 digits, depth at most 20.

    Returns:
      The value as a fraction.

    Raises:
      ValueError: the text is no such expression, is too large, or divides by zero.

    >>> calculate("$1,200 x 15% − 3 ÷ 4")
    Fraction(717, 4)
    """
    if len(expression) > MAXIMUM_CHARACTERS:
        raise ValueError(
            f"expression of {len(expression)} characters: the limit is {MAXIMUM_CHARACTERS}"
        )
    tokens = _tokens(_normal(expression))
    value, position = _sum(tokens, 0, 0)
    if position != len(tokens):
        raise ValueError(f"{expression!r}: unexpected {tokens[position]!r}")
    return value


def _tokens(expression: str) -> list[str]:
    tokens = []
    position = 0
    expression = expression.rstrip()
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"{expression!r} is not arithmetic at {expression[position:]!r}")
        number, sign = match.groups()
        if number is not None and sum(c.isdigit() for c in number) > MAXIMUM_DIGITS:
            raise ValueError(f"number {number[:20]}… has over {MAXIMUM_DIGITS} digits")
        tokens.append(number.replace(",", "") if number is not None else sign)
        position = match.end()
    return tokens


def _sum(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "+-":
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1, depth)
        value += sign * term
    return value, position


def _product(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "*/":
        divides = tokens[position] == "/"
        factor, position = _factor(tokens, position + 1, depth)
        if divides and factor == 0:
            raise ValueError("division by zero")
        value = value / factor if divides else value * factor
    return value, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAXIMUM_DEPTH:
        raise ValueError(f"nested deeper than {MAXIMUM_DEPTH}")
    if position >= len(tokens):
        raise ValueError("the expression ends too early")
    token = tokens[position]
    if token == "-":
        value, position = _factor(tokens, position + 1, depth + 1)
        return -value, position
    if token == "(":
        value, position = _sum(tokens, position + 1, depth + 1)
        if position >= len(tokens) or tokens[position] != ")":
            raise ValueError("a parenthesis is not closed")
        position += 1
    elif token[0].isdigit() or token[0] == ".":
        value, position = Fraction(token), position + 1
    else:
        raise ValueError(f"unexpected {token!r}")
    while position < len(tokens) and tokens[position] == "%":
        value, position = value / 100, position + 1
    return value, position


def _as_number(number: str) -> Fraction:
    """Parses a number of `_EQUATION`: commas between thousands, a point before decimals."""
    return Fraction(number.replace(",", ""))


def _as_text(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def _value_before(window: str) -> Fraction | None:
    """Evaluates the expression at the end of `window`; None if its beginning is not clear."""
    sentence = _SENTENCE_END.split(window)[-1]
    run = _EXPRESSION.search(sentence).group()
    before = sentence[: len(sentence) - len(run)]
    if len(run) == MAXIMUM_CHARACTERS or _WORD_OPERATOR.search(before) or _OPEN.search(before):
        return None
    glued = _GLUED.search(before) and not run[:1].isspace()
    tokens = list(_TOKEN.finditer(run))
    signs = [token.group(2) for token in tokens]  # None for a number
    if _PERCENT_OFF.search(run):
        return None
    for i, token in enumerate(tokens):
        # An expression after an operator or a number would be a tail: "y + 4 + 3" does not mean
        # 4 + 3, nor "12 1/2" 1/2. A parenthesis before it may belong to the prose: "(4 + 5 = 9)".
        starts = signs[i] in (None, "(") and (i == 0 or signs[i - 1] in ("(", ")"))
        if i == 0 and glued:
            continue
        if not starts or not _OPERATORS.intersection(signs[i + 1 :]):
            continue
        try:
            return calculate(run[token.start() :].strip())
        except ValueError:
            continue
    return None


def _agrees(number: str, value: Fraction) -> bool:
    """True if a number is the value, or the value rounded to the number's decimals."""
    decimals = len(number.partition(".")[2])
    error = abs(_as_number(number) - value)
    return error == 0 or (decimals > 0 and error * 2 * 10**decimals <= 1)


def apply_calculator(text: str) -> tuple[str, dict[Fraction, str]]:
    """Corrects the right side of each `expression = number` in a generated chain of thought.

    From left to right, the number after each `=` is compared with the exact value of the longest
    expression (with at least one operator) that ends before the `=`. A number that equals that
    value, or that value rounded to its decimals, stays; any other is replaced by the computed
    value, an integer or a decimal of at most six places. Nothing else in the text changes: a later
    expression that uses the wrong number still does. LaTeX's operators, fractions and spaces are
    understood. Text that is not clearly an equation between
    arithmetic and a number (a variable, a sign in front, `2*(3+4) = 2*7`, `100 - 15%`, words such
    as `of`) is not changed.

    Args:
      text: a generated solution.

    Returns:
      The corrected text, and for each number on a right side the value that the last equation with
      that right side computes.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021), whose calculator
    overrides tokens while sampling; this one corrects the finished text.

    >>> apply_calculator("3 * 4 = 13, so 13 / 3 = 4.33")
    ('3 * 4 = 12, so 13 / 3 = 4.33', {Fraction(13, 1): '12', Fraction(433, 100): '4.33'})
    """
    normal = _normal(text)
    pieces, copied = [], 0
    computed: dict[Fraction, str] = {}
    for match in _EQUATION.finditer(normal):
        number = match.group(1)
        if len(number) > 100 or _GOES_ON.match(normal, match.end()):
            continue
        window = normal[max(0, match.start() - MAXIMUM_CHARACTERS) : match.start()]
        value = _value_before(window)
        if value is None:
            continue
        right = number if _agrees(number, value) else _as_text(value)
        computed[_as_number(number)] = right
        if right != number:
            pieces += [text[copied : match.start(1)], right]
            copied = match.end()
    return "".join([*pieces, text[copied:]]), computed


def final_number(text: str, calculator: bool = False) -> Fraction | None:
    """Extracts the answer of a worked solution, see `numbers.stated_number`.

    With the calculator, an answer that repeats the right side of an equation becomes the value that
    the last equation with that right side computes (see `apply_calculator`); other answers stay.

    Args:
      text: a worked solution, generated or from the data set.
      calculator: correct the answer by the equations before it.

    Returns:
      The exact value, or None if the text states no number.

    >>> text = "3 * 4 = 13. The answer is 13."
    >>> final_number(text), final_number(text, calculator=True)
    (Fraction(13, 1), Fraction(12, 1))
    """
    answer = numbers.stated_number(text)
    if calculator and answer is not None:
        computed = apply_calculator(text)[1].get(answer)
        answer = answer if computed is None else _as_number(computed)
    return answer
