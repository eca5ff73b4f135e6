"""Experiments that measure the claims of the course, one module per claim.

A module states its claim in `CLAIM` and defines `measure`, `verdict` and `draw`; see
`flaxdl.course.experiment`. The recorded results and figures are in the folder `results`.
"""

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Convolutional networks": (
        "layer_patterns",
        "sliding_filters",
        "pooling_sizes",
        "adaptive_pooling",
        "strongest_activation",
        "feature_maps",
        "receptive_field",
        "pixel_order",
        "architectures",
    ),
    "Residual connections": ("deep_plain_networks", "zero_branch", "small_change", "layers_152"),
    "Recurrent networks": (
        "order_in_sequences",
        "rnn_formula",
        "last_output",
        "rnn_gradients",
        "selective_memory",
        "lstm_gates",
        "gru_or_lstm",
        "long_sequences",
        "bottleneck",
        "series_and_audio",
    ),
    "Transformers": (
        "head_count",
        "attention_scale",
        "attention_scale_training",
        "masking",
        "attention_order",
        "lookup_distance",
        "dependent_steps",
        "scaling",
    ),
    "Normalization": ("norm_axes", "norm_position", "norm_learning_rates", "norm_batch_size"),
    "Training": (
        "adam_default",
        "decoupled_decay",
        "cosine_schedule",
        "gradient_clipping",
        "float16_gradients",
        "dropout",
    ),
    "Pretrained models": ("transfer", "last_layers"),
}
"""Names of the modules by chapter, in the order of the course."""

EXPERIMENTS = tuple(name for names in CHAPTERS.values() for name in names)
"""Names of all experiments, in the order of the course."""
