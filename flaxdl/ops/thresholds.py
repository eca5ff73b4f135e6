"""Sizes at which one lowering becomes faster than another.

The comments name the rows of `benchmarks/speed.py` with layers that a threshold affects. The
thresholds were measured on two cores of an AMD EPYC by 27 November 2026. Some lowerings were also
checked on two cores of an Intel Xeon with AMX on 30 November 2026
(`benchmarks/results/lowerings_intel.json`). Limits set by a library are in the module that calls
it.
"""

# Convolution on a CPU: I input channels, O output channels.
COPIED_POSITIONS = 25  # largest window for scaled copies (simple_cnn_8)
COPIED_OUTPUTS = 16  # smallest O for scaled copies (simple_cnn_8)
FEW_CHANNELS = 8  # largest I for which d_inputs is computed by a matrix product (alexnet, vgg11)
COLORS = 3  # largest I for which that is also faster than flipped windows (simple_cnn_32)
TWO_WINDOWS_WEIGHTS = 256  # largest I O for which two windows are computed as one (lenet)
FOUR_WINDOWS_WEIGHTS = 96  # I O below which four windows are computed as one (simple_cnn_32)
TILED_CHANNELS = 64  # smallest I and O for Winograd's tiles, half as many in gradients (resnet18)
TILED_POSITIONS = 36  # smallest image for tiles (resnet18)
TILED_VALUES = 2**21  # largest image for tiles, which take 13 times its memory (vgg11)

# Pooling on a CPU.
POOLED_POSITIONS = 100  # largest window pooled by position: longer programs compile slowly
POOLED_CHANNELS = 16  # smallest number of channels pooled by position: a vector register (alexnet)

# Products and sums on a CPU.
TRANSPOSED_FEATURES = 128  # smallest number of features for transposing a factor first (encoder)
PARTED_VALUES = 2**18  # smallest array whose squares are summed on all cores; others fit in a cache
PARTS = 16  # number of parts of that sum; adding them takes no time

# Recurrence: number of steps per loop iteration. On a CPU, an iteration costs as much as the gates
# of a step; on other devices, it is not free either (gru, lstm).
UNROLLED_STEPS = 4

# Embedding: largest table whose gradient is computed as a matrix product. On a GPU, the tokens
# would otherwise wait for each other to add to the same rows (bert_base).
PRODUCT_ROWS = 8
