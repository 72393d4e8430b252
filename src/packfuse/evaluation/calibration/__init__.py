"""Calibration: priors, temperatures and sharpness of a pack, fitted to a few dozen questions.

`answers` collects what the members say at the answers' tokens, `fit` finds the parameters,
`validation` predicts by cross-validation what they gain, and `run` does all of it. This room may
use the rest of `evaluation`.
"""
