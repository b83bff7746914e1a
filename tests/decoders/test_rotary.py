"""Rotary positions: frequencies of Llama 3 by its own rule, and rotations as complex numbers."""

import math

import jax.numpy as jnp
import numpy as np

from gkd.decoders.rotary import Rope, inverse_frequencies, rotate, rotation


def test_frequencies_are_powers_of_theta_divided_by_a_linear_factor():
    wanted = 1e4 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(inverse_frequencies(Rope(1e4), 16), wanted, rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(Rope(1e4, 8.0), 16), wanted / 8, rtol=1e-6)


def test_llama_3_keeps_short_waves_and_stretches_long_ones():
    """By wavelength, as its release states it."""
    low, high, original, factor = 1.0, 4.0, 8192, 32.0
    got = inverse_frequencies(Rope(5e5, factor, original, low, high), 64)
    for frequency, found in zip(5e5 ** -(np.arange(32) / 32), got, strict=True):
        wave = 2 * math.pi / frequency
        if wave < original / high:
            wanted = frequency
        elif wave > original / low:
            wanted = frequency / factor
        else:
            smooth = (original / wave - low) / (high - low)
            wanted = (1 - smooth) * frequency / factor + smooth * frequency
        assert abs(found - wanted) < 1e-6 * wanted
    assert got[0] == 1 and got[-1] < 5e5 ** -(31 / 32) / 31


def test_pairs_are_rotated_like_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2], [5, 900, 7]])
    frequencies = inverse_frequencies(Rope(100.0), 8)
    got = rotate(jnp.array(x), rotation(jnp.array(positions), frequencies))
    angles = positions[:, :, None, None] * frequencies.astype(np.float64)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    wanted = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(got, wanted, atol=3e-4)
