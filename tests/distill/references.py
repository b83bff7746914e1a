"""Float64 NumPy divergences written straight from their definitions, and logits to try them on."""

import numpy as np


def probabilities(logits, valid=None):
    """Softmax over the valid ids in float64; −inf has no probability."""
    logits = np.asarray(logits, np.float64)
    if valid is not None:
        logits = np.where(valid, logits, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kullback_leibler(first, second):
    """Σ first · log(first / second), with 0 · log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = first * (np.log(first) - np.log(second))
    return np.where(first > 0, terms, 0.0).sum(axis=-1)


def from_probabilities(name, p, q):
    """The divergence `name` of teacher P and student Q, as the literature defines it."""
    if name == "forward_kl":
        return kullback_leibler(p, q)
    if name == "reverse_kl":
        return kullback_leibler(q, p)
    if name == "total_variation":
        return 0.5 * np.abs(p - q).sum(axis=-1)
    if name in ("skew_forward_kl", "skew_forward_kl_0.1"):
        return kullback_leibler(p, 0.1 * p + 0.9 * q)
    if name in ("skew_reverse_kl", "skew_reverse_kl_0.1"):
        return kullback_leibler(q, 0.9 * p + 0.1 * q)
    beta = float(name.removeprefix("jsd_"))
    mixture = beta * p + (1 - beta) * q
    return beta * kullback_leibler(p, mixture) + (1 - beta) * kullback_leibler(q, mixture)


def divergence(name, student, teacher, temperature=1.0, valid=None):
    """The divergence of two arrays of logits [..., V], per token."""
    p, q = (probabilities(np.float64(x) / temperature, valid) for x in (teacher, student))
    return from_probabilities(name, p, q)


def divergence_gradient(name, student, teacher, temperature=1.0, valid=None):
    """∂ divergence / ∂ student logits [..., V], by central differences (error about 1e-9)."""
    step = 1e-5
    gradient = np.empty(student.shape)
    for index in range(student.shape[-1]):
        shift = step * (np.arange(student.shape[-1]) == index)
        above, below = (
            divergence(name, np.float64(student) + sign * shift, teacher, temperature, valid)
            for sign in (1, -1)
        )
        gradient[..., index] = (above - below) / (2 * step)
    return gradient


def normal(seed, *shape, scale=2.0):
    """Float32 normal noise, scale 2 as in losses.npz."""
    return np.asarray(scale * np.random.default_rng(seed).normal(size=shape), np.float32)
