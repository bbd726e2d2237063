"""The rules of pytorch.org/memory_viz, by which a snapshot has to play: the opcodes that its unpickler takes, blocks that tile
their segments, and a history that replays backwards from the final state."""

import bisect
import pickletools

OPCODES = set(
    "PROTO FRAME EMPTY_DICT EMPTY_LIST EMPTY_TUPLE MARK APPEND APPENDS SETITEM SETITEMS LIST DICT TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "NEWTRUE NEWFALSE NONE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINPUT LONG_BINPUT MEMOIZE "
    "BINGET LONG_BINGET STOP".split()
)

ACTIONS = set(
    "alloc free_requested free_completed segment_alloc segment_free segment_map segment_unmap snapshot oom annotate".split()
)
STATES = {"active_allocated", "active_pending_free", "active_awaiting_free", "inactive"}
TRACE_KEYS = {"action", "size", "stream", "time_us"}
BLOCK_KEYS = {"size", "requested_size", "state", "frames", "address"}
SEGMENT_KEYS = {"device", "address", "total_size", "stream", "blocks", "allocated_size", "active_size", "segment_type"}

_MARK = object()


def load(data):
    """Unpickles with the page's opcodes and nothing else, by a machine of our own."""
    stack, memo = [], {}

    def to_mark():
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for opcode, argument, position in pickletools.genops(data):
        name = opcode.name
        assert name in OPCODES, f"opcode {name} at {position} is not one that the page takes"
        if name == "PROTO":
            assert 2 <= argument <= 4, f"protocol {argument}"
        elif name == "FRAME":
            pass
        elif name == "STOP":
            assert len(stack) == 1
            return stack[0]
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            items = to_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = to_mark()
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "LIST":
            stack.append(to_mark())
        elif name == "DICT":
            items = to_mark()
            stack.append(dict(zip(items[::2], items[1::2])))
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            stack[-count:] = [items]
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            stack.append(argument)
    raise AssertionError("no STOP")


def check(snapshot, replay=True):
    """Asserts everything that the page relies on."""
    assert {"segments", "device_traces"} <= snapshot.keys()
    assert isinstance(snapshot.get("allocator_settings", {}), dict)
    for segment in snapshot["segments"]:
        check_segment(segment)
    check_apart(snapshot["segments"])
    for device, trace in enumerate(snapshot["device_traces"]):
        for entry in trace:
            check_entry(entry)
        times = [entry["time_us"] for entry in trace]
        assert times == sorted(times)
        if replay:
            replay_backwards([s for s in snapshot["segments"] if s["device"] == device], trace)


def check_segment(segment):
    assert SEGMENT_KEYS <= segment.keys(), SEGMENT_KEYS - segment.keys()
    assert segment["segment_type"] in ("large", "small")
    at = segment["address"]
    sums = {"allocated_size": 0, "active_size": 0, "requested_size": 0}
    previous_free = False
    for block in segment["blocks"]:
        assert BLOCK_KEYS <= block.keys(), BLOCK_KEYS - block.keys()
        assert block["state"] in STATES
        assert block["address"] == at, "blocks tile their segment in order"
        assert block["size"] > 0 and block["requested_size"] <= block["size"]
        at += block["size"]
        if block["state"] == "active_allocated":
            sums["allocated_size"] += block["size"]
            sums["requested_size"] += block["requested_size"]
        if block["state"] != "inactive":
            sums["active_size"] += block["size"]
        previous_free = block["state"] == "inactive"
    assert at == segment["address"] + segment["total_size"], "blocks cover their segment"
    assert sums["allocated_size"] == segment["allocated_size"]
    assert sums["active_size"] == segment["active_size"]
    return previous_free


def check_apart(segments):
    for device in {segment["device"] for segment in segments}:
        spans = sorted((s["address"], s["address"] + s["total_size"]) for s in segments if s["device"] == device)
        for (_, end), (start, _) in zip(spans, spans[1:]):
            assert end <= start, "segments overlap"


def check_entry(entry):
    assert TRACE_KEYS <= entry.keys(), TRACE_KEYS - entry.keys()
    assert entry["action"] in ACTIONS
    assert ("device_free" if entry["action"] == "oom" else "addr") in entry
    # torch leaves the key out where it has no stack trace.
    for frame in entry.get("frames", []):
        assert {"name", "filename", "line"} <= frame.keys()


class _Ranges:
    """Mapped addresses, as disjoint sorted ranges."""

    def __init__(self):
        self.starts, self.ends = [], []

    def add(self, start, end):
        at = bisect.bisect_left(self.ends, start)
        upto = bisect.bisect_right(self.starts, end)
        if at < upto:
            start, end = min(start, self.starts[at]), max(end, self.ends[upto - 1])
        self.starts[at:upto], self.ends[at:upto] = [start], [end]

    def remove(self, start, end):
        at = bisect.bisect_right(self.starts, start) - 1
        assert at >= 0 and end <= self.ends[at], "a segment event names memory that is not mapped"
        old_start, old_end = self.starts[at], self.ends[at]
        rests = [(a, b) for a, b in ((old_start, start), (end, old_end)) if a < b]
        self.starts[at : at + 1] = [a for a, _ in rests]
        self.ends[at : at + 1] = [b for _, b in rests]

    def holds(self, start, end):
        at = bisect.bisect_right(self.starts, start) - 1
        return at >= 0 and end <= self.ends[at]


def replay_backwards(segments, trace):
    """From the final state to the first entry: a block lies within mapped memory at each step."""
    mapped = _Ranges()
    blocks = {}
    for segment in segments:
        mapped.add(segment["address"], segment["address"] + segment["total_size"])
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                blocks[block["address"]] = block["requested_size"] or block["size"]
    for entry in reversed(trace):
        action, size = entry["action"], entry["size"]
        if action in ("segment_map", "segment_alloc"):
            mapped.remove(entry["addr"], entry["addr"] + size)
        elif action in ("segment_unmap", "segment_free"):
            mapped.add(entry["addr"], entry["addr"] + size)
        elif action == "free_completed":
            assert entry["addr"] not in blocks, "a block is freed while another lives there"
            assert mapped.holds(entry["addr"], entry["addr"] + size), "a block lies outside every segment"
            blocks[entry["addr"]] = size
        elif action == "alloc":
            assert entry["addr"] in blocks, "an allocation that nothing frees and that is not there in the end"
            assert mapped.holds(entry["addr"], entry["addr"] + size), "a block lies outside every segment"
            del blocks[entry["addr"]]
