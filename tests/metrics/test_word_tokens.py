"""BLEU, ROUGE and diversity by script, against hand-counted n-grams and sacreBLEU's command."""

import subprocess
import sys

import pytest

from gkd.data import tasks
from gkd.metrics import metrics, reward_functions, sample_metrics, word_tokens
from gkd.vocabularies import vocabularies

SENTENCES = [
    "我喜欢猫。今天天气很好。", "猫が好きです。今日は天気がいい。", "ฉันชอบแมวมาก",
    "안녕하세요", "Катя спит на диване.",
    "Η γάτα κοιμάται εδώ", "बिल्ली सो रही है", "القطة نائمة على الأريكة", "The cat sleeps here",
    "Die Katze schläft jetzt", "我用iPhone打电话给你", "٣٤٥ ٦ ٧ ٨", "à é ö ü",
]  # fmt: skip


@pytest.mark.parametrize("text", SENTENCES)
def test_equal_texts_score_all_in_every_script(text):
    assert metrics.bleu([text], [text])["bleu"] == pytest.approx(100)
    assert set(metrics.rouge([text], [text]).values()) == {100.0}
    assert reward_functions.bleu([""], [text], [text]) == pytest.approx([1])
    assert reward_functions.rouge([""], [text], [text]) == [1]
    assert sample_metrics.self_bleu([[text, text]])["self_bleu"] == pytest.approx(100)
    assert sample_metrics.distinct([[text]])["distinct_2"] > 50
    assert metrics.rouge([text], ["0 0 0 0"])["rouge1"] == 0


def test_chinese_by_hand():
    # 4 of 5 characters, 2 of 4 pairs, 1 of 3 triples; none of 2 fours, smoothed to 1/2 of 1 of 2.
    target, prediction = "我喜欢猫。", "我喜欢狗。"
    wanted = (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** (1 / 4)
    assert metrics.bleu([target], [prediction])["bleu"] == pytest.approx(100 * wanted)
    assert reward_functions.bleu([""], [prediction], [target]) == pytest.approx([wanted])
    # ROUGE leaves punctuation out: 3 of 4 characters, 2 of 3 pairs.
    assert list(metrics.rouge([target], [prediction]).values()) == pytest.approx([75, 200 / 3, 75])
    assert reward_functions.rouge([""], [prediction], [target]) == pytest.approx([2 / 3])
    scores = sample_metrics.distinct([["好好好猫"]])
    assert (scores["distinct_1"], scores["distinct_2"]) == pytest.approx((50, 200 / 3))


def test_cyrillic_rouge_by_hand():
    scores = metrics.rouge(["Катя спит на диване."], ["катя спит на полу"])
    assert list(scores.values()) == pytest.approx([75, 200 / 3, 75])


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["我喜欢猫。"], "zh"), (["猫が好きです。"], "char"), (["ฉันชอบแมว"], "char"),
        (["안녕"], "char"),
        (["Катя спит."], "13a"), (["The Chinese word 猫 is a cat"], "13a"), (["5", ""], "13a"),
        (["我用iPhone打电话"], "zh"), (["yes"] * 2 + ["東京タワーへ行きます"], "char"), ([], "13a"),
    ],
)  # fmt: skip
def test_the_choice_by_script(texts, name):
    assert word_tokens.by_script(texts) == name


@pytest.mark.parametrize("name", ["13a", "intl", "zh", "char", "none"])
def test_a_tokenizer_is_sacrebleus_own(tmp_path, name):
    targets = ["Er sagt: „Zwei Katzen\u00a0– 我喜欢猫猫!“", "Es regnet heute sehr stark."]
    predictions = ["Er sagt: „Zwei Katzen\u00a0– 我喜欢猫狗!“", "Es regnet heute stark."]
    (tmp_path / "reference").write_text("\n".join(targets) + "\n", encoding="utf-8")
    (tmp_path / "system").write_text("\n".join(predictions) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "system", "-w", "6", "-b"]
    score = subprocess.run([*command, "-tok", name], capture_output=True, text=True, cwd=tmp_path)
    assert metrics.bleu(targets, predictions, name)["bleu"] == pytest.approx(
        float(score.stdout), abs=1e-6
    )


def test_a_missing_tokenizer_is_one_line_before_anything_runs():
    files, bytes_ = {"train": "x.jsonl"}, vocabularies.byte_level()
    with pytest.raises(ValueError, match="TOKENIZE is '13b': choose one of 13a, char") as error:
        tasks.local_text(files, vocabulary=bytes_, tokenize="13b")
    assert "\n" not in str(error.value)
    try:
        import MeCab  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"'ja-mecab', which needs .*sacrebleu\[ja\]") as error:
            tasks.translation(files=files, vocabulary=bytes_, tokenize="ja-mecab")
        assert "\n" not in str(error.value)


def test_the_tasks_tokenizer_reaches_its_metrics_and_its_signature():
    files, bytes_ = {"train": "x.jsonl"}, vocabularies.byte_level()
    target, prediction = "猫が好きです", "猫が好きでは"
    wanted = {"char": 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4), "none": 0.0}
    for name, score in wanted.items():
        task = tasks.translation(files=files, vocabulary=bytes_, tokenize=name)
        with word_tokens.collected_signatures() as used:
            assert task.evaluate([target], [prediction])["bleu"] == pytest.approx(score)
            task.evaluate_samples([target], [[prediction, target]])
        assert [f"tok:{name}" in used[metric][0] for metric in ("bleu", "self_bleu")] == [True] * 2
    task = tasks.summarization(files=files, vocabulary=bytes_)
    with word_tokens.collected_signatures() as used:
        assert task.evaluate([target, "a cat"], [target, "cats"])["rouge1"] == pytest.approx(
            100 * (1 + 2 / 3) / 2
        )
    assert [("char" in line, "Porter" in line) for line in used["rouge"]] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_a_metric_that_cannot_see_the_script_warns_once(caplog):
    word_tokens._warn_once.cache_clear()
    for _ in range(2):
        metrics.bleu(["我喜欢猫。"], ["我喜欢猫。"], "13a")
        metrics.rouge(["Катя спит."], ["Катя спит."], "13a")
    metrics.bleu(["Катя спит."], ["Катя спит."], "13a")
    metrics.bleu(["我喜欢猫。"], ["我喜欢猫。"])
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["bleu", "rouge"]
    assert all("TOKENIZE='13a' finds no words" in line for line in lines)
