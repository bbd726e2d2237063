//! The happens-before checker: planted mistakes are reported with both places, their correct versions are not.

mod common;

use std::sync::Arc;

use common::contract::Mapped;
use stratalloc::driver::soft::{Access, Backing, OpKind, Report, SoftDevice};
use stratalloc::driver::{CopyOp, Driver, EventId, EventStatus, Location};
use stratalloc::units::{DevicePtr, PAGE, StreamId};

/// A device with a page of memory, two streams and an event.
struct Scene {
    device: Arc<SoftDevice>,
    mapped: Mapped,
    ptr: DevicePtr,
    a: StreamId,
    b: StreamId,
    event: EventId,
}

const BLOCK: u64 = 4096;

impl Scene {
    fn new(seed: u64) -> Scene {
        let builder = SoftDevice::builder(64 * PAGE).backing(Backing::AddressesOnly).seed(seed);
        let device = builder.checker(true).build().unwrap();
        let mapped = Mapped::new(&*device, 2);
        let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
        let (ptr, event) = (mapped.ptr, device.create_event().unwrap());
        Scene { device, mapped, ptr, a, b, event }
    }

    fn write(&self, stream: StreamId) {
        self.device.launch(stream, &[Access::write(self.ptr, BLOCK)], 0).unwrap();
    }

    fn read(&self, stream: StreamId) {
        self.device.launch(stream, &[Access::read(self.ptr, BLOCK)], 0).unwrap();
    }

    /// Later work of `to` comes after the work of `from` so far.
    fn order(&self, from: StreamId, to: StreamId) {
        self.device.record_event(self.event, from).unwrap();
        self.device.wait_event(to, self.event).unwrap();
    }

    fn alloc(&self, stream: StreamId) {
        self.device.note_alloc(self.ptr, BLOCK, stream);
    }

    fn free(&self) {
        self.device.note_free(self.ptr, BLOCK);
    }

    /// A second address of the first chunk.
    fn alias(&self) -> DevicePtr {
        let alias = self.device.reserve(PAGE, PAGE).unwrap();
        self.device.map(alias, PAGE, self.mapped.chunks[0], 0).unwrap();
        self.device.set_access(alias, PAGE).unwrap();
        alias
    }

    #[track_caller]
    fn is_clean(&self) {
        if let Some(report) = self.device.reports().first() {
            panic!("{report}");
        }
    }

    /// The only report.
    #[track_caller]
    fn report(&self) -> Report {
        let reports = self.device.reports();
        assert_eq!(reports.len(), 1, "{reports:#?}");
        assert_eq!(self.device.report_count(), 1);
        reports[0]
    }
}

/// Runs a scene with several seeds: what is found does not depend on them.
fn scenes(act: impl Fn(&Scene)) {
    (0..5).for_each(|seed| act(&Scene::new(seed)));
}

// ---- races ----

#[test]
fn unordered_accesses_race() {
    scenes(|scene| {
        scene.write(scene.a);
        scene.read(scene.b);
        let Report::Race { first, second, ptr, size } = scene.report() else { panic!("{}", scene.report()) };
        assert_eq!((first.stream, first.op, second.stream, second.op), (scene.a, 1, scene.b, 1));
        assert_eq!((ptr, size), (scene.ptr, BLOCK));
        let text = scene.report().to_string();
        assert!(text.starts_with("race: kernel reading 4096 B at 0x"), "{text}");
        assert!(text.contains("is not ordered after kernel writing 4096 B at 0x"), "{text}");
        assert!(text.ends_with("Let stream 0x2 wait for an event recorded on stream 0x1 after op 1"), "{text}");
    });
    // Read then write, and write then write, race too; reads do not.
    let scene = Scene::new(0);
    scene.read(scene.a);
    scene.read(scene.b);
    scene.is_clean();
    scene.order(scene.b, scene.a);
    scene.write(scene.a);
    scene.is_clean();
    scene.write(scene.b);
    assert!(matches!(scene.report(), Report::Race { .. }));
}

#[test]
fn events_streams_and_the_host_order() {
    scenes(|scene| {
        scene.write(scene.a);
        scene.order(scene.a, scene.b);
        scene.write(scene.b);
        scene.device.synchronize_stream(scene.b).unwrap();
        scene.write(scene.a);
        scene.device.record_event(scene.event, scene.a).unwrap();
        while scene.device.query_event(scene.event).unwrap() == EventStatus::Pending {}
        scene.write(scene.b);
        scene.device.record_event(scene.event, scene.b).unwrap();
        scene.device.synchronize_event(scene.event).unwrap();
        scene.write(StreamId::DEFAULT);
        scene.device.synchronize_device().unwrap();
        scene.write(scene.a);
        scene.is_clean();
    });
}

#[test]
fn a_wait_keeps_what_it_saw() {
    scenes(|scene| {
        scene.order(scene.a, scene.b);
        scene.write(scene.a);
        scene.device.record_event(scene.event, scene.a).unwrap();
        scene.write(scene.b);
        assert!(matches!(scene.report(), Report::Race { .. }), "b waited for the older record");
    });
}

#[test]
fn a_pending_event_orders_nothing() {
    let device = SoftDevice::builder(64 * PAGE).checker(true).event_lag_ns(10).build().unwrap();
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let (ptr, event) = (device.alloc_plain(BLOCK).unwrap(), device.create_event().unwrap());
    device.fill(ptr, BLOCK, 0, a).unwrap();
    device.record_event(event, a).unwrap();
    assert_eq!(device.query_event(event).unwrap(), EventStatus::Pending);
    device.fill(ptr, BLOCK, 0, b).unwrap();
    assert_eq!(device.reports().len(), 1);
}

#[test]
fn only_bytes_in_common_race() {
    scenes(|scene| {
        scene.device.fill(scene.ptr, 1000, 0, scene.a).unwrap();
        scene.device.fill(scene.ptr.add(1000), 1000, 0, scene.b).unwrap();
        scene.is_clean();
        scene.device.fill(scene.ptr.add(900), 1000, 0, StreamId::DEFAULT).unwrap();
        let reports = scene.device.reports();
        assert_eq!(reports.len(), 2, "one with each stream");
        let Report::Race { ptr, size, .. } = reports[0] else { panic!("{}", reports[0]) };
        assert_eq!((ptr, size), (scene.ptr.add(900), 100));
    });
}

#[test]
fn the_copies_of_a_batch_have_no_order() {
    let scene = Scene::new(0);
    let copy = |dst: u64, src: u64| CopyOp { dst: scene.ptr.add(dst), src: scene.ptr.add(src), size: 512 };
    scene.device.copy(&[copy(0, 1024), copy(512, 1024)], scene.a).unwrap();
    scene.is_clean();
    scene.device.copy(&[copy(0, 1024), copy(2048, 0)], scene.a).unwrap();
    assert!(scene.report().to_string().starts_with("race in one batch"), "{}", scene.report());
}

#[test]
fn aliases_race_across_addresses() {
    scenes(|scene| {
        let alias = scene.alias();
        scene.write(scene.a);
        scene.device.fill(alias.add(BLOCK), BLOCK, 0, scene.b).unwrap();
        scene.is_clean();
        scene.device.fill(alias.add(BLOCK - 1), 2, 0, scene.b).unwrap();
        let Report::Race { first, ptr, size, .. } = scene.report() else { panic!("{}", scene.report()) };
        assert_eq!((first.ptr, ptr, size), (scene.ptr, alias.add(BLOCK - 1), 1));
    });
}

#[test]
fn pinned_memory_is_checked() {
    let scene = Scene::new(0);
    let host = DevicePtr(scene.device.alloc_host(BLOCK).unwrap().0 as u64);
    scene.device.copy(&[CopyOp { dst: host, src: scene.ptr, size: BLOCK }], scene.a).unwrap();
    scene.device.copy(&[CopyOp { dst: scene.ptr.add(BLOCK), src: host, size: BLOCK }], scene.b).unwrap();
    assert!(matches!(scene.report(), Report::Race { .. }));
}

// ---- reuse ----

#[test]
fn reuse_on_the_same_stream_is_ordered() {
    scenes(|scene| {
        for _ in 0..3 {
            scene.alloc(scene.a);
            scene.write(scene.a);
            scene.free();
        }
        scene.is_clean();
    });
}

#[test]
fn early_reuse_on_another_stream() {
    scenes(|scene| {
        scene.alloc(scene.a);
        scene.free();
        // Nobody touches the block: handing it out is enough.
        scene.alloc(scene.b);
        let text = scene.report().to_string();
        assert!(text.starts_with("reused too early: allocation of 4096 B"), "{text}");
        assert!(text.contains("free of 4096 B"), "{text}");
    });
    scenes(|scene| {
        scene.alloc(scene.a);
        scene.write(scene.a);
        scene.free();
        scene.order(scene.a, scene.b);
        scene.alloc(scene.b);
        scene.write(scene.b);
        scene.is_clean();
    });
}

#[test]
fn an_event_before_the_free_is_too_early() {
    scenes(|scene| {
        scene.alloc(scene.a);
        scene.order(scene.a, scene.b);
        scene.free();
        scene.alloc(scene.b);
        assert!(matches!(scene.report(), Report::Race { first, .. } if first.what == OpKind::Free));
    });
}

#[test]
fn a_missing_record_stream() {
    let reuse = |scene: &Scene, recorded: bool| {
        scene.alloc(scene.a);
        scene.write(scene.a);
        scene.order(scene.a, scene.b);
        scene.read(scene.b);
        scene.free();
        if recorded {
            // What an allocator does that was told of b.
            scene.order(scene.b, scene.a);
        }
        scene.alloc(scene.a);
    };
    scenes(|scene| {
        reuse(scene, false);
        let Report::Race { first, second, .. } = scene.report() else { panic!("{}", scene.report()) };
        assert_eq!((first.stream, first.what), (scene.b, OpKind::Kernel));
        assert_eq!((second.stream, second.what), (scene.a, OpKind::Alloc));
    });
    scenes(|scene| {
        reuse(scene, true);
        scene.is_clean();
    });
}

#[test]
fn use_after_free() {
    scenes(|scene| {
        scene.alloc(scene.a);
        scene.write(scene.a);
        scene.free();
        scene.read(scene.a);
        let Report::UseAfterFree { access, freed } = scene.report() else { panic!("{}", scene.report()) };
        assert_eq!((access.what, freed.what), (OpKind::Kernel, OpKind::Free));
        scene.alloc(scene.a);
        scene.read(scene.a);
        scene.report();
        scene.free();
        scene.free();
        assert!(scene.device.reports()[1].to_string().starts_with("double free"));
    });
}

#[test]
fn blocks_handed_out_twice() {
    let scene = Scene::new(0);
    scene.alloc(scene.a);
    scene.device.note_alloc(scene.ptr.add(BLOCK), BLOCK, scene.a);
    scene.is_clean();
    scene.device.note_alloc(scene.ptr.add(BLOCK - 512), 512, scene.a);
    assert!(matches!(scene.report(), Report::Overlap { first, .. } if first.ptr == scene.ptr));
}

#[test]
fn an_allocator_may_move_blocks() {
    let scene = Scene::new(0);
    let target = scene.ptr.add(PAGE);
    scene.alloc(scene.a);
    scene.device.note_alloc(target, BLOCK, scene.a);
    scene.device.note_free(target, BLOCK);
    scene.device.allocator_copies(true);
    scene.device.copy(&[CopyOp { dst: target, src: scene.ptr, size: BLOCK }], scene.a).unwrap();
    scene.device.allocator_copies(false);
    scene.device.launch(scene.a, &[Access::write(target, BLOCK)], 0).unwrap();
    scene.is_clean();
}

// ---- unmapping ----

#[test]
fn unmapping_in_use() {
    scenes(|scene| {
        scene.write(scene.a);
        scene.device.unmap(scene.ptr, PAGE).unwrap();
        let Report::UnmapInUse { last, ptr, .. } = scene.report() else { panic!("{}", scene.report()) };
        assert_eq!((last.stream, last.op, ptr), (scene.a, 1, scene.ptr));
    });
    scenes(|scene| {
        scene.write(scene.a);
        // The host has waited for another stream only.
        scene.device.synchronize_stream(scene.b).unwrap();
        scene.device.unmap(scene.ptr.add(PAGE), PAGE).unwrap();
        scene.is_clean();
        scene.device.synchronize_stream(scene.a).unwrap();
        scene.device.unmap(scene.ptr, PAGE).unwrap();
        scene.device.release(scene.mapped.chunks[0]).unwrap();
        scene.is_clean();
    });
}

#[test]
fn an_alias_may_go_while_the_other_is_in_use() {
    scenes(|scene| {
        let alias = scene.alias();
        scene.device.fill(alias, BLOCK, 0, scene.a).unwrap();
        scene.device.unmap(scene.ptr, PAGE).unwrap();
        scene.is_clean();
        // The use through the old address is remembered, though later work wrote the same bytes by another.
        scene.device.map(scene.ptr, PAGE, scene.mapped.chunks[0], 0).unwrap();
        scene.device.set_access(scene.ptr, PAGE).unwrap();
        scene.write(scene.a);
        scene.device.fill(alias, BLOCK, 0, scene.a).unwrap();
        scene.device.unmap(scene.ptr, PAGE).unwrap();
        assert!(matches!(scene.report(), Report::UnmapInUse { last, .. } if last.ptr == scene.ptr));
    });
}

#[test]
fn plain_memory_is_freed_after_its_work() {
    let scene = Scene::new(3);
    let ptr = scene.device.alloc_plain(BLOCK).unwrap();
    scene.device.fill(ptr, BLOCK, 0, scene.a).unwrap();
    scene.device.free_plain(ptr).unwrap();
    scene.is_clean();
}

#[test]
fn new_chunks_have_no_past() {
    let scene = Scene::new(0);
    scene.alloc(scene.a);
    scene.device.synchronize_device().unwrap();
    scene.device.unmap(scene.ptr, PAGE).unwrap();
    scene.device.release(scene.mapped.chunks[0]).unwrap();
    let chunk = scene.device.create(PAGE, Location::Device).unwrap();
    scene.device.map(scene.ptr, PAGE, chunk, 0).unwrap();
    scene.device.set_access(scene.ptr, PAGE).unwrap();
    scene.alloc(scene.b);
    scene.is_clean();
}

#[test]
fn captured_work_is_checked_when_launched() {
    let scene = Scene::new(0);
    scene.device.begin_capture(scene.a).unwrap();
    scene.write(scene.a);
    let graph = scene.device.end_capture(scene.a).unwrap();
    scene.write(scene.b);
    scene.is_clean();
    scene.device.launch_graph(&graph, scene.a).unwrap();
    assert!(matches!(scene.report(), Report::Race { .. }));
}

#[test]
fn reports_are_kept_up_to_a_bound() {
    let scene = Scene::new(0);
    for _ in 0..1500 {
        scene.write(scene.a);
        scene.write(scene.b);
    }
    assert_eq!(scene.device.reports().len(), 1000);
    assert_eq!(scene.device.report_count(), 2999);
}
