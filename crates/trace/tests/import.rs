//! Imports: real snapshots against what their programs say they did, logs, and files that mean harm.

use std::path::PathBuf;

use stratalloc_trace::import::{ImportFault, Notes, PickleFault, decode, load};
use stratalloc_trace::{Op, Trace};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn fault(bytes: &[u8]) -> ImportFault {
    decode(bytes, "test", None).unwrap_err().fault
}

#[test]
fn real_snapshots_give_what_their_programs_did() {
    for kind in ["native", "expandable"] {
        let imported = load(&data(&format!("{kind}.pickle")), None).unwrap();
        let expected = Trace::load(&data(&format!("{kind}.trace"))).unwrap();
        assert_eq!(imported.trace.ops, expected.ops, "{kind}");
        assert_eq!(imported.trace.live_at_end, expected.live_at_end);
        assert_eq!(imported.trace.peak_live_bytes, expected.peak_live_bytes);
        assert_eq!((imported.trace.name.as_str(), imported.trace.streams), (kind, 2));
        let Notes { from_before, failed, deferred, pressed, left_out, private, .. } = imported.notes;
        assert_eq!((from_before, failed, deferred, pressed, left_out, private), (2, 1, 7, 1, 0, 0), "{kind}");
        let words = imported.notes.to_string();
        assert!(words.starts_with("from a PyTorch snapshot; 2 allocated before the record begins"), "{words}");
        // As text it decodes to the same: all that the format asks for holds.
        let mut text = Vec::new();
        imported.trace.write(&mut text).unwrap();
        assert_eq!(Trace::decode(&text).unwrap(), imported.trace);
    }
}

#[test]
fn a_trace_is_taken_as_it_is() {
    let path = data("native.trace");
    let imported = load(&path, None).unwrap();
    assert_eq!(imported.trace, Trace::load(&path).unwrap());
    assert_eq!((imported.notes.clone(), imported.notes.to_string().as_str()), (Notes::default(), ""));
}

#[test]
fn a_log_of_rmm() {
    let log = "Thread,Time,Action,Pointer,Size,Stream\n\
        7,10:00:00:000001,allocate,0x7f0000000000,1024,0x0\n\
        7,10:00:00:000002,allocate,0x7f0000000400,512,0x55d0\n\
        7,10:00:00:000003,free,0x7e0000000000,4096,0x0\n\
        7,10:00:00:000004,free,0x7f0000000000,1024,0x55d0\n\
        7,10:00:00:000005,allocate failure,(nil),1099511627776,0x0\n\
        7,10:00:00:000006,free,0x123,0,0x0\n\
        7,10:00:00:000007,allocate,0x7f0000000000,16,0x0\r\n\n";
    let imported = decode(log.as_bytes(), "log", None).unwrap();
    let alloc = |bytes, stream| Op::Alloc { bytes, stream };
    let (free, record) = (|id| Op::Free { id }, |id, stream| Op::Record { id, stream });
    assert_eq!(
        imported.trace.ops,
        [
            alloc(4096, 0),
            alloc(1024, 0),
            alloc(512, 1),
            free(0),
            // Freed on the other stream: the next to use it comes after that one's work.
            record(1, 1),
            free(1),
            alloc(1 << 40, 0),
            free(3),
            alloc(16, 0),
        ]
    );
    assert_eq!((imported.notes.from_before, imported.notes.failed, imported.notes.left_out), (1, 1, 1));
    assert_eq!(imported.trace.live_at_end, [2, 4]);
}

#[test]
fn columns_of_a_log_may_stand_anywhere() {
    let imported = decode(b"Stream,Size,Pointer,Action\n0,5,ff,allocate\n", "log", None).unwrap();
    assert_eq!(imported.trace.ops, [Op::Alloc { bytes: 5, stream: 0 }]);
}

#[test]
fn bad_logs_name_the_line() {
    for (line, words) in [
        ("1,2,allocate,0x1", "line 2: there is no Size: the line was cut off"),
        ("1,2,allocate,0xzz,5,0", "line 2: '0xzz' is no Pointer"),
        ("1,2,allocate,1,-5,0", "line 2: '-5' is no Size"),
        ("1,2,realloc,1,5,0", "line 2: 'realloc' is no action"),
        ("1,2,allocate,1,18446744073709551615,0", "128 TiB"),
    ] {
        let text = format!("Thread,Time,Action,Pointer,Size,Stream\n{line}\n");
        let message = fault(text.as_bytes()).to_string();
        assert!(message.starts_with(words) || message.contains(words), "{line}: {message}");
    }
    let message = fault(b"Action,Pointer,Size,Stream\nallocate,1,1,0\n\xff\n").to_string();
    assert_eq!(message, "line 3: a text that is not UTF-8");
}

#[test]
fn what_is_none_of_them_is_said_to_be() {
    for bytes in [&b""[..], b"hello\n", b"PK\x03\x04", b"\x80\x01.", b"\x80\x06."] {
        assert_eq!(fault(bytes), ImportFault::Unknown);
    }
    let message = fault(b"").to_string();
    assert!(
        message.contains("# stratalloc-trace 1") && message.contains("pickle") && message.contains("RMM"),
        "{message}"
    );
    let missing = load(&data("nothing.pickle"), None).unwrap_err().to_string();
    assert!(missing.contains("nothing.pickle") && missing.contains("cannot be read"), "{missing}");
}

/// What a pickle's machine says.
fn pickle_fault(bytes: &[u8]) -> PickleFault {
    match fault(bytes) {
        ImportFault::Pickle { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn no_pickle_runs_anything() {
    let forbidden = |name: &str| PickleFault::Forbidden { name: name.to_owned() };
    // As `pickle.dumps` writes an object whose `__reduce__` returns (os.system, ("id",)), in protocols 2 and 4.
    assert_eq!(
        pickle_fault(b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03."),
        forbidden("posix.system")
    );
    assert_eq!(
        pickle_fault(
            b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
        ),
        forbidden("posix.system")
    );
    for (bytes, name) in [
        (&b"\x80\x02cbuiltins\neval\n."[..], "builtins.eval"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        // A container under another module's name is none.
        (b"\x80\x02cos\nOrderedDict\n.", "os.OrderedDict"),
        (b"\x80\x02(S'id'\nios\nsystem\n.", ""),
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00ido.", "os.system"),
        (b"\x80\x02c\x1b[31m\nx\n.", "\\u{1b}[31m.x"),
    ] {
        let expected = if name.is_empty() { PickleFault::Opcode { opcode: b'S' } } else { forbidden(name) };
        assert_eq!(pickle_fault(bytes), expected, "{bytes:?}");
    }
    // Persistent ids, extension codes, keyword arguments and out-of-band buffers are other ways to code.
    for opcode in [b'P', b'Q', 0x82, 0x83, 0x84, 0x92, 0x97, 0x98, b'o'] {
        assert_eq!(pickle_fault(&[0x80, 4, opcode, 0, 0, 0, 0, b'.']), PickleFault::Opcode { opcode });
    }
    // What is not a harmless name cannot be called.
    assert_eq!(pickle_fault(b"\x80\x02K\x01)R."), PickleFault::Kind { expected: "container's name" });
    let message = fault(b"\x80\x02cposix\nsystem\n.").to_string();
    assert_eq!(
        message,
        "at byte 2 of the pickle: it would call posix.system; nothing was run, and snapshots call nothing"
    );
}

/// A snapshot with one device and this history, as `eval` would have it.
fn snapshot(history: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}(X\x08\x00\x00\x00segments]X\x0d\x00\x00\x00device_traces](](".to_vec();
    bytes.extend_from_slice(history);
    bytes.extend_from_slice(b"eeu.");
    bytes
}

/// An event `{"action": "alloc", "addr": 7, "size": 5, "stream": 0}`.
const ALLOC: &[u8] = b"}(X\x06\x00\x00\x00actionX\x05\x00\x00\x00allocX\x04\x00\x00\x00addrK\x07X\x04\x00\x00\x00sizeK\x05X\x06\x00\x00\x00streamK\x00u";

#[test]
fn plain_containers_may_be_called() {
    let imported = decode(&snapshot(ALLOC), "small", None).unwrap();
    assert_eq!(imported.trace.ops, [Op::Alloc { bytes: 5, stream: 0 }]);
    // The event as an OrderedDict of pairs.
    let pairs = [
        &b"ccollections\nOrderedDict\n]("[..],
        b"X\x06\x00\x00\x00actionX\x05\x00\x00\x00alloc\x86",
        b"X\x04\x00\x00\x00addrK\x07\x86X\x04\x00\x00\x00sizeK\x05\x86e\x85R",
    ];
    let imported = decode(&snapshot(&pairs.concat()), "small", None).unwrap();
    assert_eq!(imported.trace.ops, [Op::Alloc { bytes: 5, stream: 0 }]);
}

#[test]
fn a_snapshot_that_lacks_something_says_what() {
    for (bytes, words) in [
        (&b"\x80\x02]."[..], "there is no 'segments'"),
        (b"\x80\x02}X\x08\x00\x00\x00segmentsK\x01s.", "'segments' is no list"),
        (b"\x80\x02}(X\x08\x00\x00\x00segments]X\x0d\x00\x00\x00device_traces]u.", "_record_memory_history()"),
        (&snapshot(b"}"), "event 0 has no action"),
        (&snapshot(b"}X\x06\x00\x00\x00actionX\x05\x00\x00\x00wrongs"), "event 0 is a 'wrong'"),
        (&snapshot(b"}X\x06\x00\x00\x00actionX\x05\x00\x00\x00allocs"), "event 0 has no addr"),
    ] {
        let message = fault(bytes).to_string();
        assert!(message.contains(words), "{words}: {message}");
    }
    let message = decode(&snapshot(ALLOC), "test", Some(3)).unwrap_err().to_string();
    assert_eq!(message, "the snapshot has no events of device 3; there are some of 0");
}

#[test]
fn hostile_shapes_end_soon() {
    let nested = [&b"\x80\x04"[..], &[b'('; 20_000], b"."].concat();
    assert!(matches!(pickle_fault(&nested), PickleFault::Nesting));
    // Lists in lists, a million deep: nothing recurses, and it is no snapshot.
    let deep = [&b"\x80\x04"[..], &[b']'; 1_000_000], &[b'a'; 999_999], b"."].concat();
    assert!(matches!(fault(&deep), ImportFault::NotASnapshot { .. }));
    // Lengths that nothing stands behind.
    for claim in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        assert_eq!(pickle_fault(&[b"\x80\x04", claim, b"xyz."].concat()), PickleFault::Ended);
    }
    assert_eq!(pickle_fault(b"\x80\x02h\x07."), PickleFault::Memo { place: 7 });
    assert_eq!(pickle_fault(b"\x80\x02."), PickleFault::Stack);
    assert_eq!(pickle_fault(b"\x80\x02e."), PickleFault::Mark);
    assert_eq!(pickle_fault(b"\x80\x02](0a."), PickleFault::Stack);
    assert_eq!(pickle_fault(b"\x80\x02X\x01\x00\x00\x00\xff."), PickleFault::Text);
    assert_eq!(pickle_fault(b"\x80\x02}(K\x01u."), PickleFault::Kind { expected: "value to each key" });
    // A list of events that holds itself.
    assert!(matches!(fault(&snapshot(b"e2ae(")), ImportFault::NotASnapshot { .. } | ImportFault::Pickle { .. }));
    // One segment, shared thousands of times with its thousands of blocks.
    let block = b"}X\x04\x00\x00\x00sizeK\x01s";
    let mut shared =
        b"\x80\x02}(X\x08\x00\x00\x00segments](}(X\x07\x00\x00\x00addressK\x01X\x06\x00\x00\x00blocks](".to_vec();
    shared.extend_from_slice(block);
    shared.extend_from_slice(&[b'2'; 5_000]);
    shared.extend_from_slice(b"eu");
    shared.extend_from_slice(&[b'2'; 5_000]);
    shared.extend_from_slice(b"eX\x0d\x00\x00\x00device_traces](](");
    shared.extend_from_slice(ALLOC);
    shared.extend_from_slice(b"eeu.");
    assert!(matches!(fault(&shared), ImportFault::Pickle { fault: PickleFault::Shared, .. }));
}

#[test]
fn cut_or_changed_anywhere_it_is_an_error_or_a_trace() {
    let whole = std::fs::read(data("native.pickle")).unwrap();
    for end in 0..whole.len() {
        assert!(decode(&whole[..end], "cut", None).is_err(), "cut at {end}");
    }
    let mut changed = whole.clone();
    for at in 2..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            changed[at] ^= flip;
            // Whatever comes of it: what is a trace is a sound one.
            if let Ok(imported) = decode(&changed, "changed", None) {
                let mut text = Vec::new();
                imported.trace.write(&mut text).unwrap();
                assert_eq!(Trace::decode(&text).unwrap().ops, imported.trace.ops);
            }
            changed[at] = whole[at];
        }
    }
}
