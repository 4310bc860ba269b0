import http.server
import json
import os
import subprocess
import sys
import threading

import pyarrow
import pytest
from pyarrow import parquet

from areal_mega.config.errors import UserError
from areal_mega.data.records import read_records

ROWS = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}, {"question": "c", "answer": None}]
READ = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}, {"question": "c"}]


def read(path):
    return list(read_records(str(path), "data.train"))


def test_parquet_rows_are_counted(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    assert read(path) == [(f"{path}:row {i}", row) for i, row in enumerate(READ, 1)]


def test_nested_columns(tmp_path):
    row = {"prompt": [{"role": "user", "content": "hi"}], "reward_model": {"ground_truth": "1"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")[0][1] == row


def test_json_arrays_and_lines(tmp_path):
    array, lines = tmp_path / "array.json", tmp_path / "lines.json"
    array.write_text(json.dumps([READ[0], [READ[1]]]))
    lines.write_text("\n".join(map(json.dumps, READ)))
    assert read(array) == [(f"{array}:item 1", READ[0]), (f"{array}:item 2", [READ[1]])]
    assert read(lines)[1] == (f"{lines}:2", READ[1])


def save_as_datasets_does(folder, rows):
    """The files `datasets.Dataset.save_to_disk` writes: Arrow streams, and a state that names them."""
    folder.mkdir(parents=True)
    names = []
    for i, part in enumerate((rows[:2], rows[2:])):
        table = pyarrow.Table.from_pylist(part, schema=pyarrow.Table.from_pylist(rows).schema)
        names.append(f"data-0000{i}-of-00002.arrow")
        with (
            pyarrow.OSFile(str(folder / names[-1]), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_folders_that_datasets_saved(tmp_path):
    save_as_datasets_does(tmp_path / "all" / "train", ROWS)
    assert [row for _, row in read(tmp_path / "all" / "train")] == READ
    assert read(tmp_path / "all" / "train")[2][0].endswith("data-00001-of-00002.arrow:row 1")
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="holds several splits; name one: .*all/train, .*all/test"):
        read(tmp_path / "all")


def test_a_folder_of_files_is_read_in_order(tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps(READ[1]))
    (tmp_path / "a.jsonl").write_text(json.dumps(READ[0]))
    (tmp_path / "README.md").write_text("about")
    assert [row for _, row in read(tmp_path)] == READ[:2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data.train=.*empty: the folder has no .jsonl"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_broken_table_is_named(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=rf"x.{suffix}: cannot be read as {suffix.capitalize()}"):
        read(path)


def test_what_is_no_record_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n["b"]\n')
    with pytest.raises(UserError, match="x.jsonl:2: expected a JSON object, found list"):
        read(path)


def test_files_of_the_hub(tmp_path):
    """A server that speaks the Hub's protocol, as far as the download of one file needs it."""
    content = json.dumps(READ[0]).encode()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            there = self.path == "/datasets/owner/name/resolve/main/data/x.jsonl"
            self.send_response(200 if there else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(content) if there else 0))
            self.end_headers()
            if body and there:
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    script = (
        "import sys\nfrom areal_mega.config.errors import UserError\nfrom areal_mega.data.records import read_records\n"
        "try: print(list(read_records(sys.argv[1], 'data.train'))[0][1])\nexcept UserError as error: print(error)"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip

    def fetch(path):
        command = [sys.executable, "-P", "-c", script, path]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout

    try:
        assert fetch("hf://datasets/owner/name/data/x.jsonl") == f"{READ[0]}\n"
        assert "cannot be fetched from the Hugging Face Hub" in fetch("hf://datasets/owner/name/data/y.jsonl")
        assert "expected hf://datasets/OWNER/NAME/FILE" in fetch("hf://datasets/owner/name")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
