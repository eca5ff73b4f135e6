"""What `pytest -m quick` runs: each area once, in at most 90 seconds on two cores."""

# Whole files, and tests by their names.
QUICK = (
    "layers/test_linear.py",
    "layers/test_residual.py::test_reaches_the_stored_values",
    "layers/test_attention.py::test_golden_values[float32-1e-05-MultiHeadAttention]",
    "layers/test_recurrent.py::test_golden_values",
    "layers/test_transformer.py::test_golden_document_block",
    "models/test_cnn.py::test_reaches_the_stored_values[float32-1e-05-shape0]",
    "models/test_rnn.py::test_golden_values[float32-1e-05]",
    "models/test_resnet.py::test_has_the_names_of_torchvision[resnet50]",
    "models/test_bert.py::test_golden_values[float32-1e-05-bert]",
    "weights/test_names.py",
    "weights/test_hub.py",
    "data/test_pipeline.py",
    "data/test_arrays.py",
    "data/test_text_table.py",
    "training/test_metrics.py",
    "training/test_optimizers.py::test_ten_steps_are_pytorchs[adamw]",
    "training/test_optimizers.py::test_cosine_by_hand",
    "training/test_optimizers.py::test_clipping_shortens_only_what_is_too_long",
    "training/test_tasks.py::test_what_is_padding_or_without_weight_never_counts",
    "training/test_console.py",
    "report/test_inspect.py::test_simple_cnn_by_hand",
    "report/test_scores.py",
    "test_config.py",
    "test_imports.py::test_rooms_import_only_what_they_may",
    "test_imports.py::test_importing_loads_nothing_heavy",
    "test_readme.py",
    "test_run.py::test_a_run_leaves_what_it_promises",
    "test_run.py::test_interrupted_anywhere_it_ends_the_same[5]",
    "test_command_line.py::test_inspect_prints_layers_and_totals",
    "test_command_line.py::test_the_list_names_every_config_with_a_summary",
)


def is_quick(name):
    """Whether a test is among them, by its id below tests/."""
    return any(name == chosen or name.startswith((f"{chosen}::", f"{chosen}[")) for chosen in QUICK)
