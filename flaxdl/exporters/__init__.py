"""Export of trained networks to safetensors, Hugging Face folders and StableHLO.

`exporting` selects the format from the name of the output; the other modules define one format
each.
"""
