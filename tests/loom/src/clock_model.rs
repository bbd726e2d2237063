//! The clock: no stamp passes before the work that was submitted ahead of it is done.

use loom::model::Builder;
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::driver::Device;
use crate::stream::{Clock, EventPool};
use crate::units::StreamId;

/// What the pool's lock guards, and what was freed when.
struct Pool {
    clock: Clock,
    events: EventPool,
    /// Stamps, with the work that was submitted before they were taken.
    freed: Vec<(u64, u64)>,
}

struct Scene {
    device: Device,
    pool: Mutex<Pool>,
}

impl Scene {
    fn new() -> Arc<Scene> {
        let clock = Clock::new(StreamId(1));
        let pool = Pool { clock, events: EventPool::default(), freed: Vec::new() };
        Arc::new(Scene { device: Device::new(), pool: Mutex::new(pool) })
    }

    /// Uses a block, then frees it.
    fn free(&self) {
        let work = self.device.submit();
        let pool = &mut *self.pool.lock().unwrap();
        pool.freed.push((pool.clock.stamp(), work));
    }

    /// The planted mistake: frees a block, then uses it.
    fn free_early(&self) {
        let stamp = self.pool.lock().unwrap().clock.stamp();
        let work = self.device.submit();
        self.pool.lock().unwrap().freed.push((stamp, work));
    }

    /// As on a miss: closes the epoch, asks how far the stream is, and looks at what may be used again.
    fn advance(&self) {
        let pool = &mut *self.pool.lock().unwrap();
        pool.clock.close(&self.device, &mut pool.events).unwrap();
        pool.clock.poll(&self.device, &mut pool.events).unwrap();
        for &(stamp, work) in &pool.freed {
            assert!(!pool.clock.has_passed(stamp) || self.device.is_done(work), "stamp {stamp} has passed early");
        }
    }
}

/// Two threads that free and look for memory, beside a device that gets on with its work.
fn model(free: fn(&Scene)) {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let scene = Scene::new();
        let threads = [(); 2].map(|()| {
            let scene = scene.clone();
            thread::spawn(move || {
                free(&scene);
                scene.advance();
            })
        });
        scene.device.run();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Once all is done, one look more finds everything passed.
        scene.device.run();
        scene.advance();
        assert!(scene.pool.lock().unwrap().clock.is_settled());
    });
}

#[test]
fn no_stamp_passes_early() {
    model(Scene::free);
}

#[test]
#[should_panic(expected = "has passed early")]
fn a_stamp_taken_before_the_work_passes_early() {
    model(Scene::free_early);
}
