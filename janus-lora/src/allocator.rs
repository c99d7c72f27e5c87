//! The C library's allocator, told to give large buffers back at once.
//!
//! glibc takes a buffer for a mapping of its own from a size on that grows with what is freed, up to 32 MiB; below it, what
//! is freed stays resident between what is in use. A run's activations are of just these sizes, and what they left behind
//! depended on the order of sizes. With a fixed size the resident memory is what is in use, which the plan can tell.

/// Sets it up. To be called before anything large is allocated.
pub(crate) fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Fresh pages of a smaller buffer would cost more than they save.
        const MAPPED_FROM_BYTES: libc::c_int = 1 << 20;
        // SAFETY: no memory is passed; a refusal leaves the allocator as it was.
        let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) };
    }
}

/// Gives back what is free inside the heap, smaller buffers included: before a phase that asks for other sizes.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: no memory is passed, and what is in use stays where it is.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
