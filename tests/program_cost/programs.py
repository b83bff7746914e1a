"""Small programs, and the text of a program compiled for a TPU."""

import re

import jax
import jax.numpy as jnp


def text_of(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(s, "float32") if isinstance(s, tuple) else s for s in shapes]
    return jax.jit(function).lower(*arrays).compile().as_text()


def without_counts(text):
    """As a TPU's compiler leaves it: the trips are only in the loops' conditions."""
    assert "known_trip_count" in text
    return re.sub(r'"known_trip_count":\{[^}]*\},?', "", text)


HEAD = "HloModule m, num_partitions=16\n\n"


def scan(x, kernels):
    def body(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jax.lax.scan(body, x, kernels)[0]


# What the TPU's compiler writes: asynchronous pairs, on-chip memory S(1), in-place updates.
TPU = (
    HEAD
    + """%slice_one (p: f32[5,256,64], i: s32[]) -> f32[256,64] {
  %p = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,256,64]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,256,64}
  ROOT %b = f32[256,64]{1,0} bitcast(%s)
}

%update_one (q: f32[5,256,64], u: f32[1,256,64], j: s32[]) -> f32[5,256,64] {
  %q = f32[5,256,64]{2,1,0} parameter(0)
  %u = f32[1,256,64]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %nought = s32[] constant(0)
  ROOT %d = f32[5,256,64]{2,1,0} dynamic-update-slice(%q, %u, %j, %nought, %nought)
}

ENTRY %main (x: f32[5,256,64], n: s32[], v: bf16[16,256]) -> (f32[5,256,64], f32[256,64]) {
  %x = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)S(6)} parameter(1)
  %v = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(2)
  %one = f32[256,64]{1,0:T(8,128)} fusion(%x, %n), kind=kLoop, calls=%slice_one
  %new = f32[1,256,64]{2,1,0:T(8,128)S(1)} bitcast(%one)
  %kept = f32[5,256,64]{2,1,0} fusion(%x, %new, %n), kind=kLoop, calls=%update_one
  %cs = (bf16[16,256]{1,0:S(1)}, bf16[16,256]{1,0}, u32[]{:S(2)}) copy-start(%v)
  %cd = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%cs)
  %gs = (bf16[16,256]{1,0:S(1)}, bf16[64,256]{1,0}) all-gather-start(%cd), GROUPS
  %gd = bf16[64,256]{1,0} all-gather-done(%gs)
  %neg = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} negate(%gd)
  ROOT %t = (f32[5,256,64]{2,1,0}, f32[256,64]{1,0}) tuple(%kept, %one)
}
"""
).replace("GROUPS", "replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}")
