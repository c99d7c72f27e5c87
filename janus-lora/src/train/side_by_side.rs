//! Batches of one step on threads of their own.
//!
//! Between the operations of a small model threads wait for each other longer than they compute: `docs/benchmarks/` has what
//! two batches at once, each on half of the threads, take of the time of one after the other on all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Pools among which the threads are divided.
#[derive(Debug)]
pub(super) struct SideBySide {
    pools: Vec<ThreadPool>,
}

impl SideBySide {
    /// A pool for each of `at_once` pieces of work; `None` where there is nothing to divide, or the system starts no threads.
    pub(super) fn new(at_once: usize) -> Option<Self> {
        let threads = rayon::current_num_threads();
        let at_once = at_once.min(threads);
        if at_once < 2 {
            return None;
        }
        let pool = |number| {
            let own = threads / at_once + usize::from(number < threads % at_once);
            ThreadPoolBuilder::new().num_threads(own).thread_name(move |i| format!("janus-{number}-{i}")).build()
        };
        Some(Self { pools: (0..at_once).map(pool).collect::<Result<_, _>>().ok()? })
    }

    /// Does `work` of every number below `count` and gives what it made to `collect`, in the order of the numbers: what is
    /// done early waits, at most one piece for each pool but the slowest.
    pub(super) fn each<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> T + Sync,
        collect: impl FnMut(usize, T) + Send,
    ) {
        let next = AtomicUsize::new(0);
        let waiting = Mutex::new((0, BTreeMap::new(), collect));
        std::thread::scope(|scope| {
            for pool in self.pools.iter().take(count) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            break;
                        }
                        let made = pool.install(|| work(number));
                        let mut guard = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                        let (wanted, early, collect) = &mut *guard;
                        early.insert(number, made);
                        while let Some(made) = early.remove(wanted) {
                            collect(*wanted, made);
                            *wanted += 1;
                        }
                    }
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_comes_in_order() {
        let pool = ThreadPoolBuilder::new().num_threads(5).build().expect("five threads");
        pool.install(|| {
            let side_by_side = SideBySide::new(2).expect("five threads are enough for two");
            let threads: Vec<usize> = side_by_side.pools.iter().map(ThreadPool::current_num_threads).collect();
            assert_eq!(threads, [3, 2]);
            let calls = AtomicUsize::new(0);
            let mut seen = Vec::new();
            let work = |number: usize| {
                calls.fetch_add(1, Ordering::Relaxed);
                // The first is done last.
                std::thread::sleep(std::time::Duration::from_millis(if number == 0 { 30 } else { 1 }));
                number * number
            };
            side_by_side.each(4, work, |number, square| seen.push((number, square)));
            assert_eq!((seen, calls.into_inner()), (vec![(0, 0), (1, 1), (2, 4), (3, 9)], 4));
            side_by_side.each(0, |number| number, |_, _| panic!("there is nothing to do"));
        });
        let alone = ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        assert!(alone.install(|| SideBySide::new(4)).is_none());
    }
}
