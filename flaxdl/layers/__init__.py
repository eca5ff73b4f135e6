"""Layers equivalent to the PyTorch layers of the same name."""

from flaxdl.layers.attention import MultiHeadAttention, PackedMultiHeadAttention
from flaxdl.layers.convolution import Conv
from flaxdl.layers.dropout import Dropout, DropPath, drop_path_rates
from flaxdl.layers.linear import Embedding, Linear
from flaxdl.layers.normalization import BatchNorm, LayerNorm
from flaxdl.layers.pooling import adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool
from flaxdl.layers.positions import AddPositions, sinusoidal_positions
from flaxdl.layers.recurrent import GRU, LSTM, RNN
from flaxdl.layers.residual import ResidualBlock
from flaxdl.layers.transformer import (
    TransformerBlock,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from flaxdl.ops.attention import dot_product_attention
from flaxdl.ops.masks import causal_mask, padding_mask, token_mask

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AddPositions",
    "BatchNorm",
    "Conv",
    "DropPath",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "PackedMultiHeadAttention",
    "ResidualBlock",
    "TransformerBlock",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "causal_mask",
    "dot_product_attention",
    "drop_path_rates",
    "max_pool",
    "padding_mask",
    "sinusoidal_positions",
    "token_mask",
]
