//! Whether the system of a peer whose output is blocked still answers.
//!
//! Nobody else can tell. A ping would wait behind the output. TCP_USER_TIMEOUT ends those who read nothing and whose system
//! says so all the time, as well as those who are gone; without it those who are gone are kept for a quarter of an hour.

use std::time::Duration;

use tokio::net::TcpStream;

/// How often in a row the system has to have asked in vain: once, it may have done so just now.
#[cfg(target_os = "linux")]
const ASKED_MIN: u8 = 2;

/// Whether the peer's system has acknowledged nothing for so long, although it was asked for it.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a call of the C library that has no safe form")]
pub(super) fn is_gone(socket: &TcpStream, time: Duration) -> bool {
    use std::os::fd::AsRawFd;
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("some hundred bytes");
    // SAFETY: the descriptor is that of an open socket, `info` has the room that `bytes` says, and numbers may be anything.
    let info = unsafe {
        let into = info.as_mut_ptr().cast();
        if libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut bytes) != 0 {
            return false;
        }
        info.assume_init()
    };
    // Of a reader who is slow, every question for room in its window is answered, which sets these back.
    let asked = info.tcpi_retransmits.max(info.tcpi_probes);
    asked >= ASKED_MIN && u128::from(info.tcpi_last_ack_recv) >= time.as_millis()
}

/// Elsewhere it is not known: they are kept like those who are slow.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_gone(_socket: &TcpStream, _time: Duration) -> bool {
    false
}
