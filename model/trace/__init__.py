"""Traces: what the plain model computes on the way from token ids to logits."""
