"""Host rewards against hand-counted n-grams and answers, sacreBLEU's function, and by tokens."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu

from gkd.metrics import reward_functions
from gkd.vocabularies import vocabularies


def test_exact_number_with_and_without_calculator():
    samples = ["7 + 4 = 12 #### 12", "it is 1000.00", "no idea", "#### 9", "3"]
    references = ["#### 11", "#### 1,000", "#### 9", "4 + 5 = 10 #### 9", "none"]
    prompts = ["12"] * 5  # a prompt's number is no answer
    assert reward_functions.exact_number(prompts, samples, references) == [0, 1, 0, 1, 0]
    corrected = reward_functions.exact_number(prompts, samples, references, calculator=True)
    assert corrected == [1, 1, 0, 1, 0]


def test_rouge_is_each_samples_f1_by_hand():
    references = ["The cat sat on the mat.", "red fish blue bird"]
    samples = ["the cats sitting on the mat", "red fish"]
    # Stems: the/cat/sit/on/the/mat against the/cat/sat/on/the/mat: 3 of 5 pairs, 5 of 6 words.
    # The second has precision 1 and recall 1/3 in pairs, 1/2 in words.
    got = reward_functions.rouge(["x", "y"], samples, references)
    assert got == pytest.approx([3 / 5, 1 / 2])
    assert reward_functions.rouge(["x", "y"], samples, references, name="rouge1") == pytest.approx(
        [5 / 6, 2 / 3]
    )
    # Unstemmed, "cats" is not "cat": the/on/the/mat are left, 4 of 6, in the same order.
    unstemmed = reward_functions.rouge(
        ["x"], samples[:1], references[:1], name="rouge_l", stemmer=False
    )
    assert unstemmed == pytest.approx([4 / 6])
    with pytest.raises(ValueError, match="rouge3.*choose one of rouge1, rouge2, rouge_l"):
        reward_functions.rouge(["x"], samples[:1], references[:1], name="rouge3")


def test_bleu_is_sentence_level_with_effective_order():
    references = ["the cat is on the mat", "a b c d e f", "Guten Tag", "x", "gar nicht"]
    samples = ["the cat is on", "a b c d e g", "Guten Tag", "", "gar wohl nicht"]
    got = reward_functions.bleu([""] * 5, samples, references)
    # Precisions 1 and the brevity penalty; 5/6, 4/5, 3/4, 2/3; two words that are right have no
    # 3-grams to be judged by; nothing. The last: 2 of 3 words, no pair of 2 and no triple of 1,
    # which smoothing counts as 1/2 and 1/4.
    wanted = [math.exp(1 - 6 / 4), (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, 1, 0]
    wanted.append((2 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 3))
    assert got == pytest.approx(wanted)
    assert max(got) <= 1
    of_the_package = sacrebleu.sentence_bleu(samples[4], [references[4]]).score / 100
    assert got[4] == pytest.approx(of_the_package)


BYTES = vocabularies.byte_level()


def tokens(*texts, length=12):
    """ByT5's ids, worked out here: byte b is id b + 3, then EOS, then 0."""
    array = np.zeros((len(texts), length), np.int32)
    for row, text in zip(array, texts, strict=True):
        ids = [byte + 3 for byte in text.encode()] + [1]
        row[: len(ids)] = ids[:length]
    return array


def test_rows_are_decoded_and_prompts_repeat_for_their_samples():
    seen = []

    def lengths(prompts, samples, references):
        seen.extend(zip(prompts, samples, references, strict=True))
        return [len(sample) / 8 for sample in samples]

    samples = tokens("a", "bb", "", "ünd")
    samples[1, 5] = 70  # after EOS nothing counts
    got = reward_functions.rewards_of_rows(
        lengths, BYTES, tokens("one", "two"), samples, tokens("1", "22 but this is cut"), 2
    )
    assert seen == [
        ("one", "a", "1"), ("one", "bb", "1"), ("two", "", "22 but this "),
        ("two", "ünd", "22 but this "),
    ]  # fmt: skip
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1 / 8, 2 / 8, 0, 3 / 8])


def test_the_rewards_of_two_hosts_are_those_of_one():
    prompts, references = tokens("p", "q", "r", "s"), tokens("3 red", "4", "7 green", "1")
    samples = tokens("3", "3 red", "4 x", "5", "7", "green", "1", "0")
    whole = reward_functions.rewards_of_rows(
        reward_functions.exact_number, BYTES, prompts, samples, references, 2
    )
    parts = [
        reward_functions.rewards_of_rows(
            reward_functions.exact_number, BYTES, prompts[i : i + 2], samples[2 * i : 2 * i + 4],
            references[i : i + 2], 2,
        )
        for i in (0, 2)
    ]  # fmt: skip
    np.testing.assert_array_equal(whole, [1, 1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "gave 1 rewards for 2 samples"),
        ([0.5, math.nan], "gave the reward nan"),
        ([0.5, -1e39], "gave the reward -1e[+]39"),
    ],
)
def test_a_reward_that_is_not_one_finite_number_a_sample_is_refused(values, message):
    def mine(prompts, samples, references):
        return values

    with pytest.raises(ValueError, match=f"^mine {message}"):
        reward_functions.rewards_of_rows(mine, BYTES, tokens("p"), tokens("a", "b"), tokens("r"), 2)


def test_rows_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="3 samples of 2 prompts with 2 references"):
        reward_functions.rewards_of_rows(
            reward_functions.bleu,
            BYTES,
            tokens("p", "q"),
            tokens("a", "b", "c"),
            tokens("r", "s"),
            2,
        )


def test_entailment_is_built_from_the_tasks_vocabulary():
    reward = reward_functions.entailment(entailment="yes", input_length=64)
    assert isinstance(reward, reward_functions.ModelReward)
    built = reward.build(BYTES)
    assert bytes(i - 3 for i in built.premise_ids) == b"premise: "
    assert bytes(i - 3 for i in built.hypothesis_ids) == b" hypothesis: "
    assert bytes(i - 3 for i in built.prompt_prefix_ids) == b"summarize: "
    assert (built.entailment_id, built.input_length) == (ord("y") + 3, 64)
    assert not built.hypothesis_first
    with pytest.raises(ValueError, match="entailment is ''"):
        reward_functions.entailment(entailment="").build(BYTES)


def test_entailments_tokens_are_sentencepieces_of_the_whole_text(shared):
    """At seams of white space; the ids were read off the vocabulary file."""
    vocabulary = vocabularies.sentencepiece(str(shared / "data/t5_vocab/spiece.model"), 100)
    built = reward_functions.entailment(input_length=32).build(vocabulary)
    assert built.entailment_id == 209  # ▁1
    assert built.prompt_prefix_ids == (21603, 10)  # ▁summarize :
    document, sample = "The dog ran off: 3 km, “fast”.", "A dog's run"
    encode = vocabulary.tokenizer.encode
    prompt = jnp.array([[*encode(f"summarize: {document}"), 1, 0]])
    samples = jnp.array([[*encode(sample), 1, 0, 0]])
    wanted = [*encode(f"premise: {document} hypothesis: {sample}"), 1]
    got = np.asarray(built.inputs(prompt, samples))[0]
    assert got[: len(wanted)].tolist() == wanted and not got[len(wanted) :].any()
    mnli = reward_functions.entailment(
        premise=" premise: ", hypothesis="mnli hypothesis: ", entailment="entailment",
        hypothesis_first=True, input_length=40,
    ).build(vocabulary)  # fmt: skip
    assert mnli.entailment_id == 3  # ▁, where the other answers begin with ▁neutral, ▁contradiction
    wanted = [*encode(f"mnli hypothesis: {sample} premise: {document}"), 1]
    assert np.asarray(mnli.inputs(prompt, samples))[0, : len(wanted)].tolist() == wanted
