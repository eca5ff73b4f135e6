"""Experiments that measure the claims of the course, one module per claim.

A module states its claim in `CLAIM` and defines `measure`, `verdict` and `draw`; see
`flaxdl.course.experiment`. The recorded results and figures are in the folder `results`.
"""

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Convolutional networks": ("pooling_sizes", "receptive_field", "pixel_order"),
    "Residual connections": ("deep_plain_networks", "zero_branch", "layers_152"),
    "Recurrent networks": ("order_in_sequences", "rnn_formula", "rnn_gradients"),
    "Transformers": ("head_count", "attention_scale", "masking", "dependent_steps"),
    "Normalization": ("norm_axes",),
}
"""Names of the modules by chapter, in the order of the course."""

EXPERIMENTS = tuple(name for names in CHAPTERS.values() for name in names)
"""Names of all experiments, in the order of the course."""
