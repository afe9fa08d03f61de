"""Results of several processes as one."""

import json

import pytest

from benchmarks import merge, results_file


def part(op: str, copies: dict, absent: dict, **machine) -> dict:
    row = {
        "op": op,
        "size": {"N": 1},
        "implementation": "x",
        "role": "ours",
        "seconds": 1.0,
        "rounds": 1,
        "notes": {},
    }
    ceilings = {"cuda": {"copy_GB_per_s": copies, "matrix_Gflop_per_s": {}}} if copies else {}
    facts = {"cpu": "c", "cores": 2, "gpu": "g", "versions": {"torch": "2"}, "backends": {}}
    facts |= {"ceilings": ceilings, "absent": absent, **machine}
    return {"date": "2026-01-02", "commit": "abc", "machine": facts, "rows": [row]}


def test_rows_in_their_order_and_ceilings_of_all():
    parts = [
        part("b", {"1048576": 5.0, "65536": 1.0}, {"liger-kernel": "why"}),
        part("a", {"65536": 2.0, "131072": 3.0}, {"flashinfer-python": "why"}),
        part("c", {}, {}),
    ]
    merged = merge.merge(parts)
    assert [row["op"] for row in merged["rows"]] == ["b", "a", "c"]
    copies = merged["machine"]["ceilings"]["cuda"]["copy_GB_per_s"]
    assert list(copies.items()) == [("65536", 1.0), ("131072", 3.0), ("1048576", 5.0)]
    assert list(merged["machine"]["absent"]) == ["flashinfer-python", "liger-kernel"]
    assert parts[0]["machine"]["ceilings"]["cuda"]["copy_GB_per_s"] == {"1048576": 5.0, "65536": 1.0}


@pytest.mark.parametrize("fact", [{"gpu": "h"}, {"versions": {"torch": "3"}}])
def test_other_machines_are_refused(fact):
    with pytest.raises(ValueError, match=f"{next(iter(fact))}: got .*; allowed: results of one machine"):
        merge.merge([part("a", {}, {}), part("b", {}, {}, **fact)])


def test_other_commits_are_refused():
    with pytest.raises(ValueError, match="commit: got 'abd' beside 'abc'"):
        merge.merge([part("a", {}, {}), part("b", {}, {}) | {"commit": "abd"}])


def test_what_is_kept_can_be_read_and_merged_again(tmp_path, capsys):
    for op in "ab":
        (tmp_path / f"{op}.json").write_text(json.dumps(part(op, {"65536": 1.0}, {})))
    words = [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--keep", str(tmp_path / "kept")]
    merge.main(words)
    (kept,) = (tmp_path / "kept").iterdir()
    assert f"2 rows in {kept}" in capsys.readouterr().out
    merge.main([str(kept), "--keep", str(tmp_path / "again")])
    assert (tmp_path / "again" / kept.name).read_text() == kept.read_text()
    assert [case.op for case in results_file.parse(json.loads(kept.read_text())).cases] == ["a", "b"]
