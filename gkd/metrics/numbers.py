"""Parses numbers as people, data sets and LaTeX write them, exactly and as a whole or not at all.

Understands signs (`-5`, `−5`, `–5`, `-$5`, `$-5`, `negative 5`), thousands (`1,234.50`, `1{,}234`,
`1 234` with any space, `1'234`, `1.234.567`), decimal commas (`3,5`; a comma before exactly three
digits separates thousands, but not in `0,125`), fractions and mixed numbers (`3/4`, `2 1/2`, `5½`,
`2\\frac{1}{2}`), exponents (`1.5e6`, `1.5 × 10^6`, `10⁶`), `1.5 million`, `5k`, `$3bn`, and an
amount in parentheses (`($5)` is −5, as in accounts). Units, currencies and percent signs are
dropped and never converted: `50%` is 50, `50 cents` too, `5:00` is 5. Not a number: a time or ratio
(`5:30`), a date (`3/4/2024`), a range or an unsolved expression (`3-5`, `3 + 4`), a root or
multiple of π, several numbers in one box, a number inside a word (`CO2`).
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAXIMUM_CHARACTERS = 100  # of one number
MAXIMUM_EXPONENT = 30

_THIN = "\u2009"  # replaces all spaces but the plain one: it groups digits
_DASHES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"  # not the em dash, which is punctuation
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
SIGNS = {
    **{ord(dash): "-" for dash in _DASHES},
    **{ord(times): "*" for times in "×✕✖⨯∗⋅∙·"},
    **{ord(slash): "/" for slash in "÷⁄∕"},
}
_CHARACTERS = {
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},  # full-width forms
    **SIGNS,
    **{ord(space): _THIN for space in _SPACES},
    **dict.fromkeys(map(ord, _INVISIBLE)),
    ord("’"): "'", ord("٫"): ".", ord("٬"): ",",
}  # fmt: skip
_THOUSANDS = re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:[{_THIN}{_SPACES}]\d{{3}})+(?!\d)")
_VULGAR = re.compile("(\\d?)[ \u2009]?([¼-¾⅐-⅞↉])")
_SLASHED = re.compile("(\\d?)[ \u2009]?([⁰¹²³⁴-⁹]+)/([₀-₉]+)")
_SUPERSCRIPT = re.compile("([0-9)])([⁺⁻]?[⁰¹²³⁴-⁹]+)")

_LATEX = (
    (re.compile(r"(?:\\text|\\mathrm)?\{([,.])\}"), r"\1"),  # 9{,}500
    (re.compile(r",\\!"), ","),  # 9,\!500
    (re.compile(r"(\d)(?:\\[,;:! ]|~)(?=\d{3})"), rf"\1{_THIN}"),
    (re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\([$%&#])"), r"\1"),
    (re.compile(r"\\(?:text)?(?:sterling|pounds)(?![A-Za-z])"), "£"),
    (re.compile(r"\\(?:text)?euro(?:\{\})?(?![A-Za-z])"), "€"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:pm|mp)(?![A-Za-z])"), "±"),
    (re.compile(r"\\(?:approx|sim|simeq)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}"),
     r" \1 "),
    (re.compile(r"\\(?:mathrm|mathbf|bf|rm)(?![A-Za-z])"), ""),
    (re.compile(
        r"(\d)?\s*\\[cdt]?frac\s*(?:\{\s*([-+]?[\d.,]+)\s*\}|(\d))"
        r"\s*(?:\{\s*(-?)([\d.]+)\s*\}|(\d))"),
     lambda m: f"{m[1] + ' ' if m[1] else ''}{m[4] or ''}{m[2] or m[3]}/{m[5] or m[6]}"),
    (re.compile(r"\^\s*\{\s*([^{}]*?)\s*\}"), r"^\1"),
    (re.compile(r"\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°"), " degrees "),
    (re.compile(r"([^\d)\s^])\s*\^\s*-?\d+"), r"\1"),  # m^2
)  # fmt: skip

_CURRENCY = (
    r"(?:(?:US|AU|CA|NZ|HK|[ACSR])?[$€£¥₹₩₽₺₫₱฿₪₦¢]"
    r"|\b(?:USD|EUR|GBP|CHF|INR|JPY|CNY|RMB|Rs\.?)(?![a-z]))"
)
_SEPARATED = rf"\d+(?:[.,'_{_THIN}]\d+)*"
_SPACED = r"[1-9]\d{0,2}(?: \d{3})+(?![\d/])(?:[.,]\d+)?"
_SCALES = {
    "hundred": 2, "thousand": 3, "tausend": 3, "million": 6, "millionen": 6, "milliarde": 9,
    "milliarden": 9, "billion": 9, "trillion": 12, "k": 3, "m": 6, "mn": 6, "mio": 6, "b": 9,
    "bn": 9,
}  # fmt: skip
_SCALE_WORDS = r"hundred|thousand|tausend|million(?:en)?|milliarden?|billion|trillion"


def _pattern(sign: str, spaced: str) -> re.Pattern[str]:
    """Builds the pattern of texts that start like a number; `_value` evaluates its matches."""
    return re.compile(
        rf"(?P<open>\()?(?P<sign>{sign}|\bnegative )?"
        rf"(?:(?P<currency>{_CURRENCY}) ?(?P<inner>[-+])? ?|(?<![A-Za-z\d_^])(?<!\d[.,']))"
        rf"(?P<core>{spaced}|{_SEPARATED}|\.\d+)"
        r"(?:(?P<hour>:00)|(?P<colon>:\d+))?(?P<seconds>:\d+)?"
        r"(?:[eE](?P<e>[-+]?\d+)(?!\w))?"
        r"(?:\^(?P<power>-?\d+))?"
        rf"(?: ?(?:\*|x) ?10 ?\^ ?\(?(?P<ten>[-+]?\d+)\)?)?"
        rf"(?:(?P<numerator>[ {_THIN}]\d+)? ?/ ?\$?(?P<denominator>\d+(?:\.\d+)?)(?![.,]?\d)"
        r"(?P<date> ?/ ?\d+)?)?"
        rf"(?:[ {_THIN}-]?(?P<scale>{_SCALE_WORDS})s?(?![^\W\d_])"
        r"|(?P<letter>k|mn?|bn?|mio)(?!\w))?"
        rf"(?P<close> ?{_CURRENCY}? ?\))?",
        re.IGNORECASE,
    )


# Plain spaces group digits if the whole answer is a number. In running text, where "3 200 g bags"
# are bags of 200 g, they do so only at the end, before a zero or with a currency, and a minus apart
# from its number is a dash ("districts 1 - 3"), unless it follows `=` or `is`.
_STATED = _pattern(r"(?<![\w)%\]])[-+] ?", _SPACED)
_PROSE = _pattern(
    r"(?:(?<![\w)%\]])[-+](?! )|(?:(?<==)|(?<== )|(?<=\bis )|(?<=\bwas ))[-+] )",
    rf"(?<!\d )(?:(?<=[$€£¥₹])|(?=[\d ]+ 0)|(?=[\d ]+(?:[.,]\d+)?(?:[.!?]?\s*$| ?[$€£¥₹]|"
    rf" (?:dollars?|euros?|pounds?|people|Euro|Dollar)\b))){_SPACED}",
)
_GOES_ON = re.compile(
    r" ?[-+*/^=<>] ?[-+(]?(?:" + _CURRENCY + r")? ?[-(]?\.?\d|\s*(?:√|π|\\sqrt|\\pi)"
)
_CHAIN = re.compile(r"(?:[\d.,'+\-*/()%^= ]|x(?= ?\d)|" + _CURRENCY + ")*")
_SENTENCE_END = re.compile(r"[.,;:!?]\s")
_LATER = re.compile(r"[.!?]\s|\n")  # what comes after the sentence of an answer
_LEAD = re.compile(
    r"[\s*_`\"'“”:=≈>]*(?:\$(?=[\\$])\$?|\\[(\[]\s*)?"
    r"(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*|[A-Za-z]\w{0,20}\s*=\s*"
    r"|(?:about|approximately|approx\.?|roughly|exactly|only|around|nearly|ungefähr|etwa|genau)\s+"
    r"|(?P<minus>minus\s+)|[\s*_`\"'“”:=≈]+)*",
    re.IGNORECASE,
)
_BOX_OR_BRACE = re.compile(r"\\f?boxed ?\{|\\fbox ?\{|[{}]")
_HEADING = re.compile(r"[\s*]*\(?\d+[.):]\**\s+\**[^\W\d_]")  # "1. Costs", "**2) Total**"
_LONGEST = 300  # greatest number of characters that are parsed after a marker
_UNSOLVED = re.compile(r"[√π±]|\\[A-Za-z]+")
ANSWER_IS = re.compile(
    r"\b(?:answer\**\s*(?:(?:is|are|was|must be|should be|would be|will be)\b"
    r"(?:\s+(?:therefore|thus|then|clearly|probably|likely|most likely))?\s*:?|[:=])"
    r"|(?:die|unsere)\s+(?:endgültige\s+|richtige\s+|korrekte\s+)?antwort\s+(?:ist|lautet)\b\s*:?"
    r"|antwort\s*:)|(?:答案|答え|정답)(?:是|为|は|은|:)\s*:?",
    re.IGNORECASE,
)


def normalised(text: str) -> str:
    """Rewrites signs, spaces and LaTeX in the plain forms that numbers are parsed from.

    Args:
      text: any text.

    Returns:
      The rewritten text.

    >>> normalised("2\\\\frac{1}{2} × 10⁶")
    '2 1/2 * 10^6'
    """
    text = text.translate(_CHARACTERS)
    text = _VULGAR.sub(lambda m: m[1] + (" " if m[1] else "") + _vulgar(m[2]), text)
    text = _SLASHED.sub(lambda m: f"{m[1]} {_plain(m[2])}/{_plain(m[3])}", text)
    text = _SUPERSCRIPT.sub(lambda m: m[1] + "^" + _plain(m[2]), text)
    if not text.isascii():
        text = re.sub(r"\d", lambda m: str(int(m[0])), text)  # digits of every script
    text = text.translate(SIGNS)  # the superscript minus
    if "\\" in text or "{" in text or "^" in text or "~" in text or "°" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return re.sub(r"[ \t]+", " ", text)


def with_commas(text: str) -> str:
    """Replaces thin and no-break spaces between thousands by commas, keeping the length.

    Args:
      text: any text.
    """
    return _THOUSANDS.sub(lambda m: re.sub(r"\D", ",", m.group()), text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _vulgar(character: str) -> str:
    return _plain(character).replace("⁄", "/")


def boxed(text: str) -> str | None:
    """Returns the content of the last closed `\\boxed{…}`, or None.

    Args:
      text: any text.
    """
    opened, content, latest = [], None, -1
    for match in _BOX_OR_BRACE.finditer(text):
        if match.group() != "}":
            opened.append(match)
        elif opened:
            start = opened.pop()
            if start.group() != "{" and start.end() > latest:
                content, latest = text[start.end() : match.start()], start.end()
    return content


def read_number(text: str) -> Fraction | None:
    """Parses a text that is one number, with its sign, currency and unit.

    Args:
      text: the number, at most 100 characters; words around it are allowed.

    Returns:
      The value, or None if the text has no number, several numbers, or one that cannot be parsed as
      a whole.

    >>> read_number("-$1,234.50"), read_number("2 1/2 cups"), read_number("3, 4")
    (Fraction(-2469, 2), Fraction(5, 2), None)
    """
    text = normalised(text).strip()
    if _UNSOLVED.search(text):
        return None
    begins, value = _stated(text)
    if begins:
        return value if _only_number(text) else None
    matches = list(_STATED.finditer(text.rpartition("=")[2]))
    return _value(matches[0]) if len(matches) == 1 else None


def _only_number(text: str) -> bool:
    """True if no second number follows the first, apart from sides of an equation."""
    return len(list(_STATED.finditer(text.rpartition("=")[2]))) == 1


def stated_number(text: str) -> Fraction | None:
    """Extracts the number that a solution states as its answer, else its last number.

    In order of priority: the number after `####`, if it is one; the last `\\boxed{N}`; the last
    `the answer is N`; the first of several numbers after `####`; the last number of the text. The
    text before `</think>` is left out, and numbers of headings (`#### 1. Costs`) are no answers.

    Args:
      text: a solution.

    Returns:
      The exact value; None if the text has no number or states something else, e.g. a range.

    >>> stated_number("8 / 2 = 4 apples, so 12 are left. #### 12")
    Fraction(12, 1)
    """
    text = text.rpartition("</think>")[2]
    box = boxed(text)
    text = normalised(text)
    answers, headings = _marked(text)
    if len(set(answers)) == 1:
        return answers[0]
    if box is not None:
        return read_number(box)
    begins, value = _after_answer_is(text)
    if begins:
        return value
    if answers or len(headings) == 1:
        return (answers or headings)[0]
    matches = list(_PROSE.finditer(text))
    if not matches or _GOES_ON.match(text, matches[-1].end()):
        return None
    return _value(matches[-1], parentheses=False)


def _marked(text: str) -> tuple[list[Fraction | None], list[Fraction | None]]:
    """The numbers after every `####`: answers, and those that number a heading."""
    answers, headings = [], []
    for tail in text.split("####")[1:]:
        begins, value = _stated(tail[:_LONGEST])
        if begins:
            (headings if _HEADING.match(tail) else answers).append(value)
    return answers, headings


def _after_answer_is(text: str) -> tuple[bool, Fraction | None]:
    """The number after the last `the answer is`, as `_stated`."""
    for match in reversed(list(ANSWER_IS.finditer(text))):
        sentence = _LATER.split(text[match.end() :], maxsplit=1)[0]
        if "=" in sentence:  # "the answer is 15 gallons * 8 = 120" ends in its answer
            break
        begins, value = _stated(text[match.end() : match.end() + _LONGEST])
        if begins:
            return begins, value
    return False, None


def _stated(text: str) -> tuple[bool, Fraction | None]:
    """Parses the number or equation at the start of a text: (there is one, its value or None)."""
    lead = _LEAD.match(text)
    match = _STATED.match(text, lead.end())
    if match is None:
        return text.startswith("±", lead.end()), None
    value = _value(match)
    if lead["minus"] and value is not None:
        value = -value
    if not _GOES_ON.match(text, match.end()):
        return True, value
    chain = _CHAIN.match(text, match.start()).group()
    *_, last = _SENTENCE_END.split(chain, maxsplit=1)[0].split("=")
    side = _STATED.fullmatch(last.strip())
    return True, _value(side) if "=" in chain and side else None


def _value(match: re.Match[str], parentheses: bool = True) -> Fraction | None:
    """Evaluates a match of `_pattern`; None if it is no number after all."""
    if (
        match["colon"]
        or match["seconds"]
        or match["date"]
        or len(match.group()) > MAXIMUM_CHARACTERS
    ):
        return None
    value = _core(match["core"])
    if value is None:
        return None
    if match["denominator"]:
        numerator, denominator = match["numerator"], Fraction(match["denominator"])
        if not denominator or (numerator and not Fraction(numerator.strip()) < denominator):
            return None
        value = (
            value + Fraction(numerator.strip()) / denominator if numerator else value / denominator
        )
    for name, base in (("e", 10), ("ten", 10), ("power", value)):
        if match[name]:
            exponent = int(match[name])
            if abs(exponent) > MAXIMUM_EXPONENT or (not base and exponent < 0):
                return None
            value = (
                Fraction(base) ** exponent if name == "power" else value * Fraction(10) ** exponent
            )
    letter = (match["letter"] or "").lower()
    if match["scale"] or letter == "k" or (letter and match["currency"]):
        value *= 10 ** _SCALES[(match["scale"] or letter).lower()]
    account = match["open"] and match["close"] and match["currency"] and parentheses
    signed = (match["sign"] or "+").strip() != "+" or match["inner"] == "-"
    return -value if signed or account else value


def _core(text: str) -> Fraction | None:
    """Parses digits with separators; None if these separate neither thousands nor decimals."""
    text = text.replace(_THIN, " ")
    for separator in (",", " ", "'", "_"):
        decimal = r"\." if separator == "," else "[.,]"
        if re.fullmatch(rf"[1-9]\d{{0,2}}(?:{separator}\d{{3}})+(?:{decimal}\d+)?", text):
            return Fraction(text.replace(separator, "").replace(",", "."))
    if re.fullmatch(r"[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?", text):  # India's 12,34,567
        return Fraction(text.replace(",", ""))
    if re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?|[1-9]\d{0,2}(?:\.\d{3})+,\d+", text):
        return Fraction(text.replace(".", "").replace(",", "."))
    if re.fullmatch(r"\d*[.,]\d+|\d+", text):
        return Fraction(text.replace(",", "."))
    return None
