//! Debug aids: every planted error is found and named, and a program without errors hears nothing. The checker looks on.

mod common;

use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, allocator_on, check, request, soft, stats};
use stratalloc::driver::fault::{Fault, FaultDriver, When};
use stratalloc::driver::soft::{Report, SoftDevice};
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::{
    Allocator, DevicePtr, Error, Leaks, MemoryFault, MemoryFaultKind, MemoryReport, PoolId, Rung, StreamId,
};

type Heard = Arc<parking_lot::Mutex<Vec<MemoryReport>>>;

/// A program on one device, that hears what the aids find.
struct Scene {
    device: Arc<SoftDevice>,
    allocator: Allocator,
    stream: StreamId,
    heard: Heard,
}

fn listen(allocator: &Allocator) -> Heard {
    let heard = Heard::default();
    let to = heard.clone();
    let before = allocator.observe_memory(Some(Arc::new(move |report| to.lock().push(report.clone()))));
    assert!(before.is_none());
    heard
}

impl Scene {
    fn new(config: &str, seed: u64) -> Scene {
        let (device, allocator) = soft(SoftDevice::builder(64 * MIB).checker(true).seed(seed), config);
        let stream = device.create_stream().unwrap();
        let heard = listen(&allocator);
        Scene { device, allocator, stream, heard }
    }

    fn alloc(&self, size: u64) -> DevicePtr {
        let ptr = self.allocator.raw_alloc(request(size, self.stream)).unwrap();
        self.device.note_alloc(ptr, size, self.stream);
        ptr
    }

    fn free(&self, ptr: DevicePtr, size: u64) {
        self.device.note_free(ptr, size);
        self.allocator.raw_free(ptr).unwrap();
    }

    fn write(&self, ptr: DevicePtr, bytes: &[u8]) {
        self.device.write(ptr, bytes, self.stream).unwrap();
    }

    /// Faults heard since the last call.
    fn faults(&self) -> Vec<MemoryFault> {
        let heard = std::mem::take(&mut *self.heard.lock());
        heard
            .into_iter()
            .filter_map(|report| if let MemoryReport::Fault(fault) = report { Some(fault) } else { None })
            .collect()
    }

    fn only_fault(&self) -> MemoryFault {
        let mut faults = self.faults();
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults.remove(0)
    }
}

#[test]
fn a_byte_behind_a_block_is_found_when_it_is_freed() {
    for (size, beyond) in [(1000, 0), (1000, 255), (1, 0), (3 * MIB + 5, 100), (512, 0)] {
        let scene = Scene::new("redzone:256", 0);
        let tag = scene.allocator.tag("weights").unwrap();
        let ptr = scene.allocator.raw_alloc(request(size, scene.stream).tag(tag)).unwrap();
        assert_eq!(scene.allocator.usable_size(ptr), Ok(size), "what is behind is not the caller's");
        scene.write(ptr, &vec![7; size as usize]);
        scene.write(ptr.add(size + beyond), &[0x55]);
        assert!(scene.faults().is_empty());
        scene.allocator.raw_free(ptr).unwrap();
        scene.device.synchronize_device().unwrap();
        let other = scene.alloc(64);
        let fault = scene.only_fault();
        assert_eq!((fault.kind, fault.ptr, fault.size), (MemoryFaultKind::Overflow, ptr, size));
        assert_eq!(
            (fault.at, fault.offset(), fault.count, fault.found),
            (ptr.add(size + beyond), size + beyond, 1, 0x55)
        );
        assert_eq!((fault.stream, fault.tag, fault.tag_name.as_deref()), (scene.stream, tag.number(), Some("weights")));
        let text = fault.to_string();
        for part in
            ["overflow", &format!("{beyond} byte(s) behind its end"), "tag weights", "0x55 in place of", "device 0"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        scene.free(other, 64);
        assert_eq!(scene.allocator.check_memory(0), Ok(vec![]), "told once");
        assert!(scene.faults().is_empty());
        check(&scene.allocator, 0);
        assert_eq!(scene.device.reports(), []);
    }
}

#[test]
fn an_explicit_check_finds_what_is_still_in_use() {
    let scene = Scene::new("redzone:64", 0);
    let blocks: Vec<DevicePtr> = (0..5000).map(|_| scene.alloc(100)).collect();
    assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
    // More than there are slots for results, so that the check goes in several parts.
    for &at in &[0, 4095, 4999] {
        scene.write(blocks[at].add(101), &[1, 2, 3]);
    }
    let found = scene.allocator.check_memory(0).unwrap();
    assert_eq!(scene.faults(), found, "the observer is told as well");
    let mut damaged: Vec<DevicePtr> = found.iter().map(|fault| fault.ptr).collect();
    damaged.sort();
    let mut expected = vec![blocks[0], blocks[4095], blocks[4999]];
    expected.sort();
    assert_eq!(damaged, expected);
    assert!(found.iter().all(|fault| fault.count == 3 && fault.offset() == 101));
    assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
    blocks.iter().for_each(|&ptr| scene.free(ptr, 100));
    assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
    assert!(scene.faults().is_empty());
    assert_eq!(scene.device.reports(), []);
}

#[test]
fn a_byte_before_a_block_is_found_in_its_neighbours_zone() {
    let scene = Scene::new("redzone:512", 0);
    let (first, second) = (scene.alloc(512), scene.alloc(512));
    let (low, high) = if first < second { (first, second) } else { (second, first) };
    assert_eq!(low.add(1024), high);
    scene.write(DevicePtr(high.0 - 2), &[9]);
    let found = scene.allocator.check_memory(0).unwrap();
    assert_eq!((found.len(), found[0].ptr, found[0].at), (1, low, DevicePtr(high.0 - 2)));
}

#[test]
fn a_write_after_a_free_is_found_when_the_memory_is_used_again() {
    for size in [700, 200 * KIB, 5 * MIB] {
        let scene = Scene::new("poison:check", 0);
        let ptr = scene.alloc(size);
        scene.write(ptr, &vec![7; size as usize]);
        scene.free(ptr, size);
        let mut bytes = [0; 6];
        scene.device.read(&mut bytes, ptr.add(2), scene.stream).unwrap();
        assert_eq!(bytes, [0xad, 0xde, 0xef, 0xbe, 0xad, 0xde], "poison");
        scene.write(ptr.add(11), &[0x77, 0x78]);
        // Slots that were never handed out come first.
        let again = (0..if size > MIB { 1 } else { 64 }).map(|_| scene.alloc(size)).find(|&again| again == ptr);
        scene.device.synchronize_device().unwrap();
        scene.free(again.expect("the block is used again"), size);
        let fault = scene.only_fault();
        assert_eq!((fault.kind, fault.ptr, fault.size), (MemoryFaultKind::WriteAfterFree, ptr, size));
        assert_eq!((fault.offset(), fault.count, fault.found, fault.expected), (11, 2, 0x77, 0xde));
        assert!(fault.to_string().contains("write after free: 2 byte(s)"), "{fault}");
        assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
        // The checker, too, saw the read and the write.
        let is_known = |report: &Report| matches!(report, Report::UseAfterFree { .. });
        assert!(scene.device.report_count() == 2 && scene.device.reports().iter().all(is_known));
    }
}

#[test]
fn poison_is_told_apart_by_the_block_that_it_was_in() {
    let scene = Scene::new("poison:check", 0);
    // Two neighbours become one free block, of which a third takes the middle.
    let (a, b) = (scene.alloc(3 * MIB), scene.alloc(3 * MIB));
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    scene.free(low, 3 * MIB);
    scene.free(high, 3 * MIB);
    scene.write(high.add(MIB), &[1]);
    let large = scene.alloc(6 * MIB);
    assert_eq!(large, low);
    let faults = scene.allocator.check_memory(0).unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!((faults[0].ptr, faults[0].size, faults[0].offset()), (high, 3 * MIB, MIB));
}

#[test]
fn a_quarantine_holds_blocks_back_in_order() {
    let scene = Scene::new("quarantine:10MiB,poison:fill", 0);
    let first = scene.alloc(4 * MIB);
    scene.free(first, 4 * MIB);
    assert_eq!((stats(&scene.allocator).pending, stats(&scene.allocator).live.current), (4 * MIB, 0));
    let second = scene.alloc(4 * MIB);
    assert_ne!(first, second);
    scene.free(second, 4 * MIB);
    scene.write(first.add(5), &[3]);
    // The oldest leaves, and is looked at.
    let third = scene.alloc(4 * MIB);
    assert!(third != first && third != second);
    scene.free(third, 4 * MIB);
    assert_eq!(stats(&scene.allocator).pending, 8 * MIB);
    let fourth = scene.alloc(4 * MIB);
    assert_eq!(fourth, first);
    let fault = scene.only_fault();
    assert_eq!((fault.kind, fault.ptr, fault.offset()), (MemoryFaultKind::WriteAfterFree, first, 5));
    // What is larger than all of it is not held back.
    let large = scene.alloc(12 * MIB);
    scene.free(large, 12 * MIB);
    assert_eq!(stats(&scene.allocator).pending, 8 * MIB);
    check(&scene.allocator, 0);
    scene.free(fourth, 4 * MIB);
    scene.allocator.empty_cache(0).unwrap();
    let after = check(&scene.allocator, 0);
    assert_eq!((after.pending, after.reserved.current), (0, 0));
}

#[test]
fn a_quarantine_is_emptied_before_a_request_fails() {
    let scene = Scene::new("quarantine:1GiB", 0);
    for _ in 0..4 {
        let ptr = scene.alloc(40 * MIB);
        scene.free(ptr, 40 * MIB);
    }
    assert_eq!(stats(&scene.allocator).out_of_memory, 0);
    let ptr = scene.alloc(60 * MIB);
    assert!(matches!(scene.allocator.raw_alloc(request(20 * MIB, scene.stream)), Err(Error::OutOfMemory(_))));
    scene.free(ptr, 60 * MIB);
    check(&scene.allocator, 0);
    assert_eq!(scene.device.reports(), []);
}

#[test]
fn recorded_streams_are_waited_for_before_the_poison() {
    for seed in 0..20 {
        let scene = Scene::new("poison:check,redzone:512,quarantine:1MiB", seed);
        let other = scene.device.create_stream().unwrap();
        let ptr = scene.alloc(MIB / 2);
        scene.allocator.record_stream(ptr, other).unwrap();
        scene.write(ptr, &[1; 64]);
        scene.device.synchronize_stream(scene.stream).unwrap();
        // The other stream works on it when it is freed.
        scene.device.fill(ptr, MIB / 2, 7, other).unwrap();
        scene.free(ptr, MIB / 2);
        for _ in 0..40 {
            let ptr = scene.alloc(MIB / 2);
            scene.write(ptr, &[2; 64]);
            scene.free(ptr, MIB / 2);
        }
        assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
        assert!(scene.faults().is_empty());
        assert_eq!(scene.device.reports(), [], "seed {seed}");
    }
}

/// Streams, sizes, tags, pressure, recorded streams and a private pool, with contents written to the last byte: nothing is reported.
#[test]
fn a_correct_program_hears_nothing() {
    for seed in 1..=6u64 {
        let configs = [
            "poison:check,redzone:512,quarantine:6MiB",
            "poison:check",
            "redzone:1,trace:1000",
            "poison:check,quarantine:2MiB,cross_stream_wait:true",
        ];
        let scene = Scene::new(configs[seed as usize % configs.len()], seed);
        let streams: Vec<StreamId> = (0..3).map(|_| scene.device.create_stream().unwrap()).collect();
        let mut rng = Rng(seed);
        let mut held: Vec<(DevicePtr, u64, StreamId)> = Vec::new();
        for step in 0..1500 {
            if step == 700 {
                let only = streams[0];
                scene.allocator.route_private_pool(0, PoolId(1, 1), move |stream| stream == only).unwrap();
            }
            if step == 900 {
                scene.allocator.end_private_pool(0, PoolId(1, 1)).unwrap();
                scene.allocator.release_private_pool(0, PoolId(1, 1)).unwrap();
            }
            if held.len() < 60 && rng.percent(60) {
                let (size, stream) = (rng.size(6 * MIB), rng.pick(&streams));
                let Ok(ptr) = scene.allocator.raw_alloc(request(size, stream)) else { continue };
                scene.device.note_alloc(ptr, size, stream);
                scene.device.fill(ptr, size, step as u8, stream).unwrap();
                held.push((ptr, size, stream));
            } else if !held.is_empty() {
                let (ptr, size, stream) = held.swap_remove(rng.index(held.len()));
                if rng.percent(20) {
                    let other = rng.pick(&streams);
                    let event = scene.device.create_event().unwrap();
                    scene.device.record_event(event, stream).unwrap();
                    scene.device.wait_event(other, event).unwrap();
                    scene.device.destroy_event(event).unwrap();
                    scene.allocator.record_stream(ptr, other).unwrap();
                    scene.device.fill(ptr, size, 9, other).unwrap();
                }
                scene.free(ptr, size);
            }
            if step % 400 == 399 {
                assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
                scene.allocator.validate(0).unwrap().unwrap();
            }
            if step % 500 == 499 {
                scene.allocator.empty_cache(0).unwrap();
            }
        }
        assert!(stats(&scene.allocator).rung(Rung::Own) > 100);
        for (ptr, size, _) in held {
            scene.free(ptr, size);
        }
        assert_eq!(scene.allocator.check_memory(0), Ok(vec![]), "seed {seed}");
        assert_eq!(*scene.heard.lock(), [], "seed {seed}");
        assert_eq!(scene.device.reports(), [], "seed {seed}");
    }
}

#[test]
fn nothing_is_submitted_to_a_capture() {
    let scene = Scene::new("poison:check,redzone:512,quarantine:1MiB", 0);
    let before = scene.alloc(1000);
    let stream = scene.stream;
    let launches = || {
        let calls = scene.allocator.driver(0).unwrap().calls();
        calls.iter().filter(|(name, ..)| name.starts_with("cuLaunchKernel")).map(|(_, count, _)| count).sum::<u64>()
    };
    let launched = launches();
    // Once as the allocator is told, once behind its back.
    for told in [true, false] {
        if told {
            scene.allocator.begin_private_pool(0, PoolId(2, 2), move |other| other == stream).unwrap();
        }
        scene.device.begin_capture(stream).unwrap();
        let inside = scene.allocator.raw_alloc(request(5000, stream)).unwrap();
        if told {
            scene.allocator.raw_free(before).unwrap();
        }
        scene.allocator.raw_free(inside).unwrap();
        assert!(scene.device.end_capture(stream).unwrap().is_empty());
        if told {
            assert!(matches!(scene.allocator.check_memory(0), Err(Error::Capturing { .. })));
            scene.allocator.end_private_pool(0, PoolId(2, 2)).unwrap();
        }
    }
    assert_eq!(launches(), launched);
    assert_eq!(scene.allocator.check_memory(0), Ok(vec![]));
    assert!(scene.faults().is_empty());
}

#[test]
fn without_kernels_it_is_said_once_and_nothing_else_changes() {
    let device = SoftDevice::builder(64 * MIB).build().unwrap();
    let driver = Arc::new(FaultDriver::new(device));
    driver.inject(Fault {
        when: When::From(1),
        kind: DriverErrorKind::NotSupported,
        only: Some(stratalloc::driver::fault::CallKind::FillWords),
    });
    let allocator = allocator_on(driver, "poison:check,redzone:512");
    let heard = listen(&allocator);
    for _ in 0..3 {
        let ptr = allocator.raw_alloc(request(1000, StreamId::DEFAULT)).unwrap();
        allocator.raw_free(ptr).unwrap();
    }
    let heard = heard.lock();
    assert!(matches!(&heard[..], [MemoryReport::Off { device: 0, .. }]), "{heard:?}");
    assert!(heard[0].to_string().contains("red zones and poison are off on device 0"), "{}", heard[0]);
    check(&allocator, 0);
}

/// Every driver call in turn fails: no false report, nothing lost.
#[test]
fn failing_calls_report_nothing() {
    let run = |fault: Option<Fault>| {
        let device = SoftDevice::builder(64 * MIB).seed(3).build().unwrap();
        let driver = Arc::new(FaultDriver::new(device.clone()));
        let allocator = allocator_on(driver.clone(), "poison:check,redzone:100,quarantine:3MiB");
        let heard = listen(&allocator);
        fault.into_iter().for_each(|fault| driver.inject(fault));
        let streams = [device.create_stream().unwrap(), device.create_stream().unwrap()];
        let mut held = Vec::new();
        for step in 0..30u64 {
            let (size, stream) = ((step * 777 + 5) % (3 * MIB) + 1, streams[step as usize % 2]);
            if let Ok(ptr) = allocator.raw_alloc(request(size, stream)) {
                device.fill(ptr, size, 1, stream).unwrap();
                held.push(ptr);
            }
            if step % 3 == 2 && !held.is_empty() {
                let ptr = held.remove(0);
                let _ = allocator.record_stream(ptr, streams[0]);
                allocator.raw_free(ptr).unwrap();
            }
        }
        driver.clear();
        held.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
        assert_eq!(allocator.check_memory(0), Ok(vec![]));
        let heard = std::mem::take(&mut *heard.lock());
        assert!(!heard.iter().any(|report| matches!(report, MemoryReport::Fault(_))), "{fault:?}: {heard:?}");
        check(&allocator, 0);
        driver.calls()
    };
    let calls = run(None);
    assert!(calls > 150, "{calls}");
    for nth in 1..=calls {
        run(Some(Fault { when: When::Nth(nth), kind: DriverErrorKind::Other, only: None }));
    }
    run(Some(Fault {
        when: When::Random { probability: 0.3, seed: 5 },
        kind: DriverErrorKind::OutOfMemory,
        only: None,
    }));
}

#[test]
fn leaks_are_told_by_tag_and_stream_when_the_allocator_ends() {
    let scene = Scene::new("leaks:true", 0);
    let tag = scene.allocator.tag("cache").unwrap();
    let other = scene.device.create_stream().unwrap();
    for index in 0..12u64 {
        let _ = scene.allocator.raw_alloc(request(1000 + index, scene.stream).tag(tag)).unwrap();
    }
    let large = scene.allocator.raw_alloc(request(3 * MIB, other)).unwrap();
    let freed = scene.allocator.raw_alloc(request(5 * MIB, other)).unwrap();
    scene.allocator.raw_free(freed).unwrap();
    let heard = scene.heard.clone();
    drop(scene);
    let heard = heard.lock();
    let [MemoryReport::Leaks(leaks)] = &heard[..] else { panic!("{heard:?}") };
    let Leaks { device, blocks, bytes, by_tag, by_stream, largest, .. } = leaks;
    assert_eq!((*device, *blocks, *bytes), (0, 13, 12 * 1000 + 66 + 3 * MIB));
    let of =
        |shares: &[stratalloc::Share]| shares.iter().map(|s| (s.name.clone(), s.blocks, s.bytes)).collect::<Vec<_>>();
    assert_eq!(of(by_tag), [("none".to_string(), 1, 3 * MIB), ("cache".to_string(), 12, 12_066)]);
    assert_eq!(by_stream.len(), 2);
    assert_eq!((largest.len(), largest[0].0.ptr, largest[0].1.as_str()), (10, large, "none"));
    assert_eq!((largest[1].0.requested, largest[1].1.as_str()), (1011, "cache"));
    let text = heard[0].to_string();
    for part in ["13 block(s)", "tag cache: 12 block(s)", "3145728 bytes at", "and 3 smaller"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn nothing_is_told_where_nothing_leaks() {
    let scene = Scene::new("leaks:true", 0);
    let ptr = scene.alloc(1000);
    scene.free(ptr, 1000);
    let heard = scene.heard.clone();
    drop(scene);
    assert_eq!(*heard.lock(), []);
}

#[test]
fn the_last_look_finds_damage_too() {
    let scene = Scene::new("redzone:16,leaks:true", 0);
    let ptr = scene.alloc(100);
    scene.write(ptr.add(100), &[1]);
    let Scene { device, allocator, stream, heard } = scene;
    // Its stream has gone before it.
    device.synchronize_stream(stream).unwrap();
    device.destroy_stream(stream).unwrap();
    drop(allocator);
    let heard = heard.lock();
    assert!(
        matches!(&heard[..], [MemoryReport::Fault(fault), MemoryReport::Leaks(_)] if fault.ptr == ptr),
        "{heard:?}"
    );
}

#[test]
fn an_observer_that_panics_harms_nobody() {
    let (_device, allocator) = soft(SoftDevice::builder(64 * MIB), "leaks:true");
    allocator.observe_memory(Some(Arc::new(|_| panic!("planted"))));
    let _ = allocator.raw_alloc(request(1000, StreamId::DEFAULT)).unwrap();
    drop(allocator);
}

/// Run by the next test in a process of its own: an allocator that is never dropped.
#[test]
#[ignore = "run by `a_process_tells_when_it_ends`"]
fn child_that_leaks() {
    let (_device, allocator) = soft(SoftDevice::builder(64 * MIB), "leaks:true,redzone:64");
    let ptr = allocator.raw_alloc(request(12_345, StreamId::DEFAULT)).unwrap();
    _device.write(ptr.add(12_345), &[1, 2], StreamId::DEFAULT).unwrap();
    std::mem::forget(allocator);
}

#[test]
fn a_process_tells_when_it_ends() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", "child_that_leaks", "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("stratalloc: ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("overflow: 2 byte(s)") && lines[0].contains("of 12345 bytes"), "{text}");
    assert!(lines[1].contains("1 block(s) of 12.06 KiB still in use on device 0"), "{text}");
}

#[test]
fn aids_that_are_off_cost_no_call() {
    let (device, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    let ptr = allocator.raw_alloc(request(1000, StreamId::DEFAULT)).unwrap();
    let calls = allocator.driver(0).unwrap().calls().total().count;
    for _ in 0..100 {
        let ptr = allocator.raw_alloc(request(1000, StreamId::DEFAULT)).unwrap();
        allocator.raw_free(ptr).unwrap();
    }
    allocator.raw_free(ptr).unwrap();
    assert_eq!(allocator.driver(0).unwrap().calls().total().count, calls);
    assert_eq!(allocator.check_memory(0), Ok(vec![]));
    assert!(matches!(allocator.check_memory(1), Err(Error::UnknownDevice { device: 1, count: 1 })));
    drop(device);
}
