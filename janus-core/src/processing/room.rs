//! One budget of memory for all pictures that are being decoded, however many threads decode.
//!
//! A picture may take half a gigabyte while it is unpacked, and a fifth until it has been made smaller. Of many large ones some
//! threads wait; ordinary ones never meet the limit.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Condvar, Mutex, PoisonError};

use image::RgbImage;

/// What all of them may take together; a picture that takes more than that is decoded alone.
const BUDGET_BYTES: u64 = 1 << 30;

static TAKEN_BYTES: Mutex<u64> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

thread_local! {
    /// Rooms that this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A part of the budget, held by the thread that took it.
#[derive(Debug)]
pub(super) struct Room {
    bytes: u64,
    of_this_thread: PhantomData<*const ()>,
}

impl Room {
    /// Waits until there is room for so many bytes.
    ///
    /// A thread that holds some takes more without waiting: while the pool works on its picture it may be given the next one to
    /// decode, and would wait for itself.
    pub(super) fn take(bytes: u64) -> Self {
        let mut taken = TAKEN_BYTES.lock().unwrap_or_else(PoisonError::into_inner);
        while HELD.get() == 0 && *taken > 0 && taken.saturating_add(bytes) > BUDGET_BYTES {
            taken = GIVEN_BACK.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes;
        HELD.set(HELD.get() + 1);
        Self { bytes, of_this_thread: PhantomData }
    }

    /// Gives back what is beyond so many bytes.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        give_back(excess);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        give_back(self.bytes);
    }
}

fn give_back(bytes: u64) {
    *TAKEN_BYTES.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
    GIVEN_BACK.notify_all();
}

/// A decoded picture, which takes room of the budget until it is dropped.
#[derive(Debug)]
pub struct Decoded {
    pub(super) image: RgbImage,
    pub(super) _room: Room,
}

impl Decoded {
    /// The picture by itself, outside the budget.
    pub fn into_image(self) -> RgbImage {
        self.image
    }
}

impl Deref for Decoded {
    type Target = RgbImage;

    fn deref(&self) -> &RgbImage {
        &self.image
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// Six threads that need a third and a bit each, so that two fit: all get through, and never three at once.
    #[test]
    fn threads_wait_for_each_other_and_never_for_themselves() {
        static AT_ONCE: AtomicU64 = AtomicU64::new(0);
        static MOST: AtomicU64 = AtomicU64::new(0);
        let work = || {
            for _ in 0..8 {
                let mut room = Room::take(BUDGET_BYTES / 3 + 1);
                MOST.fetch_max(AT_ONCE.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
                let within = Room::take(BUDGET_BYTES * 2);
                drop(within);
                AT_ONCE.fetch_sub(1, Ordering::SeqCst);
                room.shrink(1);
            }
        };
        std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(work))));
        // Other tests decode meanwhile, which leaves less.
        assert!((1..=2).contains(&MOST.load(Ordering::SeqCst)), "{MOST:?} at once");
        assert_eq!(HELD.get(), 0);
    }
}
