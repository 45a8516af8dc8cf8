//! The `roomlog` program; all of it is in the library's `cli` module.

fn main() -> std::process::ExitCode {
    give_memory_back();
    roomlog::cli::main()
}

/// What is free goes back to the system.
///
/// The GNU C library takes the first large buffer that is freed as a sign that more will follow, and keeps them from
/// then on; naming the threshold, whatever it is, ends that. Of smaller ones it gives back only what lies at the end
/// of a heap, and that is next to nothing of a volume that was closed: 16 volumes of 10 MiB, read and closed, left
/// 200 MiB free and resident, 26 MiB after a trim. So a thread trims whenever the process has grown by
/// `GROWTH_BYTES`, at most once in `LOOK_EVERY`; and, because what was let go of later shows nowhere, every `AGAIN_AFTER`
/// looks if the process has worked meanwhile: never while nothing happens.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "two calls of the C library that have no safe form")]
fn give_memory_back() {
    const LARGE_BYTES: i32 = 1 << 20;
    // By default a heap that ends with 128 KiB of free memory is cut, and grows again page by page with the next block
    // that is read.
    const FREE_AT_END_BYTES: i32 = 16 << 20;
    const GROWTH_BYTES: u64 = 4 << 20;
    const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(200);
    const AGAIN_AFTER: u32 = 50;
    // SAFETY: no other thread runs yet, and mallopt takes numbers and no pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_AT_END_BYTES);
    }
    let trimming = || {
        let (mut trimmed, mut looks, mut worked) = (0, 0, 0);
        // Without /proc there is nothing to go by.
        while let Some(resident) = resident_bytes() {
            looks += 1;
            let mut due = resident >= trimmed + GROWTH_BYTES;
            if looks >= AGAIN_AFTER {
                let ticks = processor_ticks().unwrap_or(worked);
                // Its own looks take less.
                due |= ticks > worked + 10;
                (looks, worked) = (0, ticks);
            }
            if due {
                // SAFETY: malloc_trim takes a number and no pointer, and locks what it looks at.
                unsafe {
                    libc::malloc_trim(0);
                }
                trimmed = resident_bytes().unwrap_or(resident);
            }
            trimmed = trimmed.min(resident);
            std::thread::sleep(LOOK_EVERY);
        }
    };
    // Without it more memory stays resident, and all else is as it should be.
    let _ = std::thread::Builder::new().name("trim".to_owned()).stack_size(64 << 10).spawn(trimming);
}

/// Anonymous resident memory: resident pages less those of files.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
    // A page is at least so long; where it is longer, growth is noticed later.
    Some(pages.next()?.saturating_sub(pages.next()?) * 4096)
}

/// What the process has used of processors, in ticks: hundredths of a second.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn processor_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may have spaces in it; what follows it is the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}
