"""Models with rotary positions: decoder-only (Qwen, Llama, SmolLM2, Gemma) and T5Gemma; pure.

In: a configuration, parameter trees and token ids. Out: the functions of `gkd.models.interface`.
"""
