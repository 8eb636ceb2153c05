"""Recorded requests: both formats, both encodings, and round trips."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.errors import InputError
from moeplan.files.scenario import trace
from moeplan.files.scenario.trace import read_trace

REQUESTS = st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=30)


@given(REQUESTS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[float, int, int]], packed: bool
) -> None:
    rows = sorted(requests)
    text = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{t!r},{p},{a}\n" for t, p, a in rows)
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = read_trace(path)
    assert list(found.arrival_s) == [t - rows[0][0] for t, _, _ in rows]
    assert list(found.input_tokens) == [p for _, p, _ in rows]
    assert list(found.output_tokens) == [a for _, _, a in rows]


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,output_tokens,arrival_s,input_tokens\r\nx,5,1.5,10\r\n\r\ny,6,2.5,11\r\n")
    found = read_trace(path)
    assert (list(found.arrival_s), list(found.input_tokens), list(found.output_tokens)) == (
        [0.0, 1.0],
        [10, 11],
        [5, 6],
    )


def test_shipped_excerpt_is_the_azure_conversation() -> None:
    folder = Path(__file__).parents[2] / "scenarios" / "traces"
    found = read_trace(folder / "azure-conversation-2023-excerpt.csv")
    assert found.format == "azure"
    assert len(found) == 4000
    assert (found.input_tokens[0], found.output_tokens[0]) == (374, 44)
    assert found.arrival_s[1] == pytest.approx(4.314579, abs=1e-6)


def test_first_twenty_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "0,0,1\n" * 100)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert [p.line for p in caught.value.problems][:3] == [2, 3, 4]
    assert len(caught.value.problems) == 20


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_FILE_BYTES", 10_000)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"0" * 1_000_000))
    with pytest.raises(InputError, match="too large when unpacked"):
        read_trace(path)


MOONCAKE = (
    '{"timestamp": 100, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]}\n'
    '{"timestamp": 3100, "input_length": 1024, "output_length": 1, "hash_ids": [7, 8]}\n\n'
    '{"timestamp": 3100, "input_length": 3, "output_length": 2, "hash_ids": [1]}\n'
)


def test_mooncake_is_told_by_its_content_and_keeps_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(MOONCAKE)
    found = read_trace(path)
    assert (found.format, found.block_tokens) == ("mooncake", 512)
    assert list(found.arrival_s) == pytest.approx([0.0, 3.0, 3.0])
    assert list(found.block_start) == [0, 2, 4, 4]  # a partly filled block is nobody else's
    assert list(found.block_id) == [7, 8, 7, 8]


def test_burstgpt_keeps_failed_requests(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
    )
    found = read_trace(path)
    assert (found.format, list(found.arrival_s), list(found.output_tokens)) == ("burstgpt", [0.0, 40.0], [18, 0])


def test_classes_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens,class\n0,1,1,chat\n1,2,2,batch\n")
    assert read_trace(path).classes == ["chat", "batch"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"timestamp": 0, "input_length": 5}\n', "t.jsonl:1: not a request of a Mooncake trace"),
        ('{"timestamp": 0,\n', "t.jsonl:1: not a line of JSON"),
        ("{" * 100_000, "not a line of JSON"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 1}\n', "negative arrival time"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 0}\n', "generates no token"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}\n', "more hash_ids than blocks"),
        ('{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": ["a"]}\n', "not a whole number"),
        ('{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": 5}\n', "not a request of a Mooncake"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 3, "output_length": 2}\n', "t.jsonl:5: unsorted"),
        ("[1, 2]\n", "not a known trace"),
    ],
)
def test_bad_json_lines(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert message in str(caught.value)
