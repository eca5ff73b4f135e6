"""Names and times of operations, as traces of CPUs, GPUs and TPUs tell them."""

from types import SimpleNamespace as Of

from flaxdl.analysis import profiling


def trace(*events, line="Stream #14(Compute)"):
    """What `ProfileData` reads, with events (name, nanoseconds, statistics)."""
    found = [Of(name=n, duration_ns=ns, stats=tuple(stats.items())) for n, ns, stats in events]
    return Of(planes=[Of(lines=[Of(name=line, events=found)])])


def test_kernels_that_a_gpu_was_handed_together_are_told_apart():
    recorded = {"hlo_op": "command_buffer_1"}
    data = trace(
        ("loop_add_fusion_4", 30.0, recorded),
        ("nvjet_sm90_tst_128x160", 50.0, recorded),
        ("void cutlass::Kernel<...>", 20.0, {"hlo_op": "cudnn-conv.102"}),
        ("cudaGraphLaunch", 900.0, {}),  # of the host
    )
    assert list(profiling._events(data)) == [
        ("loop_add_fusion_4", 30.0),
        ("nvjet_sm90_tst_128x160", 50.0),
        ("cudnn-conv.102", 20.0),
    ]


def test_kernels_find_the_layer_of_their_operation(tmp_path, monkeypatch):
    (tmp_path / "a.xplane.pb").touch()
    data = trace(
        ("loop_add_fusion_4", 3e7, {"hlo_op": "command_buffer_1"}),
        ("wgrad", 1e7, {"hlo_op": "cudnn-conv-bw-filter.5"}),
    )
    monkeypatch.setattr(profiling.ProfileData, "from_file", lambda path: data)
    compiled = """
      %loop_add_fusion.4 = f32[8] fusion(%p), metadata={op_name="jit(train)/jvp(Bert)/norm1/add"}
      %cudnn-conv-bw-filter.5 = f32[8] custom-call(), metadata={op_name="jit(train)/transpose(jvp(Bert))/conv1/conv"}
    """  # noqa: E501
    operations = profiling._operations(tmp_path, dict(profiling._NAMED.findall(compiled)))
    found = [(o.name, o.source, o.milliseconds, o.share) for o in operations]
    assert found == [
        ("loop_add_fusion_4", "norm1/add", 30 / profiling.STEPS, 0.75),
        ("cudnn-conv-bw-filter.5", "conv1/conv, backward", 10 / profiling.STEPS, 0.25),
    ]


def test_operations_of_a_tpu_are_named_by_their_text():
    data = trace(("%fusion.3 = f32[8] fusion(...)", 5.0, {}), line="XLA Ops")
    assert list(profiling._events(data)) == [("fusion.3", 5.0)]
