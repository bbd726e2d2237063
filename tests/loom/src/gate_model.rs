//! The gate: whoever is inside is alone with the magazine.

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::cache::gate::Gate;
use crate::sync::without_fences;

/// A magazine, the lock of its pool, and who may reach it without that lock.
struct Scene {
    gate: Gate,
    /// The pool's lock.
    lock: Mutex<()>,
    /// Stands for the stacks: loom reports two threads in here at one time, and accesses that nothing orders.
    content: UnsafeCell<u32>,
}

// SAFETY: `content` is reached inside the gate, with the gate closed, or by the owner under the lock; loom checks that this suffices.
unsafe impl Sync for Scene {}
// SAFETY: it holds numbers only.
unsafe impl Send for Scene {}

impl Scene {
    /// As after `DeviceCache::adopt`: the owner may go in.
    fn new() -> Arc<Scene> {
        let scene = Scene { gate: Gate::new(), lock: Mutex::new(()), content: UnsafeCell::new(0) };
        scene.gate.set_slow(false);
        Arc::new(scene)
    }

    /// Does as the library's alloc and free do. Returns whether it went the fast way.
    fn as_owner(&self) -> bool {
        let fast = self.gate.try_enter();
        if fast {
            self.touch();
            self.gate.leave();
        } else {
            let _pool = self.lock.lock().unwrap();
            self.touch();
        }
        fast
    }

    /// Does as `Magazines::drain` does.
    fn as_thief(&self) {
        let _pool = self.lock.lock().unwrap();
        Gate::close([&self.gate].into_iter());
        self.touch();
        self.gate.open();
    }

    fn touch(&self) {
        self.content.with_mut(|content| {
            // SAFETY: loom hands out the pointer, and fails the model where another thread has it too.
            unsafe { *content += 1 }
        });
    }

    fn touched(&self) -> u32 {
        self.content.with(|content| {
            // SAFETY: all threads have been joined.
            unsafe { *content }
        })
    }
}

fn an_owner_and_a_thief() {
    loom::model(|| {
        let scene = Scene::new();
        let owner = thread::spawn({
            let scene = scene.clone();
            move || {
                for _ in 0..2 {
                    scene.as_owner();
                }
            }
        });
        scene.as_thief();
        owner.join().unwrap();
        assert_eq!(scene.touched(), 3);
    });
}

#[test]
fn an_owner_and_a_thief_are_never_inside_together() {
    an_owner_and_a_thief();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_its_fences_the_gate_lets_both_in() {
    without_fences(an_owner_and_a_thief);
}

#[test]
fn two_thieves_and_an_owner() {
    // Three threads: only so many changes of thread at places where none is needed.
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let scene = Scene::new();
        let thief = thread::spawn({
            let scene = scene.clone();
            move || scene.as_thief()
        });
        let owner = thread::spawn({
            let scene = scene.clone();
            move || {
                scene.as_owner();
            }
        });
        scene.as_thief();
        thief.join().unwrap();
        owner.join().unwrap();
        assert_eq!(scene.touched(), 3);
    });
}

/// As `DeviceCache::begin_private` and `end_private`: once `begin` has returned, the owner takes the lock, until `end`.
fn a_capture(closes: bool) {
    loom::model(move || {
        let scene = Scene::new();
        let owner = thread::spawn({
            let scene = scene.clone();
            move || {
                scene.as_owner();
            }
        });
        {
            let _pool = scene.lock.lock().unwrap();
            scene.gate.set_slow(true);
            if closes {
                Gate::close([&scene.gate].into_iter());
                scene.gate.open();
            }
            // The gate is open again, but marked slow: the owner has to wait for the lock.
            scene.touch();
            scene.gate.set_slow(false);
        }
        owner.join().unwrap();
        assert!(scene.as_owner(), "the way is free again");
    });
}

#[test]
fn an_owner_marked_slow_stays_outside() {
    a_capture(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn marking_alone_does_not_wait_for_an_owner_inside() {
    a_capture(false);
}
