//! epoll, as far as it is needed here: readiness by level, each socket known by a number.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(1024) })
    }

    pub(crate) fn add(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?)
    }

    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Whether the socket is also told of when it takes bytes.
    pub(crate) fn watch_writes(&self, socket: impl AsFd, number: usize, watch: bool) -> io::Result<()> {
        let flags = if watch { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(number as u64), flags)?)
    }

    /// Waits for at most so long, and appends (number, readable, writable) for each socket.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<(usize, bool, bool)>) -> io::Result<()> {
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.drain(..).map(|event| {
            let flags = event.flags;
            (event.data.u64() as usize, flags != epoll::EventFlags::OUT, flags.contains(epoll::EventFlags::OUT))
        }));
        Ok(())
    }
}
