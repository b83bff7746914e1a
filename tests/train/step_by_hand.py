"""One step in float64 NumPy from the models' raw logits: what every setting of a method means."""

import collections
import functools
import re

import jax
import numpy as np

from gkd.decode.sampling import sample
from gkd.models.t5 import T5, as_seq2seq
from tests.train import wiring
from tests.train.wiring import IDS, STUDENT, TEACHER

# Of configs/train.gin.
DEFAULTS = {
    "LAMBDA": 0.0, "BETA": None, "DIVERGENCE": None, "NORMALISATION": "sequence",
    "TEMPERATURE": 1.0, "SAMPLES": 1, "ROLLOUT_LENGTH": None, "MIXING": "batch",
    "SAMPLING_TEMPERATURE": 1.0, "SAMPLING_TOP_K": 0, "SAMPLING_TOP_P": 1.0, "REWARD": None,
    "ALPHA": 1.0, "ADVANTAGE": "batch", "POLICY_LOSS": "reinforce", "TOP_K_TAIL": "bucket",
    "SEED": 0,
}  # fmt: skip
COIN = 0x7FFFFFFF


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@functools.cache
def _apply(config):
    module = T5(config)

    def logits(params, inputs, shifted):
        return module.apply({"params": params}, inputs, shifted)

    def pull_back(params, inputs, shifted, cotangents):
        return jax.vjp(lambda p: logits(p, inputs, shifted), params)[1](cotangents)[0]

    return jax.jit(logits), jax.jit(pull_back)


def shifted(tokens):
    return np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]


def raw_logits(config, params, inputs, tokens):
    """Teacher-forced logits [N, T, V] of a T5, in float64."""
    return np.float64(_apply(config)[0](params, inputs, shifted(tokens)))


def parameter_gradient(config, params, inputs, tokens, logits_gradient):
    """The gradient of the parameters from that of the logits."""
    values = _apply(config)[1](params, inputs, shifted(tokens), np.float32(logits_gradient))
    return jax.tree.map(np.float64, values)


Rollout = collections.namedtuple("Rollout", "prompts tokens mask weights own")


@functools.cache
def _sampler(samples, length, temperature, top_k, top_p):
    student = as_seq2seq(STUDENT)
    valid = jax.numpy.isin(jax.numpy.arange(wiring.VOCAB), IDS)

    def run(params, inputs, key):
        encoded = student.encode(params, inputs)
        return sample(
            student, params, encoded, key, max_length=length, valid=valid, samples=samples,
            temperature=temperature, top_k=top_k, top_p=top_p,
        ).tokens  # fmt: skip

    return jax.jit(run)


class ByHand:
    """The loss, its gradient and metrics of one step with these settings (macros' names)."""

    def __init__(
        self, settings, params=None, teacher=None, step=0, top_k=None, configs=(STUDENT, TEACHER),
        data=None,
    ):  # fmt: skip
        known = {name: value for name, value in settings.items() if name in DEFAULTS}
        self.set = DEFAULTS | known
        self.params = wiring.student_params() if params is None else params
        self.teacher = wiring.teacher_params() if teacher is None else teacher
        self.top_k = top_k
        self.data = wiring.batch() if data is None else data
        self.key = jax.random.fold_in(jax.random.PRNGKey(self.set["SEED"]), step)
        self.rollout = self._rollout()
        written = self.rollout.prompts, self.rollout.tokens
        self.student_logits = raw_logits(configs[0], self.params, *written)
        if self.set["DIVERGENCE"] is not None:
            self.teacher_logits = raw_logits(configs[1], self.teacher, *written)

    def samples(self):
        """The student's own tokens [B·G, T], with the noise of the step's key and each row."""
        length = min(
            self.set["ROLLOUT_LENGTH"] or 99, wiring.batch().decoder_target_tokens.shape[1]
        )
        run = _sampler(
            self.set["SAMPLES"], length, self.set["SAMPLING_TEMPERATURE"],
            self.set["SAMPLING_TOP_K"], self.set["SAMPLING_TOP_P"],
        )  # fmt: skip
        tokens = np.asarray(run(self.params, self.data.encoder_input_tokens, self.key))
        return np.pad(tokens, ((0, 0), (0, 5 - length)))

    def coins(self):
        """bool [B]: which prompts the student answers."""
        chance, coin = self.set["LAMBDA"], jax.random.fold_in(self.key, COIN)
        count = len(self.data.example_weights)
        if self.set["MIXING"] == "batch":
            return np.full(count, float(jax.random.uniform(coin)) < chance)
        keys = [jax.random.fold_in(coin, row) for row in range(count)]
        return np.array([float(jax.random.uniform(key)) < chance for key in keys])

    def _rollout(self):
        each = self.set["SAMPLES"]
        tokens = np.repeat(self.data.decoder_target_tokens, each, axis=0)
        own = np.repeat(self.coins(), each)
        if own.any():
            tokens = np.where(own[:, None], self.samples(), tokens)
        prompts = np.repeat(self.data.encoder_input_tokens, each, axis=0)
        return Rollout(prompts, tokens, tokens > 0, np.repeat(self.data.example_weights, each), own)

    def _distance(self, logits):
        """The divergence of every token [N, T] for these student logits."""
        name, tokens = self.set["DIVERGENCE"].rpartition(".")[2], self.rollout.tokens
        pair = self.set["TEMPERATURE"]
        pair = pair if isinstance(pair, tuple | list) else (pair, pair)
        log_q = log_softmax(logits[..., IDS] / pair[0])
        if self.top_k is not None:
            log_p, log_q = self._truncated(log_q, pair[1])
        else:
            log_p = log_softmax(self.teacher_logits[..., IDS] / pair[1])
        p, q = np.exp(log_p), np.exp(log_q)
        if name == "sampled_token_reverse_kl":
            return _chosen(log_q, tokens) - _chosen(log_p, tokens)
        first, second, share = {
            "forward_kl": (p, q, 0), "reverse_kl": (q, p, 0), "total_variation": (p, q, 0),
            "skew_forward_kl": (p, q, 0.1), "skew_reverse_kl": (q, p, 0.1),
            "generalized_jsd": (p, q, 0),
        }[name]  # fmt: skip
        if name == "total_variation":
            return 0.5 * np.abs(p - q).sum(-1)
        if name == "generalized_jsd":
            beta = self.set["BETA"]
            middle = beta * p + (1 - beta) * q
            return beta * _kl(p, middle) + (1 - beta) * _kl(q, middle)
        return _kl(first, share * first + (1 - share) * second)

    def _truncated(self, log_q, temperature):
        """A teacher of K ids, and the student over the same outcomes."""
        places = self.top_k.ids - 1  # of IDS
        known = np.float64(self.top_k.log_probs)
        if self.set["TOP_K_TAIL"] == "renormalise":
            log_p = np.full(log_q.shape, -np.inf)
            np.put_along_axis(log_p, places, log_softmax(known / temperature), -1)
            return log_p, log_q
        chosen = np.take_along_axis(log_q, places, -1)
        tails = [np.log1p(-np.exp(x).sum(-1, keepdims=True)) for x in (known, chosen)]
        return np.concatenate([known, tails[0]], -1), np.concatenate([chosen, tails[1]], -1)

    @functools.cached_property
    def rewards(self):
        """ROUGE-1 of every row of numbers: F1 of the words it shares with its reference."""
        from gkd.vocabularies import vocabularies

        each = self.set["SAMPLES"]
        references = np.repeat(self.data.decoder_target_tokens, each, axis=0)
        texts = (
            vocabularies.decode_tokens(vocabularies.arithmetic(), rows)
            for rows in (self.rollout.tokens, references)
        )
        return np.array([_rouge1(*pair) for pair in zip(*texts, strict=True)])

    @functools.cached_property
    def advantages(self):
        """Each reward against the others that count, one by one."""
        rewards, each, kind = self.rewards, self.set["SAMPLES"], self.set["ADVANTAGE"]
        counted = self.rollout.own & (self.rollout.weights > 0)
        values = np.zeros(len(rewards))
        for row in np.flatnonzero(counted):
            group = [i for i in np.flatnonzero(counted) if i // each == row // each]
            everyone = np.flatnonzero(counted) if kind == "batch" else group
            if kind == "none":
                values[row] = rewards[row]
            elif kind == "group_standardised":
                spread = rewards[group].std()
                values[row] = (rewards[row] - rewards[group].mean()) / spread if spread else 0
            elif len(everyone) > 1:
                values[row] = rewards[row] - rewards[[i for i in everyone if i != row]].mean()
        return values

    def _tokens_loss(self, logits):
        """Each token's loss [N, T] as a function of the student's logits."""
        tokens = self.rollout.tokens
        if self.set["DIVERGENCE"] is None and self.set["REWARD"] is None:
            return -_chosen(log_softmax(logits), tokens, first=0)  # raw: over the whole table
        alpha = self.set["ALPHA"]
        value = alpha * self._distance(logits) if alpha else 0.0
        if self.set["REWARD"] is not None and alpha < 1:
            lengths = self.rollout.mask.sum(1, keepdims=True)
            log_q = _chosen(log_softmax(logits[..., IDS]), tokens)
            gain = lengths * log_q
            if self.set["POLICY_LOSS"] == "grpo":
                old = _chosen(log_softmax(self.student_logits[..., IDS]), tokens)
                gain = np.exp(log_q - old)
            value = value - (1 - alpha) * self.advantages[:, None] * gain
        return value

    def _mean(self, values):
        """The mean of [N, T] that the normalisation asks for, and its coefficients."""
        mask, weights = self.rollout.mask, self.rollout.weights[:, None]
        each = mask * weights
        if self.set["NORMALISATION"] == "sequence":
            each = each / mask.sum(1, keepdims=True)
        each = each / each.sum()
        return float((each * np.where(mask, values, 0)).sum()), each

    def loss(self):
        return self._mean(self._tokens_loss(self.student_logits))[0]

    def gradient(self):
        """The gradient of the parameters: central differences as far as the logits."""
        step, size = 1e-5, self.student_logits.shape[-1]
        surrogate = self._tokens_loss
        if "sampled_token" in str(self.set["DIVERGENCE"]):  # a policy gradient: −A · log Q
            against = self._tokens_loss(self.student_logits)
            heat = self.set["TEMPERATURE"]

            def surrogate(logits):
                log_q = log_softmax(logits[..., IDS] / heat)
                return against * _chosen(log_q, self.rollout.tokens)

        slopes = np.zeros(self.student_logits.shape)
        for number in range(size):
            shift = step * (np.arange(size) == number)
            above, below = (surrogate(self.student_logits + sign * shift) for sign in (1, -1))
            slopes[..., number] = (above - below) / (2 * step)
        slopes *= self._mean(0.0)[1][..., None]
        written = self.rollout.prompts, self.rollout.tokens
        return parameter_gradient(STUDENT, self.params, *written, slopes)

    def metrics(self):
        """What is logged of the step, by name."""
        rollout, counted = self.rollout, self.rollout.weights > 0
        own = counted & rollout.own
        log_q = _chosen(log_softmax(self.student_logits[..., IDS]), rollout.tokens)
        lengths = rollout.mask.sum(1)
        named = {
            "loss": self.loss(),
            "on_policy": own.sum() / counted.sum(),
            "target_length": lengths[counted].mean(),
            "cut_off": (~(rollout.tokens == 1).any(1))[counted].mean(),
            "sample_entropy": -(log_q * rollout.mask)[own].sum() / max(lengths[own].sum(), 1),
        }
        if self.set["DIVERGENCE"] is not None and self.set["ALPHA"]:
            named["divergence"] = self._mean(self._distance(self.student_logits))[0]
        if self.set["REWARD"] is not None and self.set["ALPHA"] < 1:
            weights = rollout.weights * rollout.own
            named["reward"] = (weights * self.rewards).sum() / weights.sum()
        return named


def global_norm(tree):
    return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def first_update(params, gradient, rate=wiring.RATE):
    """AdamW's first with ε = 1, no decay: its moments are the gradient and its square."""
    return jax.tree.map(lambda p, g: p - rate * g / (np.abs(g) + 1), params, gradient)


def _kl(first, second):
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = first * (np.log(first) - np.log(second))
    return np.where(first > 0, terms, 0.0).sum(-1)


def _chosen(log_probs, tokens, first=1):
    """The entries of the tokens, where the last axis begins with id `first`; 0 at padding."""
    places = np.maximum(tokens - first, 0)[..., None]
    return np.where(tokens > 0, np.take_along_axis(log_probs, places, -1)[..., 0], 0.0)


def _rouge1(sample, reference):
    words = (re.findall("[a-z0-9]+", text.lower()) for text in (sample, reference))
    ours, theirs = map(collections.Counter, words)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0
