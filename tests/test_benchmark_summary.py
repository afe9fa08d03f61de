"""The end of a benchmark run: one line per op, from the rows of a run."""

from benchmarks import summary

COPY = {"share_of_ceiling": 0.123, "ceiling": "copy"}


def row(op, implementation, role, seconds, notes=None, **size):
    return {
        "op": op,
        "size": size,
        "implementation": implementation,
        "role": role,
        "seconds": seconds,
        "notes": notes or {},
    }


def test_a_line_per_op():
    rows = [
        row("corrupt", "eager", "rival", 8e-3, B=64),
        row("corrupt", "torch.compile", "rival", 4e-3, B=64),
        row("corrupt", "ggm_kernels cpu", "ours", 1e-3, COPY, B=64),
        row("corrupt", "copy", "floor", 1e-4, B=64),
        row("corrupt, int32", "eager", "rival", 1.0, B=64),
        row("step", "ggm_kernels cpu", "ours", 3e-3, N=1),
        row("step", "multinomial", "rival", 2e-3, N=1),
        row("even", "ggm_kernels cpu", "ours", 1.01, N=1),
        row("even", "multinomial", "rival", 1.0, N=1),
        row("alone", "ggm_kernels cpu", "ours", 1.0, N=1),
    ]
    lines = list(summary.lines(rows))
    assert [line.split()[0] for line in lines[:4]] == ["op", "corrupt", "step", "even"]
    for word in ("B=64", "1 ms", "torch.compile", "4x faster", "12 % of copying its bytes"):
        assert word in lines[1]
    assert "1.5x slower" in lines[2]
    assert "as fast" in lines[3]
    assert lines[4] == ""
    assert "alone" not in "".join(lines[:4])


def test_nothing_without_a_rival():
    assert list(summary.lines([row("alone", "ggm_kernels cpu", "ours", 1.0, N=1)])) == []
