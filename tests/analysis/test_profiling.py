"""Names and times of operations in the traces of CPUs, GPUs and TPUs."""

from types import SimpleNamespace as Of

from rich.console import Console

from flaxdl.analysis import profiling
from flaxdl.analysis.profiling import Operation, Profile


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
    sources = dict(profiling._NAMED.findall(compiled))
    found = profiling._operations(tmp_path, sources, {"norm1": {"scale": 0.0}})
    ms = [duration / profiling.STEPS for duration in (30, 10)]
    assert found == [
        Operation("loop_add_fusion_4", "norm1/add", "norm1", False, ms[0], 0.75),
        Operation("cudnn-conv-bw-filter.5", "conv1/conv, backward", "", True, ms[1], 0.25),
    ]


def test_modules_are_found_in_the_paths_of_operations():
    params = {"layer1.0": {"conv1": {"kernel": 0.0}, "bn1": {"scale": 0.0}}, "fc": {"bias": 0.0}}
    for source, module in {
        "jit(train)/jvp(ResNet)/layer1.0/conv1/conv_general_dilated": "layer1.0.conv1",
        "jit(train)/transpose(jvp(ResNet))/layer1.0/checkpoint/bn1/cond/mul": "layer1.0.bn1",
        "jit(train)/vmap(fc)/dot_general": "fc",
        "jit(train)/layer1.0/add": "layer1.0",
        "jit(train)/jit(softmax)/exp": "",
    }.items():
        assert profiling._module(source, params) == module


def test_the_table_adds_up_modules(tmp_path):
    operations = [
        Operation("a", "", "conv1", False, 1.0, 0.1),
        Operation("b", "", "conv1", True, 4.0, 0.4),
        Operation("c", "", "", False, 3.0, 0.3),
        Operation("d", "", "fc", True, 1.5, 0.15),
        Operation("e", "", "bn1", False, 0.5, 0.05),
    ]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(Profile(operations, tmp_path, 12.34).table(2))
    text = captured.get()
    rows = [line.split() for line in text.splitlines()]
    assert ["conv1", "1.00", "4.00", "5.00", "50.0%"] in rows
    assert ["(not", "in", "a", "layer)", "3.00", "0.00", "3.00", "30.0%"] in rows
    assert ["2", "others", "0.50", "1.50", "2.00", "20.0%"] in rows
    assert ["total", "4.50", "5.50", "10.00"] in rows
    assert "a step takes 12.3 ms" in text


def test_operations_of_a_tpu_are_named_by_their_text():
    data = trace(("%fusion.3 = f32[8] fusion(...)", 5.0, {}), line="XLA Ops")
    assert list(profiling._events(data)) == [("fusion.3", 5.0)]
