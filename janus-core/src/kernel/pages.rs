//! Large pages for large buffers: a weight of megabytes is read in steps of whole rows, and every small page of it costs a
//! look into the page table.

/// Bytes from which a buffer is worth it: some large pages.
const WORTH_BYTES: usize = 8 << 20;

/// Asks the system to back a vector's memory, not yet touched, by large pages. A wish: where it is not granted, or the
/// system knows none, nothing changes.
pub(crate) fn prefer_large<T>(values: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        let bytes = values.capacity() * size_of::<T>();
        if bytes < WORTH_BYTES {
            return;
        }
        // SAFETY: asking for the page size has no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let start = (values.as_mut_ptr() as usize).next_multiple_of(page);
        let end = (values.as_mut_ptr() as usize + bytes) / page * page;
        if end > start {
            // SAFETY: the whole pages from `start` to `end` lie inside the vector's own allocation, and the advice changes
            // none of their values.
            let _ = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (values, WORTH_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_no_value() {
        let mut values: Vec<u32> = Vec::with_capacity(WORTH_BYTES);
        prefer_large(&mut values);
        values.extend(0..WORTH_BYTES as u32);
        prefer_large(&mut values);
        assert!(values.iter().enumerate().all(|(i, v)| i as u32 == *v));
    }
}
