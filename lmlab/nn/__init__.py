"""Bricks that know tensors only.

Shapes: B batch, T query tokens, S key tokens, D hidden, H heads, G key and value heads, K head size, F feed-forward, L layers.
"""
