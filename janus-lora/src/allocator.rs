//! The program's allocator: what is freed of large buffers serves the next ones, and never makes the process larger.
//!
//! A step, a block and a drawn token ask for the same sizes again and again, and fresh pages take up to half of a small
//! model's step and a tenth of a large one's. The C library keeps what is freed, too, but between what is in use: what a run
//! took depended on the order of its sizes, up to a third more than it ever used at once. Here buffers of
//! [`LARGE_BYTES`] and more are mappings of whole pages. Freed pages wait for their next use, joined with their neighbours;
//! where fresh ones are needed and would lift the process above the most that was in use at once so far, as many waiting ones
//! go back to the system first. So the largest resident size is that of what is in use, which a plan can tell.
//!
//! Smaller buffers are the C library's, all in one heap: it would give each thread one of its own, in which what was freed
//! waits for that thread, and rows are made ready by one thread and freed by another.

use std::alloc::{GlobalAlloc, Layout, System};
#[cfg(target_os = "linux")]
use std::sync::{MutexGuard, PoisonError};

/// The program's allocator; elsewhere than on Linux it is the system's.
#[derive(Debug)]
pub struct Allocator;

/// From here on a buffer is a mapping of its own: a few fresh pages cost no more than what is copied into them.
#[cfg(target_os = "linux")]
const LARGE_BYTES: usize = 64 << 10;

/// Sets up the C library's part. To be called before the first thread is started.
pub(crate) fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: no memory is passed; a refusal leaves the allocator as it was.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Gives back all that waits, matrices of blocks included: before memory is measured, and before a phase of other sizes.
pub(crate) fn give_back() {
    janus_core::free_spares();
    #[cfg(target_os = "linux")]
    pages().give_back(usize::MAX);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: no memory is passed, and what is in use stays where it is.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(target_os = "linux"))]
// SAFETY: all of it is the system allocator's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(target_os = "linux")]
// SAFETY: a buffer is `System`'s or one of `PAGES` by its layout alone, which is the same when it is freed; pages that were
// handed out are nobody else's until then, are aligned to whole pages, and hold at least the size asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return pages().take(layout.size()).0;
        }
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: as above.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let (pointer, is_fresh) = pages().take(layout.size());
        if !is_fresh && !pointer.is_null() {
            // SAFETY: these bytes were just handed out to this call.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if is_large(layout) {
            pages().put(pointer, layout.size());
        } else {
            // SAFETY: as above: a buffer of this layout came from there.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that makes a layout with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: as above.
            (false, false) => unsafe { System.realloc(pointer, layout, size) },
            (true, true) => pages().resize(pointer, layout.size(), size),
            _ => {
                // SAFETY: `wanted` is not empty, as the caller promises; both buffers are apart and hold as many bytes as are
                // copied; the old one is freed as the caller may do.
                unsafe {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        pointer.copy_to_nonoverlapping(new, layout.size().min(size));
                        self.dealloc(pointer, layout);
                    }
                    new
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn pages() -> MutexGuard<'static, pages::Pages> {
    // It allocates nothing while it is held, and nothing under it panics.
    pages::PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE_BYTES && layout.align() <= pages::ALIGNMENT
}

/// Mappings of whole pages.
#[cfg(target_os = "linux")]
mod pages {
    use std::ptr::null_mut;
    use std::sync::Mutex;

    /// A multiple of the machine's page: other processors than these have pages of 4, 16 or 64 KiB.
    const PAGE_BYTES: usize = if cfg!(any(target_arch = "x86_64", target_arch = "x86")) { 4 << 10 } else { 64 << 10 };
    /// What the start of every page is a multiple of.
    pub(super) const ALIGNMENT: usize = 4 << 10;
    /// Ranges that wait at most. They are kept in place, for a list that grows would ask this very allocator.
    const MOST_RANGES: usize = 512;

    /// All of the process.
    pub(super) static PAGES: Mutex<Pages> = Mutex::new(Pages::new());

    /// Waiting pages one behind the other, of one or of several mappings.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Range {
        start: usize,
        bytes: usize,
    }

    #[derive(Debug)]
    pub(super) struct Pages {
        /// The waiting ones, those that came last at the end.
        ranges: [Range; MOST_RANGES],
        /// How many of them there are.
        many: usize,
        waiting: usize,
        used: usize,
        most_used: usize,
    }

    fn whole(bytes: usize) -> usize {
        // What is too much for an address comes to a mapping that the system refuses.
        bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(usize::MAX - (PAGE_BYTES - 1))
    }

    impl Pages {
        pub(super) const fn new() -> Self {
            let ranges = [Range { start: 0, bytes: 0 }; MOST_RANGES];
            Self { ranges, many: 0, waiting: 0, used: 0, most_used: 0 }
        }

        /// The most bytes that were in use at once.
        #[cfg(test)]
        pub(super) fn most_used(&self) -> usize {
            self.most_used
        }

        /// Bytes in use and waiting.
        #[cfg(test)]
        pub(super) fn held(&self) -> usize {
            self.used + self.waiting
        }

        /// Pages for so many bytes, null where the system has none, and whether they are fresh, which is to say zeros.
        pub(super) fn take(&mut self, bytes: usize) -> (*mut u8, bool) {
            let bytes = whole(bytes);
            if let Some(start) = self.reuse(bytes) {
                return (start as *mut u8, false);
            }
            self.make_room(bytes);
            let start = self.map(bytes);
            if !start.is_null() {
                self.count(bytes);
            }
            (start, true)
        }

        /// Frees what [`Pages::take`] gave for as many bytes.
        pub(super) fn put(&mut self, start: *mut u8, bytes: usize) {
            self.used -= whole(bytes);
            self.keep(Range { start: start as usize, bytes: whole(bytes) });
        }

        /// The same bytes in as many pages as `new` takes, moved if need be and mostly without a copy.
        pub(super) fn resize(&mut self, start: *mut u8, old: usize, new: usize) -> *mut u8 {
            let (old, new) = (whole(old), whole(new));
            if new <= old {
                self.used -= old - new;
                if new < old {
                    self.keep(Range { start: start as usize + new, bytes: old - new });
                }
                return start;
            }
            self.make_room(new - old);
            // SAFETY: these pages were handed out and are the caller's, who gives them up for those that come back.
            let moved = unsafe { libc::mremap(start.cast(), old, new, libc::MREMAP_MAYMOVE) };
            if moved != libc::MAP_FAILED {
                self.count(new - old);
                return moved.cast();
            }
            // Pages of several mappings cannot move as one.
            let fresh = self.map(new);
            if fresh.is_null() {
                return fresh;
            }
            self.count(new - old);
            // SAFETY: both ranges are the caller's now and apart; the fresh one is the longer.
            unsafe { start.copy_to_nonoverlapping(fresh, old) };
            self.keep(Range { start: start as usize, bytes: old });
            fresh
        }

        /// The end of the smallest range that is long enough.
        fn reuse(&mut self, bytes: usize) -> Option<usize> {
            let ranges = &mut self.ranges[..self.many];
            let (number, range) =
                ranges.iter_mut().enumerate().filter(|(_, r)| r.bytes >= bytes).min_by_key(|(_, r)| r.bytes)?;
            range.bytes -= bytes;
            let start = range.start + range.bytes;
            if range.bytes == 0 {
                self.remove(number);
            }
            self.waiting -= bytes;
            self.count(bytes);
            Some(start)
        }

        /// Counts so many more as used.
        fn count(&mut self, bytes: usize) {
            self.used += bytes;
            self.most_used = self.most_used.max(self.used);
        }

        /// Gives back what would lie above the most that ever was in use, once so many more are.
        fn make_room(&mut self, bytes: usize) {
            let used = self.used.saturating_add(bytes);
            self.give_back(used.saturating_add(self.waiting).saturating_sub(used.max(self.most_used)));
        }

        fn map(&mut self, bytes: usize) -> *mut u8 {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            for _ in 0..2 {
                // SAFETY: a new mapping of no file, at an address that the system chooses.
                let start = unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) };
                if start != libc::MAP_FAILED {
                    return start.cast();
                }
                self.give_back(usize::MAX);
            }
            null_mut()
        }

        /// Lets a range wait, joined with its neighbours.
        fn keep(&mut self, mut range: Range) {
            self.waiting += range.bytes;
            let mut number = 0;
            while number < self.many {
                let other = self.ranges[number];
                if other.start + other.bytes == range.start || range.start + range.bytes == other.start {
                    range = Range { start: other.start.min(range.start), bytes: other.bytes + range.bytes };
                    self.remove(number);
                } else {
                    number += 1;
                }
            }
            if self.many == MOST_RANGES {
                let oldest = self.ranges[0];
                self.remove(0);
                self.unmap(oldest);
            }
            self.ranges[self.many] = range;
            self.many += 1;
        }

        /// Gives at least so many waiting bytes back to the system, or all there are: those that have waited longest.
        pub(super) fn give_back(&mut self, mut bytes: usize) {
            while bytes > 0 && self.many > 0 {
                let oldest = self.ranges[0];
                if oldest.bytes > bytes {
                    let part = whole(bytes).min(oldest.bytes);
                    self.ranges[0] = Range { start: oldest.start + part, bytes: oldest.bytes - part };
                    if self.ranges[0].bytes == 0 {
                        self.remove(0);
                    }
                    return self.unmap(Range { start: oldest.start, bytes: part });
                }
                self.remove(0);
                self.unmap(oldest);
                bytes -= oldest.bytes;
            }
        }

        fn remove(&mut self, number: usize) {
            self.ranges.copy_within(number + 1..self.many, number);
            self.many -= 1;
        }

        fn unmap(&mut self, range: Range) {
            self.waiting -= range.bytes;
            // SAFETY: waiting pages are nobody's. Where the system has no room to note a hole they stay mapped, which is harmless.
            unsafe { libc::munmap(range.start as *mut libc::c_void, range.bytes) };
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::pages::Pages;
    use super::*;

    const PAGE: usize = 64 << 10;

    #[test]
    fn what_is_freed_serves_again_and_is_joined() {
        let mut pages = Pages::new();
        let (start, is_fresh) = pages.take(10 * PAGE);
        assert!(is_fresh && !start.is_null());
        pages.put(start, 10 * PAGE);
        // Cut up, and put together again in another order.
        let parts: Vec<(*mut u8, bool)> = [4, 3, 3].iter().map(|count| pages.take(count * PAGE)).collect();
        assert!(parts.iter().all(|(_, is_fresh)| !is_fresh));
        for (number, count) in [(1, 3), (0, 4), (2, 3)] {
            pages.put(parts[number].0, count * PAGE);
        }
        assert_eq!(pages.take(10 * PAGE), (start, false));
        assert_eq!(pages.most_used(), 10 * PAGE);
        pages.put(start, 10 * PAGE);
        pages.give_back(usize::MAX);
        assert!(pages.take(PAGE).1, "nothing waits any more");
    }

    /// In use and waiting together are never more than what was in use at once.
    #[test]
    fn what_waits_never_makes_the_process_larger() {
        let mut pages = Pages::new();
        let taken: Vec<*mut u8> = (0..6).map(|_| pages.take(2 * PAGE).0).collect();
        // Every other one: no two are neighbours, and what is longer finds no place among them.
        taken.iter().step_by(2).for_each(|start| pages.put(*start, 2 * PAGE));
        assert_eq!(pages.held(), 12 * PAGE);
        let (_, is_fresh) = pages.take(3 * PAGE);
        assert!(is_fresh);
        assert_eq!((pages.held(), pages.most_used()), (12 * PAGE, 12 * PAGE));
        pages.take(5 * PAGE);
        assert_eq!((pages.held(), pages.most_used()), (14 * PAGE, 14 * PAGE));
    }

    #[test]
    fn values_stay_when_a_buffer_grows_and_shrinks() {
        let layout = |bytes| Layout::from_size_align(bytes, 4).unwrap();
        for (old, new) in
            [(1 << 10, 1 << 20), (1 << 20, 3 << 20), (3 << 20, 1 << 20), (1 << 20, 1 << 10), (70_000, 70_001)]
        {
            // SAFETY: every buffer is freed with the layout that it has then, and only bytes inside it are touched.
            unsafe {
                let start = Allocator.alloc(layout(old));
                (0..old).for_each(|i| start.add(i).write((i % 251) as u8));
                let moved = Allocator.realloc(start, layout(old), new);
                assert!((0..old.min(new)).all(|i| moved.add(i).read() == (i % 251) as u8), "{old} {new}");
                Allocator.dealloc(moved, layout(new));
                let zeros = Allocator.alloc_zeroed(layout(new));
                assert!((0..new).all(|i| zeros.add(i).read() == 0), "{new}");
                Allocator.dealloc(zeros, layout(new));
            }
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let mut pages = Pages::new();
        for bytes in [usize::MAX, usize::MAX / 2, 1 << 60] {
            assert!(pages.take(bytes).0.is_null(), "{bytes}");
        }
        let (start, _) = pages.take(PAGE);
        assert!(pages.resize(start, PAGE, 1 << 60).is_null());
        pages.put(start, PAGE);
        assert_eq!(pages.take(PAGE), (start, false), "the old one is still there");
    }
}
