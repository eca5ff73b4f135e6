"""Windows for forecasting: values, borders, missing values, times and the seasonal naive error."""

import json
import logging

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from flaxdl.data import ArrayDataset, ElNino, Scaling, SeriesTable
from flaxdl.data.scaling import FittedScaling
from flaxdl.data.source import take_fraction
from flaxdl.data.windows import naive_error

pytestmark = pytest.mark.quick


def write(path, values, times=None, header="time,a,b"):
    times = range(1, len(values) + 1) if times is None else times
    rows = [f"{time},{a},{b}" for time, (a, b) in zip(times, values, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def table(path, **settings):
    defaults = {"context": 4, "horizon": 3, "season": 2}
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.3}
    names = {"columns": ("a", "b"), "time": "time"}
    return SeriesTable(str(path), **(names | defaults | fractions | settings))


VALUES = np.stack([np.arange(40.0), 100 + np.arange(40.0) ** 2], axis=1)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "series.csv", VALUES)


def test_windows_lie_within_their_parts_in_time(path):
    splits = table(path).load(seed=0)
    # 20, 8 and 12 steps, with windows of 7.
    parts = {"train": (0, 20), "validation": (20, 28), "test": (28, 40)}
    for split, (start, end) in parts.items():
        arrays = getattr(splits, split).arrays()
        count = end - start - 7 + 1
        assert arrays["inputs"].shape == (count, 4, 2)
        assert arrays["label"].shape == (count, 3, 2)
        for number in range(count):
            window = VALUES[start + number : start + number + 7]
            assert start + number + 7 <= end
            np.testing.assert_array_equal(arrays["inputs"][number], window[:4])
            np.testing.assert_array_equal(arrays["label"][number], window[4:])
            # Season 2: the last two values of the context, and the first of them again.
            np.testing.assert_array_equal(arrays["naive"][number], window[[2, 3, 2]])
    assert splits.classes is None


def test_the_naive_error_is_that_of_the_training_part(path):
    # y(t) - y(t - 2) is 2 in the first series, and t² - (t - 2)² = 4 t - 4 for t from 2 to 19.
    expected = [2, np.mean(4 * np.arange(2, 20) - 4)]
    splits = table(path).load(seed=0)
    for part in (splits.train, splits.test):
        np.testing.assert_allclose(part.gather(np.array([0]))["naive_error"], [expected])
    with_gap = np.array([[1.0], [2.0], [np.nan], [5.0], [4.0]])
    np.testing.assert_allclose(naive_error(with_gap, 1), [(1 + 1) / 2])
    assert np.isnan(naive_error(with_gap[:1], 1)).all()


def test_gaps_and_missing_values_leave_out_windows(tmp_path, caplog):
    values = VALUES.astype(object)
    values[3, 1] = ""  # in training
    kept = [row for row in range(40) if row != 34]  # a gap in the test part
    path = write(tmp_path / "gaps.csv", values[kept], times=[f"2024-01-{n + 1:02}" if n < 31 else
                 f"2024-02-{n - 30:02}" for n in kept])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        splits = table(path, context=2, horizon=1).load(seed=0)
    assert "missing in 2 of 40 steps; 6 of 34 windows contain them and are left out" in caplog.text
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [15, 6, 7]
    for split in (splits.train, splits.validation, splits.test):
        assert all(np.isfinite(array).all() for array in split.arrays().values())
    starts = splits.test.arrays()["inputs"][:, 0, 0]
    np.testing.assert_array_equal(starts, [28, 29, 30, 31, 35, 36, 37])


def test_unsorted_rows_are_sorted(tmp_path, path, caplog):
    order = np.random.default_rng(0).permutation(40)
    with caplog.at_level(logging.WARNING):
        shuffled = table(write(tmp_path / "shuffled.csv", VALUES[order], times=order + 1))
    expected = table(path).load(seed=0).train
    found = shuffled.load(seed=0).train
    assert "is not in order; the rows are sorted by time" in caplog.text
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(found.arrays()["label"], expected.arrays()["label"])


def test_formats_agree(tmp_path, path):
    expected = table(path).load(seed=0).test.arrays()
    columns = {"a": VALUES[:, 0], "b": VALUES[:, 1], "time": np.arange(40)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "series.parquet")
    rows = [json.dumps({"a": a, "b": b, "time": t}) for t, (a, b) in enumerate(VALUES)]
    (tmp_path / "series.jsonl").write_text("\n".join(rows))
    for name in ("series.parquet", "series.jsonl"):
        found = table(tmp_path / name).load(seed=0).test.arrays()
        for field, array in expected.items():
            np.testing.assert_array_equal(found[field], array)
    without_time = table(path, time=None)
    np.testing.assert_array_equal(without_time.load(0).test.arrays()["label"], expected["label"])
    assert without_time.read().times is None


def refused(tmp_path, match, text=None, **settings):
    path = tmp_path / "bad.csv"
    path.write_text(text or "time,a,b\n" + "\n".join(f"{n},{n},0" for n in range(40)))
    with pytest.raises(ValueError, match=match):
        table(path, **settings).load(seed=0)


def test_invalid_tables_are_named(tmp_path):
    head = "time,a,b\n1,1,1\n"
    refused(tmp_path, r"1 line with invalid .*\n  .*bad.csv:3 has 'x' in column b", head + "2,2,x")
    refused(tmp_path, r"bad.csv:3 has 'inf' in column a, which is not", head + "2,inf,2")
    refused(tmp_path, r"bad.csv:3 has '3,5' in column a", head + '2,"3,5",2')
    many = head + "\n".join(f"{n},?,1" for n in range(2, 10))
    refused(tmp_path, r"8 lines with invalid values:(?s:.*)and 3 more", many)
    refused(tmp_path, "each time must occur once", head + "2,2,2\n2,3,3")
    refused(tmp_path, "no column 'b'", "time,a,c\n1,1,1")
    refused(tmp_path, "validation part of .* has 8 of 40 steps, fewer than a window of context 9 "
            r"\+ horizon 3 = 12", context=9)  # fmt: skip
    refused(tmp_path, "train part of .* has 1 of 1 steps", head)
    holes = "time,a,b\n" + "\n".join(f"{n},{n},{'' if n % 5 else n}" for n in range(40))
    refused(tmp_path, "train part .* no context 4 .* consecutive steps without missing", holes)
    weekdays = [day for day in np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
                if np.is_busday(day)]  # fmt: skip
    business_days = "time,a,b\n" + "\n".join(f"{day},1,2" for day in weekdays)
    refused(tmp_path, "for business days, omit the time column", business_days)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"season": 5}, "season must be at most context = 4, .* got 5"),
        ({"test_fraction": 0.9}, "must sum to less than 1"),
        ({"separator": ",,"}, "separator must be one character"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        table("a.csv", **settings)
    with pytest.raises(ValueError, match="columns must be the names of different columns"):
        SeriesTable("a.csv", ("a", "time"), "time", context=2, horizon=1)
    with pytest.raises(ValueError, match=r"such as \('visits',\), got 'visits'"):
        SeriesTable("a.csv", "visits", context=2, horizon=1)  # pyright: ignore[reportArgumentType]


def test_scaling_is_that_of_the_training_windows(path, tmp_path):
    splits = table(path).load(seed=0)
    fitted = Scaling().fit(splits.train)
    windows = np.concatenate([splits.train.arrays()[name] for name in ("inputs", "label")], axis=1)
    np.testing.assert_allclose(fitted.mean, windows.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, windows.std((0, 1)), rtol=1e-12)
    raw, scaled = splits.test.arrays(), fitted.apply(splits.test).arrays()
    for name in ("inputs", "label", "naive"):
        assert scaled[name].dtype == np.float32
        np.testing.assert_allclose(fitted.unscaled(scaled[name]), raw[name], rtol=1e-5)
    np.testing.assert_allclose(scaled["scale"], np.tile(fitted.std, (6, 1)), rtol=1e-6)
    np.testing.assert_allclose(scaled["naive_error"], raw["naive_error"], rtol=1e-6)
    fitted.save(tmp_path)
    restored = Scaling().restore(tmp_path)
    assert isinstance(restored, FittedScaling)
    assert vars(restored) == vars(fitted)
    assert restored.horizon == 3
    half = Scaling().fit(take_fraction(splits.train, 0.5, seed=0))
    assert half.mean != fitted.mean


def test_a_constant_series_is_not_divided(tmp_path):
    path = write(tmp_path / "flat.csv", np.full((40, 2), 1e6 + 0.1))
    splits = table(path).load(seed=0)
    fitted = Scaling().fit(splits.train)
    assert fitted.std == (1.0, 1.0)
    np.testing.assert_allclose(fitted.apply(splits.test).arrays()["label"], 0, atol=1e-6)


def test_scaling_needs_windows():
    with pytest.raises(ValueError, match=r"Scaling needs windows .* got inputs \[3, 2\]"):
        Scaling().fit(ArrayDataset({"inputs": np.zeros((3, 2))}))


def test_el_nino():
    pytest.importorskip("statsmodels")
    source = ElNino(context=24, horizon=12, season=12)
    series = source.read()
    assert series.values.shape == (732, 1)
    assert series.values[0, 0] == 23.11
    assert series.values[-1, 0] == pytest.approx(22.07, abs=2)
    assert series.times.after(2) == ["2011-01", "2011-02"]
    splits = source.load(seed=0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [441, 75, 111]


def test_el_nino_names_its_package(monkeypatch):
    monkeypatch.setattr("flaxdl.data.el_nino.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"statsmodels: run `pip install 'flaxdl\[series\]'`"):
        ElNino(context=24, horizon=12).load(seed=0)


def test_el_nino_reads_tables_of_its_columns(tmp_path):
    (tmp_path / "new.csv").write_text("month,temperature\n2011-01,24.5\n2011-02,25.5\n")
    series = ElNino(context=2, horizon=1).read(str(tmp_path / "new.csv"))
    np.testing.assert_array_equal(series.values, [[24.5], [25.5]])
    assert series.times.after(1) == ["2011-03"]
