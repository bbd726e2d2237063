//! Threads that get transfers on.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::shared::Shared;
use crate::tier::TierError;

/// How long a worker that finds nothing to do looks away while something is under way: at first, and at most.
const NAP: Duration = Duration::from_micros(10);
const LONG_NAP: Duration = Duration::from_micros(320);

/// Starts all workers.
pub(super) fn start(shared: &Arc<Shared>) -> Result<Vec<JoinHandle<()>>, TierError> {
    let mut threads = Vec::new();
    for number in 0..shared.config.workers {
        let mine = shared.clone();
        let thread = thread::Builder::new().name(format!("stratalloc-tier-{number}"));
        match thread.spawn(move || run(&mine)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                stop(shared, &mut threads);
                let reason = format!("no thread for worker {number} of {}: {error}", shared.config.workers);
                return Err(TierError::Unusable { tier: "transfer".to_owned(), reason });
            }
        }
    }
    Ok(threads)
}

/// Ends all workers. What is under way is then its waiters' business.
pub(super) fn stop(shared: &Shared, threads: &mut Vec<JoinHandle<()>>) {
    shared.queues.lock().stopping = true;
    shared.changed.notify_all();
    for thread in threads.drain(..) {
        // A worker that has panicked has said so.
        let _ = thread.join();
    }
}

fn run(shared: &Shared) {
    let mut nap = NAP;
    loop {
        if shared.run_one(true) {
            nap = NAP;
            continue;
        }
        let mut queues = shared.queues.lock();
        if queues.stopping {
            return;
        }
        if queues.under_way == 0 {
            shared.changed.wait(&mut queues);
        } else if !queues.has_work() || nap == LONG_NAP {
            // What there is may be waiting for buffers, which others have.
            shared.changed.wait_for(&mut queues, nap);
            nap = (nap * 2).min(LONG_NAP);
        } else {
            nap = (nap * 2).min(LONG_NAP);
        }
    }
}
