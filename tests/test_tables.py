import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_tasks.tables import TableWriter

SCHEMA = pa.schema([("name", pa.string()), ("facts", pa.map_(pa.string(), pa.string()))])


def rows(count):
    return [{"name": f"row {i}", "facts": [("i", str(i))]} for i in range(count)]


@pytest.mark.parametrize(("count", "size", "groups"), [(0, 0, 0), (10, 0, 1), (9000, 0, 3), (10, 3 << 20, 4)])
def test_long_tables_and_long_rows_are_written_in_groups(tmp_path, count, size, groups):
    with TableWriter(tmp_path / "t.parquet", SCHEMA) as table:
        for row in rows(count):
            table.add(row, size)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.num_row_groups == groups
    assert file.schema_arrow == SCHEMA
    assert file.read().to_pylist() == rows(count)


def test_an_error_passes_through_and_adds_no_rows(tmp_path):
    with pytest.raises(KeyError), TableWriter(tmp_path / "t.parquet", SCHEMA) as table:
        table.add(rows(1)[0])
        raise KeyError
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 0
