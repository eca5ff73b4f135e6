"""Cost of a compiled step: collectives in the text of a program, and figures of the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxdl.analysis.compiled_step import Collective, collectives, cost_of
from flaxdl.training.distributed.mesh import make_mesh

# Lines of TPU programs, shortened.
OVERLAPPED = """
%fused.1 (p: bf16[1,128,1024]) -> bf16[1,1024,1024] {
  %all-gather.21 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3
}
%fused.2 (p: bf16[1,128,1024]) -> bf16[1,1024,1024] {
  %all-gather.23 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=3
}
  %all-gather.26 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%x), channel_id=1
  %all-reduce = (bf16[]{:T(256)}, f32[3,5]{1,0}) all-reduce(%a, %b), channel_id=5, to_apply=%sum
  %add = f32[3,5]{1,0} add(%all-reduce.1, %all-reduce.2)
"""
ASYNCHRONOUS = """
  %s = (f32[8,128]{1,0}, f32[64,128]{1,0}, u32[]{:S(2)}) all-gather-start(%x), channel_id=7
  %d = f32[64,128]{1,0} all-gather-done(%s)
  %p = (s8[4]{0}, s8[4]{0}, u32[], u32[]) collective-permute-start(%y), channel_id=8
  %q = s8[4]{0} collective-permute-done(%p)
  %r = pred[16]{0} all-to-all(%z)
  %t = f8e4m3fn[16]{0} all-to-all(%z)
  %u = s4[16]{0} reduce-scatter(%z), channel_id=9
"""


def test_copies_of_a_collective_in_several_fusions_are_one():
    assert collectives(OVERLAPPED) == {
        "all-gather": Collective(2, 2 * 1024 * 1024 * 2),
        "all-reduce": Collective(1, 2 + 3 * 5 * 4),
    }


def test_of_asynchronous_collectives_only_the_results_are_counted():
    assert collectives(ASYNCHRONOUS) == {
        "all-gather": Collective(1, 64 * 128 * 4),
        "collective-permute": Collective(1, 4),
        "all-to-all": Collective(2, 32),
        "reduce-scatter": Collective(1, 8),
    }
    assert collectives("ROOT %add = f32[2]{0} add(%all-reduce, %all-reduce)") == {}


@pytest.mark.eight_devices
def test_the_cost_of_a_product_across_devices():
    mesh = make_mesh()
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    x = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=split)
    compiled = jax.jit(lambda x: jnp.dot(x.T, x), out_shardings=whole).lower(x).compile()
    cost = cost_of(compiled)
    assert cost.flops == pytest.approx(2 * 64 * 32 * 32 / 8, rel=0.1)
    assert cost.bytes_accessed >= (64 * 32 / 8 + 32 * 32) * 4
    assert cost.collectives == {"all-reduce": Collective(1, 32 * 32 * 4)}
