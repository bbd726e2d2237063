//! How often each function was called, counted by each thread for itself: a call pays one addition that no other thread sees.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// More than there are functions.
const CELLS: usize = 1024;

/// The counts of a thread. When it ends, the next one counts on here, so that nothing is lost.
type Cells = [AtomicU64; CELLS];

/// All tables, and those whose threads have ended.
static TABLES: Mutex<(Vec<&'static Cells>, Vec<&'static Cells>)> = Mutex::new((Vec::new(), Vec::new()));
/// Functions are numbered as they are first called.
static NEXT: AtomicU32 = AtomicU32::new(1);

thread_local! {
    static OWN: Cell<Option<&'static Cells>> = const { Cell::new(None) };
    static AT_END: AtEnd = const { AtEnd };
}

struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(cells) = OWN.take() {
            TABLES.lock().1.push(cells);
        }
    }
}

/// How often one function was called.
#[derive(Debug)]
pub(crate) struct Calls {
    number: AtomicU32,
    /// Counted where the thread has no table: it is ending.
    late: AtomicU64,
    /// What is not to be seen any more.
    forgotten: AtomicU64,
}

impl Calls {
    pub(crate) const fn new() -> Calls {
        Calls { number: AtomicU32::new(0), late: AtomicU64::new(0), forgotten: AtomicU64::new(0) }
    }

    /// Counts a call.
    #[inline]
    pub(crate) fn count(&self) {
        match OWN.get().map(|cells| &cells[self.number.load(Relaxed) as usize % CELLS]) {
            // The first cell is no function's.
            Some(cell) if self.number.load(Relaxed) != 0 => cell.store(cell.load(Relaxed) + 1, Relaxed),
            _ => self.count_first(),
        }
    }

    /// The first call of a function, or of a thread.
    #[cold]
    fn count_first(&self) {
        // A number that another thread has given meanwhile is kept, and this one is not used.
        if self.number.load(Relaxed) == 0 {
            let number = NEXT.fetch_add(1, Relaxed);
            let _ = self.number.compare_exchange(0, number, Relaxed, Relaxed);
        }
        if OWN.get().is_none() && AT_END.try_with(|_| ()).is_ok() {
            let (all, ended) = &mut *TABLES.lock();
            let cells = ended.pop().unwrap_or_else(|| {
                let cells: &'static Cells = Box::leak(Box::new([const { AtomicU64::new(0) }; CELLS]));
                all.push(cells);
                cells
            });
            OWN.set(Some(cells));
        }
        match OWN.get() {
            Some(cells) => {
                let cell = &cells[self.number.load(Relaxed) as usize % CELLS];
                cell.store(cell.load(Relaxed) + 1, Relaxed);
            }
            None => drop(self.late.fetch_add(1, Relaxed)),
        }
    }

    fn sum(&self) -> u64 {
        let number = self.number.load(Relaxed) as usize % CELLS;
        let counted: u64 = match number {
            0 => 0,
            number => TABLES.lock().0.iter().map(|cells| cells[number].load(Relaxed)).sum(),
        };
        counted + self.late.load(Relaxed)
    }

    /// All calls since the start or the last reset.
    pub(crate) fn get(&self) -> u64 {
        self.sum().saturating_sub(self.forgotten.load(Relaxed))
    }

    pub(crate) fn reset(&self) {
        self.forgotten.store(self.sum(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_for_themselves_and_nothing_is_lost() {
        static ONE: Calls = Calls::new();
        static OTHER: Calls = Calls::new();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..1000).for_each(|_| ONE.count()));
                }
            });
        }
        OTHER.count();
        assert_eq!((ONE.get(), OTHER.get()), (12_000, 1));
        ONE.reset();
        ONE.count();
        assert_eq!((ONE.get(), OTHER.get()), (1, 1));
    }
}
