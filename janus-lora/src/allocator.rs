//! The C library's allocator, told to give large buffers back at once.
//!
//! glibc takes a buffer for a mapping of its own from a size on that grows with what is freed, up to 32 MiB; below it, what
//! is freed stays resident between what is in use. A run's activations are of just these sizes, and what they left behind
//! depended on the order of sizes. With a fixed size the resident memory is what is in use, which the plan can tell. Where
//! memory is not what is short, and for answers and pictures, what was freed is kept instead ([`keep_freed`]).
//!
//! It also gives each thread a heap of its own, in which what was freed waits for that thread: rows are made ready by one
//! thread and freed by another. One heap for all takes 7 to 9 % less memory (`recipes/quickstart.toml` 123 of 135 MB); what
//! threads allocate is few and large, so that they do not wait for each other.

/// Sets it up. To be called before anything large is allocated.
pub(crate) fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Fresh pages of a smaller buffer would cost more than they save.
        const MAPPED_FROM_BYTES: libc::c_int = 1 << 20;
        /// What a block's scratch takes; told nothing, the C library gives back all above 128 KiB, to ask for it again.
        const KEPT_BYTES: libc::c_int = 16 << 20;
        let settings =
            [(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_ARENA_MAX, 1)];
        for (parameter, value) in settings {
            // SAFETY: no memory is passed; a refusal leaves the allocator as it was.
            let _ = unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// Keeps what is freed for what comes next, where memory is not what is short: a step, a block and a drawn token ask for the
/// same sizes again and again, and fresh pages take up to half of a small model's step and a tenth of a large one's.
/// [`give_back`] still gives all of it back.
pub(crate) fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ALL_BYTES: libc::c_int = 1 << 30;
        for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: no memory is passed; a refusal leaves the allocator as it was.
            let _ = unsafe { libc::mallopt(parameter, ALL_BYTES) };
        }
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
