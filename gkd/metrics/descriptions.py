"""Describes each number of a run's log in one sentence, as TensorBoard shows beside its chart."""

from __future__ import annotations

_DESCRIPTIONS = {
    "train": {
        "loss": "The loss that is minimised, as the mean since the previous row.",
        "divergence": "Divergence of the student from the teacher in nats per token.",
        "cross_entropy": "−log Q of the target tokens in nats per token.",
        "policy_gradient": "The policy-gradient term of the loss, before its weight 1 − ALPHA.",
        "reward": "Mean reward of the student's samples.",
        "auxiliary_loss": "The loss of the victims, its factors included.",
        "witness_divergence": "Divergence on the victims of mixed groups in nats per token.",
        "mixed_groups": "Share of prompts with correct and wrong samples.",
        "pass_rate": "Share of the student's samples that are correct.",
        "witness_cut": "Share of mixed groups whose witness did not fit the teacher's prompt.",
        "clipped_ratios": "Share of tokens whose gradient RATIO_CLIP removes.",
        "inner_divergence": "JSD of an inner layer's distribution from the last's, nats per token.",
        "signed_inner_divergence": "inner_divergence times the row's advantage, as in the loss.",
        "attention_divergence": "JSD of an inner layer's attention from the last's, nats.",
        "token_accuracy": "Share of target tokens that are the student's most probable ones.",
        "on_policy": "Share of rows that the student sampled itself.",
        "target_length": "Mean length of the target sequences in tokens, end of sequence included.",
        "cut_off": "Share of target sequences that are truncated: they have no end of sequence.",
        "repetition": "Share of a row's 4-grams that occur earlier in the row.",
        "sample_entropy": "−log Q of the sampled tokens: an estimate of the student's entropy.",
        "gradient_norm": "Global norm of the gradient before it is clipped.",
        "learning_rate": "Learning rate of the newest step.",
        "skipped": "Updates that were skipped so far, as loss or gradient were not finite.",
        "skipped_in_a_row": "Updates skipped without a good one between them: the current streak.",
        "student_share": "Share of sequences that the replay takes from the student's samples.",
        "remembered": "Samples that the replay's memory holds.",
    },
    "data": {
        "inputs_cut": "Rows whose input was longer than INPUT_LENGTH, per step.",
        "targets_cut": "Rows whose target was longer than TARGET_LENGTH, per step.",
        "teacher_inputs_cut": "Rows whose prompt for the teacher was cut at its length, per step.",
        "padding": "Share of the batches' positions that hold padding.",
        "empty_examples": "Rows without an input or a target, which weigh nothing, per step.",
    },
    "speed": {
        "step": "Step at which the speed was measured.",
        "seconds_per_step": "Median seconds of a step since the previous row.",
        "steps_per_second": "Steps per second without compilations, evaluations and saves.",
        "tokens_per_second": "Tokens of target sequences per second of training steps.",
        "goodput": "Share of the launch's time that was spent in training steps.",
        "mfu": "Model FLOPs utilisation: useful FLOPs per second over the chip's peak.",
        "memory_peak_bytes": "Peak use of the first device's memory.",
        "memory_limit_bytes": "Memory of the first device.",
        "host_memory_peak_bytes": "Peak use of the host's memory by the primary process.",
        "sampling_seconds": "Seconds that the student's sampling takes by itself.",
        "teacher_seconds": "Seconds that the teacher's forward pass takes by itself.",
        "update_seconds": "Seconds of a step beside sampling and the teacher's pass.",
    },
}
_EVALUATION = {
    "rouge1": "ROUGE-1: F1 of single words, in percent.",
    "rouge2": "ROUGE-2: F1 of pairs of words, in percent.",
    "rouge_l": "ROUGE-L: F1 of the longest common subsequence of words, in percent.",
    "bleu": "Corpus BLEU by sacreBLEU, in percent.",
    "exact_match": "Percentage of outputs whose answer equals the reference's.",
    "exact_match_calculator": "As exact_match, after a calculator has corrected the equations.",
    "accuracy": "Percentage of examples whose right option was chosen.",
    "reward": "Mean reward of the outputs, in percent.",
    "output_length": "Mean length of the outputs in tokens.",
    "unfinished": "Percentage of truncated outputs: they reached TARGET_LENGTH without an end.",
    "reference_log_prob": "Mean log-probability of the references' tokens, in nats.",
    "reference_perplexity": "Perplexity per token of the references, given their prompts.",
}
_DIVERGENCES = {
    "forward_kl": "KL(P‖Q) of teacher P and student Q, nats per token",
    "reverse_kl": "KL(Q‖P) of student Q and teacher P, nats per token",
    "jsd": "Generalised Jensen–Shannon divergence with this β, nats per token",
    "total_variation": "Total variation distance of teacher and student, 0 to 1",
    "skew_forward_kl": "KL(P‖αP + (1−α)Q) with this α, nats per token",
    "skew_reverse_kl": "KL(Q‖αQ + (1−α)P) with this α, nats per token",
}
_WRITERS = {"on_policy": "the student's own samples", "reference": "the references"}


def best_mode_of(metric: str | None) -> str:
    """Returns 'min' for an evaluation metric of which a smaller value is better, else 'max'.

    Args:
      metric: its name, perhaps after that of a group of the task.

    >>> best_mode_of("on_policy_forward_kl"), best_mode_of("snli/accuracy")
    ('min', 'max')
    """
    name = (metric or "").rpartition("/")[2]
    smaller = is_divergence(metric) or name in ("unfinished", "reference_perplexity")
    return "min" if smaller else "max"


def is_divergence(metric: str | None) -> bool:
    """Returns True for the name of a divergence of an evaluation, as in `best_mode_of`."""
    name = (metric or "").rpartition("/")[2]
    divergent = name.startswith(tuple(f"{writer}_" for writer in _WRITERS))
    return divergent and name not in ("reference_log_prob", "reference_perplexity")


def description_of(name: str) -> str | None:
    """Describes a number of the log.

    Args:
      name: its name: 'train/loss', 'evaluation/rouge2', 'speed/goodput'.

    Returns:
      One sentence; None for a name that a task or a method of one's own has added.

    >>> description_of("speed/goodput")
    "Share of the launch's time that was spent in training steps."
    >>> description_of("evaluation/reference_forward_kl")
    'KL(P‖Q) of teacher P and student Q, nats per token, on the references.'
    """
    kind, _, rest = name.partition("/")
    if kind in _DESCRIPTIONS:
        return _DESCRIPTIONS[kind].get(rest)
    if kind not in ("evaluation", "teacher"):
        return None
    metric = rest.rpartition("/")[2]  # a group of the task may come first: 'snli/accuracy'
    if metric in _EVALUATION:
        return _EVALUATION[metric]
    for writer, sequences in _WRITERS.items():
        divergence = metric.removeprefix(f"{writer}_")
        text = _DIVERGENCES.get(divergence) or _DIVERGENCES.get(divergence.rpartition("_")[0])
        if divergence != metric and text is not None:
            return f"{text}, on {sequences}."
    return None
