"""Decoding: samplers that run inside one compiled loop."""
