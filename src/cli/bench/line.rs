//! One connection of the load: a link, its hello, and what every role needs of it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::client::Error;
use crate::client::link::{Connector, End, FRAME_BYTES_MAX, Inbox, Link, RoomStream, Writer};
use crate::protocol::{ClientFrame, Frames, Hello, HelloBody, ServerFrame, WelcomeLimits, frame_into};

/// What a role does with the frames that come.
pub(super) trait Role: Send + 'static {
    fn frame(&mut self, frame: &ServerFrame<'_>) -> Result<(), Error>;
}

/// What the reading task and the role's task share.
pub(super) struct Line<R> {
    pub(super) role: Mutex<R>,
    pub(super) wake: Notify,
    welcome: Mutex<Option<WelcomeLimits>>,
    pongs: Mutex<VecDeque<Vec<u8>>>,
}

impl<R: Role> Inbox for Line<R> {
    fn frames(&self, frames: &[u8], _stream: Option<&RoomStream>) -> Result<(), Error> {
        let mut role = self.role.lock();
        for frame in Frames::new(frames, FRAME_BYTES_MAX) {
            match ServerFrame::parse(frame.map_err(Error::protocol)?).map_err(Error::protocol)? {
                None => {}
                Some(ServerFrame::Welcome(welcome)) => *self.welcome.lock() = Some(welcome.limits),
                Some(ServerFrame::Goodbye(goodbye)) => {
                    return Err(Error::Goodbye {
                        code: goodbye.code,
                        reason: goodbye.reason.to_owned(),
                        reconnect: goodbye.reconnect,
                        after: std::time::Duration::from_millis(goodbye.after_ms.into()),
                    });
                }
                Some(ServerFrame::Error(fault)) if fault.request == 0 => return Err(Error::refused(&fault)),
                Some(frame) => role.frame(&frame)?,
            }
        }
        self.wake.notify_one();
        Ok(())
    }

    fn ping(&self, payload: &[u8]) {
        let mut pongs = self.pongs.lock();
        if pongs.len() < 8 {
            pongs.push_back(payload.to_vec());
        }
        self.wake.notify_one();
    }

    fn alive(&self) {}
}

/// A welcomed connection.
pub(super) struct Connected<R> {
    pub(super) line: Arc<Line<R>>,
    pub(super) limits: WelcomeLimits,
    writer: Writer,
    reading: JoinHandle<End>,
}

impl<R> Drop for Connected<R> {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl<R: Role> Connected<R> {
    pub(super) async fn open(connector: &Connector, role: R) -> Result<Self, Error> {
        let Link { writer, reader } = connector.connect().await?;
        let line = Arc::new(Line {
            role: Mutex::new(role),
            wake: Notify::new(),
            welcome: Mutex::new(None),
            pongs: Mutex::new(VecDeque::new()),
        });
        let reading = tokio::spawn(reader.run(Arc::clone(&line) as Arc<dyn Inbox>));
        let mut connected = Self { line, limits: WelcomeLimits::default(), writer, reading };
        let body = HelloBody { client: "roomlog-bench", ..HelloBody::default() }.to_bytes();
        let mut hello = Vec::new();
        push(&mut hello, &ClientFrame::Hello(Hello::new(&body)));
        connected.send(&mut hello).await?;
        loop {
            let welcome = *connected.line.welcome.lock();
            if let Some(limits) = welcome {
                connected.limits = limits;
                return Ok(connected);
            }
            connected.woken().await?;
        }
    }

    pub(super) async fn send(&mut self, frames: &mut [u8]) -> Result<(), Error> {
        self.writer.send(frames).await.map_err(|end| end.error)
    }

    /// Waits until something has come; answers pings meanwhile. Cancel-safe but for the pong.
    pub(super) async fn woken(&mut self) -> Result<(), Error> {
        tokio::select! {
            end = &mut self.reading => return Err(ended(end)),
            () = self.line.wake.notified() => {}
        }
        loop {
            let pong = self.line.pongs.lock().pop_front();
            let Some(mut pong) = pong else { return Ok(()) };
            self.writer.pong(&mut pong).await.map_err(|end| end.error)?;
        }
    }
}

fn ended(end: Result<End, tokio::task::JoinError>) -> Error {
    match end {
        Ok(end) => end.error,
        Err(error) => Error::Disconnected { code: None, give_up: false, reason: error.to_string() },
    }
}

/// Appends a frame with its length.
pub(super) fn push(out: &mut Vec<u8>, frame: &ClientFrame<'_>) {
    frame_into(out, |out| frame.encode_into(out));
}
