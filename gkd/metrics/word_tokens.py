"""Chooses sacreBLEU's tokenizers by script, for BLEU, ROUGE and distinct-n.

A tokenizer that separates words by spaces takes a Chinese sentence as one word, so that BLEU is 0.0
between equal texts. Without a setting the tokenizer follows the references' script: `zh` for
Chinese, `char` for scripts without spaces between words (Japanese, Thai, Lao, Khmer, Burmese,
Tibetan) and for Korean, else `13a`. These need no further package, so that the choice is the same
on every machine.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import sacrebleu

from gkd.errors import InvalidValue

_LOG = logging.getLogger(__name__)
DEFAULT = "13a"
_WITH_PACKAGE = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
_SHARE = 0.2  # smallest share of the letters: fewer are names in a text of another script

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\uac00-\ud7af\u1100-\u11ff\u3130-\u318f]")
_UNSPACED = re.compile("[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]")
_OTHER = re.compile("[^\\W\\d_\u0000-\u024f\u1e00-\u1eff]")  # letters that are not Latin

_used: contextvars.ContextVar[dict[str, list[str]] | None] = contextvars.ContextVar(
    "metric_signatures", default=None
)


def check_tokenizer(name: str | None) -> None:
    """Refuses a tokenizer that sacreBLEU does not have or that cannot run here.

    Args:
      name: sacreBLEU's name of the tokenizer, or None for the choice by script.

    Raises:
      ValueError: the name is unknown, or its package or model is missing.
    """
    if name is not None:
        tokenizer(name)


@functools.cache
def tokenizer(name: str) -> Callable[[str], str]:
    """Builds a tokenizer of sacreBLEU.

    Args:
      name: sacreBLEU's name of the tokenizer.

    Returns:
      A function of a text to its words, joined by spaces.

    Raises:
      ValueError: the name is unknown, or its package or model is missing.
    """
    known = sorted(sacrebleu.BLEU.TOKENIZERS)
    if name not in known:
        raise InvalidValue(f"TOKENIZE is {name!r}: choose one of {', '.join(known)}, or None")
    try:
        return sacrebleu.BLEU(tokenize=name).tokenizer
    except (RuntimeError, ImportError, OSError, AssertionError) as error:
        need = "a model that sacreBLEU downloads into ~/.sacrebleu/models: " + str(error)[:80]
        if name in _WITH_PACKAGE:
            need = f"a package: pip install '{_WITH_PACKAGE[name]}'"
        raise InvalidValue(
            f"TOKENIZE is {name!r}, which needs {need}; or leave it at None: chosen by script"
        ) from error


def by_script(texts: Sequence[str]) -> str:
    """Chooses the tokenizer for the script of texts.

    Args:
      texts: references, never the outputs of a model: the choice must not depend on the model.

    Returns:
      sacreBLEU's name of the tokenizer.

    >>> by_script(["我喜欢猫。"]), by_script(["猫が好きです。"]), by_script(["Катя спит."])
    ('zh', 'char', '13a')
    """
    text = "".join(text for text in texts if not text.isascii())
    counts = {
        name: len(pattern.findall(text))
        for name, pattern in (
            ("han", _HAN),
            ("kana", _KANA),
            ("char", _HANGUL),
            ("none", _UNSPACED),
        )
    }
    if not any(counts.values()) or sum(counts.values()) < _SHARE * _letters(texts):
        return DEFAULT
    if counts["kana"] > (counts["han"] + counts["kana"]) / 10:
        return "char"
    return "zh" if counts["han"] >= max(counts.values()) else "char"


def rouge_tokenizer(text: str, name: str | None) -> str | None:
    """Chooses the tokenizer for ROUGE with one reference.

    rouge-score's own tokenizer keeps ASCII letters and digits only. It serves Latin script (and
    `13a`, its counterpart); other alphabets get `intl`.

    Args:
      text: text of the reference.
      name: the configured tokenizer, None for the choice by script.

    Returns:
      sacreBLEU's name of the tokenizer; None for rouge-score's own.
    """
    if name is not None:
        return None if name == DEFAULT else name
    chosen = by_script([text])
    if chosen != DEFAULT:
        return chosen
    alone = not re.search("[A-Za-z0-9]", text) and re.search(r"[^\W_]", text)  # ROUGE would be 0
    other = len(_OTHER.findall(text))
    if alone and not other:
        return "intl"
    return "intl" if other and other >= _SHARE * _letters([text]) else None


def _letters(texts: Sequence[str]) -> int:
    return sum(character.isalpha() for text in texts for character in text)


def words(text: str, name: str) -> list[str]:
    """Splits a text into words in lower case, without punctuation, as ROUGE counts them.

    Args:
      text: any text.
      name: sacreBLEU's name of the tokenizer.

    >>> words("Der Hund, der bellt.", "intl")
    ['der', 'hund', 'der', 'bellt']
    """
    tokens = tokenizer(name)(text.lower()).split()
    return [t for t in tokens if any(unicodedata.category(c)[0] in "LNMC" for c in t)]


def warn_where_blind(metric: str, name: str | None, texts: Sequence[str]) -> None:
    """Logs once per metric and tokenizer that the tokenizer finds no words in the texts' script.

    Args:
      metric: name of the metric.
      name: the configured tokenizer; None, the choice by script, never warns.
      texts: the references.
    """
    blind = name in (DEFAULT, "intl", "none") and by_script(texts) != DEFAULT
    if metric == "rouge" and name == DEFAULT:
        blind = any(rouge_tokenizer(text, None) is not None for text in texts)
    if blind:
        _warn_once(metric, name, texts[0][:40])


@functools.cache
def _warn_once(metric: str, name: str, example: str) -> None:
    _LOG.warning(
        "%s with TOKENIZE=%r finds no words in the references' script (%r): its values mean "
        "little; leave TOKENIZE at None, or use 'char', 'zh', 'ja-mecab', 'ko-mecab', 'flores200'",
        metric, name, example,
    )  # fmt: skip


def note_signature(metric: str, signature: str) -> None:
    """Records the signature of a computed metric for an enclosing `collected_signatures`.

    Args:
      metric: name of the metric.
      signature: description of its computation, with versions.
    """
    used = _used.get()
    if used is not None and signature not in used.setdefault(metric, []):
        used[metric].append(signature)


@contextlib.contextmanager
def collected_signatures() -> Iterator[dict[str, list[str]]]:
    """Collects the signatures of all metrics that are computed inside.

    Yields:
      The different signatures by metric, filled while metrics are computed.
    """
    used: dict[str, list[str]] = {}
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)
