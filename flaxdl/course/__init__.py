"""Experiments that measure the claims of the course, one module per claim.

A module states its claim in `CLAIM` and defines `measure`, `verdict` and `draw`; see
`flaxdl.course.experiment`. The recorded results and figures are in the folder `results`.
"""

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Convolutional networks": ("pooling_sizes", "receptive_field", "architectures"),
    "Residual connections": ("zero_branch",),
    "Recurrent networks": (
        "order_in_sequences",
        "rnn_formula",
        "last_output",
        "rnn_gradients",
        "selective_memory",
        "lstm_gates",
        "long_sequences",
        "bottleneck",
    ),
    "Transformers": (
        "head_count",
        "attention_scale",
        "masking",
        "attention_order",
        "dependent_steps",
    ),
    "Normalization": ("norm_axes",),
}
"""Names of the modules by chapter, in the order of the course."""

EXPERIMENTS = tuple(name for names in CHAPTERS.values() for name in names)
"""Names of all experiments, in the order of the course."""
