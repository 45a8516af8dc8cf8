//! The `roomlog` program; all of it is in the library's `cli` module.

fn main() -> std::process::ExitCode {
    give_memory_back();
    roomlog::cli::main()
}

/// Large buffers go back to the system as soon as they are free.
///
/// The GNU C library takes the first large buffer that is freed as a sign that more will follow, and keeps them from
/// then on: a server that built volumes while a reader stalled grew by 71 to 79 MiB instead of 32 to 34. Naming the
/// threshold, whatever it is, ends that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "one call of the C library that has no safe form")]
fn give_memory_back() {
    const LARGE_BYTES: i32 = 1 << 20;
    // SAFETY: no other thread runs yet, and mallopt takes two numbers and no pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}
