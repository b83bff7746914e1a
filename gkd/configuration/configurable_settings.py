"""Tables of the settings that gin files may bind: of tasks, models, optimizers, divergences, …"""

from __future__ import annotations

from gkd.configuration.setting_values import (
    LARGEST_SEED,
    LONGEST_SEQUENCE,
    Setting,
    choice,
    flag,
    mapping,
    number,
    sequence,
    text,
    whole,
)
from gkd.files.json_files import Field


def _paths(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"gkd.{module}.{name}" for name in names)


_DECODER = _paths("decoders.decoder_only", "DecoderConfig")
_ROPE = _paths("decoders.rotary", "Rope")
MODELS = (
    *_paths("models", "t5.T5Config", "t5x_adapter.adapt"),
    *_paths("decoders", "decoder_only.DecoderConfig", "t5gemma.T5GemmaConfig"),
)
TASKS = (
    *_paths("data.tasks", "summarization", "translation", "gsm8k_cot", "local_text"),
    *_paths("data.tasks", "instructions", "arithmetic", "from_seqio", "mixture"),
    *_paths("data.evaluation_tasks", "mmlu", "bbh", "mgsm"),
    *_paths("data.synthetic_tasks", "retrieval"),
    *_paths("data", "teacher_outputs.with_teacher_outputs", "teacher_inputs.with_teacher_inputs"),
    *_paths("data", "teacher_inputs.of_teacher_prompts", "prompts.formatted"),
)
VOCABULARIES = _paths(
    "vocabularies.vocabularies", "t5", "arithmetic", "byte_level", "sentencepiece", "from_folder"
)
METRICS = _paths(
    "metrics.metrics", "rouge", "bleu", "final_answer", "exact_match", "answer_match",
    "multiple_choice",
)  # fmt: skip
_ANSWERS = ("stated_answer", "chosen_letter", "normalised")
ANSWERS = (*_paths("metrics.metrics", *_ANSWERS), *_paths("metrics.answers", *_ANSWERS))
DIVERGENCES = _paths(
    "distill.divergences", "forward_kl", "reverse_kl", "total_variation", "generalized_jsd",
    "skew_forward_kl", "skew_reverse_kl", "sampled_token_reverse_kl",
)  # fmt: skip
REWARD_FUNCTIONS = _paths(
    "metrics.reward_functions", "exact_number", "answer_match", "multiple_choice", "rouge", "bleu"
)
REWARD_RESULTS = _paths("metrics.reward_functions", "entailment")
SCHEDULES = _paths("distill.mixing", "linear_schedule")
REPLAYS = _paths("distill.replay", "Replay")
AUXILIARY_LOSSES = _paths("auxiliary_losses", "inner_layer.InnerLayerLoss", "witness.WitnessLoss")
ADAPTERS = _paths("models.lora", "LoRA")
OPTIMIZERS = _paths("distill.optimizers", "adafactor", "adamw")

_LIMIT = whole(1, none=True)  # max_examples, rows
_FILES = mapping(text(), none=True)
_NAMED = {
    "name": text(),
    "vocabulary": Setting(results=VOCABULARIES, none=True),
    "max_examples": _LIMIT,
    "metric_fns": sequence(Setting(functions=METRICS)),
}
_FROM_FILES = {
    **_NAMED,
    "files": _FILES,
    "directory": text(none=True),
}
_TSV = {
    "columns": sequence(text(), none=True),
    "delimiter": text(none=True),
    "quoting": flag(none=True),
    "escapes": flag(),
}
_DATA_SET = (
    r"[A-Za-z0-9_]+(/[\w.+-]+)?(:(\d+\.\d+\.\d+|\d+\.\d+\.\*|\d+\.\*\.\*))?",
    "the name of a TFDS data set, with its configuration and version: 'xsum:1.1.0'",
)
_TFDS = {"tfds": Setting(results=_paths("data.tasks", "TfdsData"), none=True)}
_TOKENIZE = {"tokenize": text(none=True)}  # the task checks the names against sacreBLEU's
_TEXTS = {"input_field": text(), "target_field": text(), "prefix": text(0)}
_TSV_FORMAT = {"tsv": Setting(results=_paths("data.tasks", "TsvFormat"), none=True)}
_SUMMARIES = {**_FROM_FILES, **_TSV_FORMAT, **_TEXTS, **_TFDS, **_TOKENIZE}
_ANSWER_OF = Setting(functions=ANSWERS, none=True)
_BENCHMARK = {
    **_NAMED,
    "directory": text(none=True),
    "files": mapping(text()),
    "exemplars": text(),
    "shots": whole(0, 1000),
    "input_length": whole(1, LONGEST_SEQUENCE, none=True),
}
_SCORING = choice("options", "generation")
# Values of a chat template's variables: texts, numbers, truth values.
_CHAT_OPTION = Setting(literal=Field(kinds=(str, bool, int, float)), none=True)
_ROWS = mapping(whole(1, 100_000_000), keys=("train", "validation", "test"), none=True)

DATA = {
    "gkd.data.tasks.TfdsData": {
        "name": text(pattern=_DATA_SET),  # other names of TFDS's load code from elsewhere
        "splits": mapping(text(), none=True),
    },
    "gkd.data.tasks.TsvFormat": _TSV,
    "gkd.data.tasks.summarization": _SUMMARIES,
    "gkd.data.tasks.translation": _SUMMARIES,
    "gkd.data.tasks.gsm8k_cot": {
        **_FROM_FILES,
        **_TSV_FORMAT,
        **_TFDS,
        "question_field": text(),
        "answer_field": text(),
        "rationale_field": text(none=True),
        "shots": whole(0, 1000),
    },
    "gkd.data.tasks.local_text": {
        **_FROM_FILES,
        **_TSV,
        **_TEXTS,
        **_TOKENIZE,
        "files": mapping(text()),
    },
    "gkd.data.tasks.instructions": {
        **_FROM_FILES,
        **_TSV,
        "templates": sequence(sequence(text(0), 2, 2), least=1),
        **_TFDS,
        "answer_of": _ANSWER_OF,
        "extra_fields": sequence(text()),
    },
    "gkd.data.tasks.arithmetic": {
        **_NAMED,
        "rows": _ROWS,
        "seed": whole(0, LARGEST_SEED),
        "steps": whole(1, 1000),
        "minimum_steps": whole(1, 1000, none=True),
        "digits": whole(1, 100),
        "solution": choice("equations", "totals"),
    },
    "gkd.data.synthetic_tasks.retrieval": {
        **_NAMED,
        "rows": _ROWS,
        "seed": whole(0, LARGEST_SEED),
        "context": whole(1, 288),
        "evidence": whole(1, 288),
        "digits": whole(1, 100),
    },
    "gkd.data.tasks.from_seqio": {
        **_NAMED,
        "provider": text(),
        "name": text(none=True),
        "answer_of": _ANSWER_OF,
    },
    "gkd.data.tasks.mixture": {
        "tasks": sequence(Setting(results=TASKS), least=1),
        "rates": sequence(number(above=0), none=True),
        "name": text(),
        "maximum": _LIMIT,
        "temperature": number(above=0),
        "rows": _LIMIT,
        "metric_fns": sequence(Setting(functions=METRICS)),
    },
    "gkd.data.evaluation_tasks.mmlu": {**_BENCHMARK, "scoring": _SCORING},
    "gkd.data.evaluation_tasks.bbh": {
        **_BENCHMARK,
        "scoring": _SCORING,
        "chain_of_thought": flag(),
    },
    "gkd.data.evaluation_tasks.mgsm": {**_BENCHMARK, "files": mapping(mapping(text()))},
    "gkd.data.teacher_outputs.with_teacher_outputs": {
        "task": Setting(results=TASKS),
        "file": text(none=True),
        "directory": text(none=True),
        "input_field": text(),
        "output_field": text(),
        "prefix": text(0),
        "max_examples": _LIMIT,
    },
    "gkd.data.teacher_inputs.with_teacher_inputs": {
        "task": Setting(results=TASKS),
        "preprocessor": Setting(results=_paths("data.teacher_inputs", "template")),
        "length": whole(1, LONGEST_SEQUENCE, none=True),
    },
    "gkd.data.teacher_inputs.of_teacher_prompts": {
        "task": Setting(results=TASKS),
        "preprocessor": Setting(results=_paths("data.teacher_inputs", "template")),
        "name": text(none=True),
    },
    "gkd.data.teacher_inputs.template": {"prompt": text()},
    "gkd.data.prompts.formatted": {
        "task": Setting(results=TASKS),
        "prompt": choice("text", "chat"),
        "system": text(0, none=True),
        "options": mapping(_CHAT_OPTION, none=True),
    },
    "gkd.vocabularies.vocabularies.t5": {"path": text(none=True), "extra_ids": whole(0, 100_000)},
    "gkd.vocabularies.vocabularies.arithmetic": {},
    "gkd.vocabularies.vocabularies.byte_level": {"extra_ids": whole(0, 100_000)},
    "gkd.vocabularies.vocabularies.sentencepiece": {"path": text(), "extra_ids": whole(0, 100_000)},
    "gkd.vocabularies.vocabularies.from_folder": {"path": text(), "extra_ids": whole(0, 100_000)},
    **{path: {} for path in (*METRICS, *ANSWERS)},
    "gkd.metrics.metrics.rouge": _TOKENIZE,
    "gkd.metrics.metrics.bleu": _TOKENIZE,
    "gkd.metrics.reward_functions.exact_number": {"calculator": flag()},
    "gkd.metrics.reward_functions.answer_match": {},
    "gkd.metrics.reward_functions.multiple_choice": {},
    "gkd.metrics.reward_functions.rouge": {"name": text(), "stemmer": flag(), **_TOKENIZE},
    "gkd.metrics.reward_functions.bleu": _TOKENIZE,
    "gkd.metrics.reward_functions.entailment": {
        "premise": text(0),
        "hypothesis": text(0),
        "entailment": text(),
        "prompt_prefix": text(0),
        "input_length": whole(1, LONGEST_SEQUENCE),
        "hypothesis_first": flag(),
    },
}

_SCALING = {"learning_rate": number(above=0), "weight_decay": number(0)}
_OPTIMIZER = {**_SCALING, "max_norm": number(above=0, none=True)}
_SKEW = {"alpha": number(above=0, below=1)}
_CLIP = {"clip": number(above=0, none=True)}
# Set by the step, not by gin files; listed so that files that set them get a clear error.
_DIVERGENCE = {
    "temperature": number(above=0, items=number(above=0), lengths=(2, 2)),
    "valid": Setting(none=True),
}

_LAYERS = whole(1, 1000)

DISTILLATION = {
    "gkd.distill.optimizers.adafactor": {
        **_OPTIMIZER,
        "decay_rate": number(above=0, most=1),
        "clipping_threshold": number(above=0, none=True),
        "min_dim_size_to_factor": whole(1),
        "multiply_by_parameter_scale": flag(),
    },
    "gkd.distill.optimizers.adamw": {
        **_OPTIMIZER,
        "b1": number(0, below=1),
        "b2": number(0, below=1),
        "eps": number(above=0),
    },
    **dict.fromkeys(DIVERGENCES, _DIVERGENCE),
    "gkd.distill.divergences.forward_kl": {**_DIVERGENCE, **_CLIP},
    "gkd.distill.divergences.generalized_jsd": {
        **_DIVERGENCE,
        **_CLIP,
        "beta": number(0, 1),
        "rescale": flag(),
    },
    "gkd.distill.divergences.skew_forward_kl": {**_DIVERGENCE, **_SKEW},
    "gkd.distill.divergences.skew_reverse_kl": {**_DIVERGENCE, **_SKEW},
    "gkd.distill.mixing.linear_schedule": {
        "start": number(0, 1),
        "end": number(0, 1),
        "steps": whole(1),
        "after": whole(0),
    },
    "gkd.distill.replay.Replay": {
        "capacity": whole(1, 100_000_000),
        "share": number(0, 1),
        "increase": number(0, 1),
        "margin": number(0),
        "metric": text(),
    },
    "gkd.auxiliary_losses.inner_layer.InnerLayerLoss": {
        "layer": _LAYERS,
        "weight": number(0),
        "attention_weight": number(0),
        "beta": number(above=0, below=1),
    },
    "gkd.auxiliary_losses.witness.WitnessLoss": {
        "weight": number(0),
        "tokens": whole(1, LONGEST_SEQUENCE),
        "threshold": number(),
        "template": text(),
        "input_length": whole(1, LONGEST_SEQUENCE, none=True),
    },
}

_WIDTH = whole(1, 1_000_000)

ARCHITECTURES = {
    "gkd.models.t5.T5Config": {
        "vocab_size": whole(2, 10_000_000),
        "emb_dim": _WIDTH,
        "num_heads": _WIDTH,
        "head_dim": _WIDTH,
        "mlp_dim": _WIDTH,
        "num_encoder_layers": _LAYERS,
        "num_decoder_layers": _LAYERS,
        "mlp_activations": sequence(choice("linear", "gelu", "relu", "silu"), 1, 2),
        "logits_via_embedding": flag(),
        "scale_logits": flag(none=True),
        "relative_bias_per_layer": flag(),
        "dropout_rate": number(0, below=1),
        "dtype": choice("float32", "bfloat16"),
        "stacked_layers": flag(),
        "remat": flag(),
        "family": text(),
        "embedding_copies": sequence(text()),
    },
    "gkd.decoders.decoder_only.DecoderConfig": {
        "vocab_size": whole(2, 10_000_000),
        "emb_dim": _WIDTH,
        "num_heads": _WIDTH,
        "num_kv_heads": _WIDTH,
        "head_dim": _WIDTH,
        "mlp_dim": _WIDTH,
        "num_layers": _LAYERS,
        "mlp_activation": choice("silu", "gelu"),
        "norm_epsilon": number(above=0, below=1),
        "unit_offset_norms": flag(),
        "post_norms": flag(),
        "qk_norms": flag(),
        "attention_biases": flag(),
        "scale_embeddings": flag(),
        "query_scale": number(above=0, none=True),
        "attention_soft_cap": number(above=0, none=True),
        "logits_soft_cap": number(above=0, none=True),
        "rope": Setting(results=_ROPE),
        "local_rope": Setting(results=_ROPE, none=True),
        "layer_windows": sequence(whole(), 1),
        "logits_via_embedding": flag(),
        "end_ids": sequence(whole(), 1),
        "padding": whole(-1),
        "bos_token_id": whole(none=True),
        "pad_token_id": whole(none=True),
        "context_length": whole(1),
        "dtype": choice("float32", "bfloat16"),
        "dropout_rate": number(0, below=1),
        "stacked_layers": flag(),
        "remat": flag(),
        "family": text(),
        "embedding_copies": sequence(text()),
    },
    "gkd.decoders.rotary.Rope": {
        "theta": number(above=0),
        "factor": number(above=0),
        "original_length": whole(),
        "low_frequency_factor": number(above=0),
        "high_frequency_factor": number(above=0),
    },
    "gkd.decoders.t5gemma.T5GemmaConfig": {
        "encoder": Setting(results=_DECODER),
        "decoder": Setting(results=_DECODER),
        "start_id": whole(),
        "version": whole(1, 2),
    },
    "gkd.models.lora.LoRA": {
        "rank": whole(1, 65_536),
        "alpha": number(above=0),
        "targets": sequence(text(), least=1),
    },
    # Its module must belong to a package that the user allows.
    "gkd.models.t5x_adapter.adapt": {"module": Setting(results=("t5x",))},
}

SETTINGS = {**DATA, **DISTILLATION, **ARCHITECTURES}
