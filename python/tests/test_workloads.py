"""The two programs of workloads.py."""

import workloads


def test_ours_holds_no_more_than_expandable_segments():
    rows = [workloads.measure(program, name, workloads.STEPS) for program in workloads.PROGRAMS for name in workloads.ALLOCATORS]
    print("\n" + workloads.table(rows))
    for row in rows:
        assert row["backend"] == ("stratalloc" if row["allocator"] == "stratalloc" else "native")
    for program in workloads.PROGRAMS:
        native, _, ours = (row for row in rows if row["program"] == program)
        # The same program, so the same requests.
        assert ours["calls"] == native["calls"]
        assert abs(ours["peak_live"] - native["peak_live"]) <= native["peak_live"] // 1000
    assert not workloads.over(rows)
