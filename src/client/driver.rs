//! Keeps a client connected: one task that connects, sends, watches the clock, and starts again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::backoff::{self, Backoff};
use super::core::Core;
use super::link::{CloseCode, Connector, End, Inbox, Link, RoomStream, Writer};
use super::state::State;
use super::{Error, ErrorKind, Options};

/// What the application's handles, the driver and the link's tasks share.
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    /// There may be something to send.
    pub(crate) wake: Notify,
    /// Publishes have been answered.
    pub(crate) progress: Notify,
    pub(crate) state: watch::Sender<State>,
    pub(crate) stop: CancellationToken,
}

/// Hands what comes on one connection to the core.
struct SessionInbox {
    shared: Arc<Shared>,
    generation: u64,
}

impl Inbox for SessionInbox {
    fn frames(&self, frames: &[u8], stream: Option<&RoomStream>) -> Result<(), Error> {
        let before;
        let after;
        {
            let mut core = self.shared.core.lock();
            before = core.outgoing.pending.publishes;
            core.frames(self.generation, frames, stream, Instant::now())?;
            after = core.outgoing.pending.publishes;
        }
        if after < before {
            self.shared.progress.notify_waiters();
        }
        // An answer makes room for the next request; a delivery does not, but waking costs little.
        self.shared.wake.notify_one();
        Ok(())
    }

    fn ping(&self, payload: &[u8]) {
        self.shared.core.lock().ping(self.generation, payload);
        self.shared.wake.notify_one();
    }

    fn alive(&self) {
        self.shared.core.lock().alive(self.generation, Instant::now());
    }
}

/// How one connection ended.
struct Ended {
    error: Error,
    /// How long the session lasted; nothing if there was none.
    lasted: Option<Duration>,
}

/// Runs until the client is closed or nothing is left to hope for.
pub(crate) async fn run(shared: Arc<Shared>, connector: Connector, options: Options) {
    let mut backoff = Backoff::new(options.backoff, options.backoff_max);
    let mut welcomed_once = false;
    let why = loop {
        let ended = connect_and_serve(&shared, &connector, &options, backoff.attempts()).await;
        shared.core.lock().disconnected();
        let Some(Ended { error, lasted }) = ended else { break None };
        tracing::debug!(%error, "the connection to the broker ended");
        welcomed_once |= lasted.is_some();
        if gives_up(&error, welcomed_once) {
            break Some(error);
        }
        // One that is ended at once again and again must not be made again at once.
        if lasted.is_some_and(|lasted| lasted >= options.backoff_max.min(Duration::from_secs(5))) {
            backoff.reset();
        }
        let attempt = backoff.attempts() + 1;
        let until = Instant::now() + backoff.next(least_wait(&error), backoff::random());
        shared.state.send_replace(State::Waiting { attempt, until, why: error });
        tokio::select! {
            biased;
            () = sleep_until(until) => {}
            () = shared.stop.cancelled() => break None,
        }
    };
    shared.core.lock().close(why.clone());
    shared.state.send_replace(State::Closed { why });
    shared.progress.notify_waiters();
}

/// Whether another attempt makes no sense. What was right once may be right again, unless the broker says otherwise.
fn gives_up(error: &Error, welcomed_once: bool) -> bool {
    match error {
        Error::Goodbye { reconnect, .. } => !reconnect,
        Error::Disconnected { give_up, .. } => *give_up,
        error => !welcomed_once && error.kind() == ErrorKind::Change,
    }
}

fn least_wait(error: &Error) -> Duration {
    match error {
        Error::Goodbye { after, .. } => *after,
        Error::Refused { retry_after, .. } => *retry_after,
        _ => Duration::ZERO,
    }
}

/// One attempt and, if it succeeds, one session. `None` if the client was closed.
async fn connect_and_serve(
    shared: &Arc<Shared>,
    connector: &Connector,
    options: &Options,
    attempt: u32,
) -> Option<Ended> {
    shared.state.send_replace(State::Connecting { attempt });
    let began = Instant::now();
    let deadline = began + options.connect_timeout;
    let late = || Error::Timeout { what: "connecting", after: options.connect_timeout };
    let link = tokio::select! {
        biased;
        link = timeout_at(deadline, connector.connect()) => link,
        () = shared.stop.cancelled() => return None,
    };
    let Link { mut writer, reader } = match link {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => return Some(Ended { error, lasted: None }),
        Err(_) => return Some(Ended { error: late(), lasted: None }),
    };
    let (generation, mut hello) = shared.core.lock().begin(Instant::now());
    match timeout_at(deadline, writer.send(&mut hello)).await {
        Ok(Ok(())) => {}
        Ok(Err(end)) => return Some(Ended { error: end.error, lasted: None }),
        Err(_) => return Some(Ended { error: late(), lasted: None }),
    }
    let inbox = Arc::new(SessionInbox { shared: Arc::clone(shared), generation });
    let mut reading = AbortOnDrop(tokio::spawn(reader.run(inbox)));
    let mut session = Session { shared, options, deadline, since: None, writing: false };
    let end = session.serve(&mut writer, &mut reading.0).await;
    let stopped = end.is_none();
    let end = end.unwrap_or(End { error: Error::Closed { why: None }, close: CloseCode::Normal });
    drop(reading);
    let lasted = session.since.map(|since| since.elapsed());
    let error = with_goodbye(shared, end.error);
    let reason = if stopped { String::new() } else { error.to_string() };
    if !session.writing {
        writer.close(end.close, &reason).await;
    }
    (!stopped).then_some(Ended { error, lasted })
}

/// A goodbye says more than the close that follows it; but a code to give up holds.
fn with_goodbye(shared: &Shared, error: Error) -> Error {
    let core = shared.core.lock();
    match (core.goodbye(), error) {
        (Some((Error::Goodbye { code, reason, reconnect, after }, _)), error) => {
            let give_up = matches!(error, Error::Disconnected { give_up: true, .. });
            Error::Goodbye { code: *code, reason: reason.clone(), reconnect: *reconnect && !give_up, after: *after }
        }
        (_, error) => error,
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<End>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Session<'a> {
    shared: &'a Shared,
    options: &'a Options,
    /// For the welcome.
    deadline: Instant,
    /// When the welcome came.
    since: Option<Instant>,
    /// A write may have been left in its middle: nothing can follow it.
    writing: bool,
}

impl Session<'_> {
    /// Sends what is to be sent, until the connection is over. `None` if the client was closed.
    async fn serve(&mut self, writer: &mut Writer, reading: &mut tokio::task::JoinHandle<End>) -> Option<End> {
        let mut out = Vec::new();
        let mut pongs = Vec::new();
        loop {
            out.clear();
            pongs.clear();
            let wake_at = match self.step(&mut out, &mut pongs) {
                Ok(wake_at) => wake_at,
                Err(error) => return Some(End { error, close: CloseCode::Normal }),
            };
            let idle = pongs.is_empty() && out.is_empty();
            self.writing = !idle;
            let written = async {
                for pong in &mut pongs {
                    writer.pong(pong).await?;
                }
                if out.is_empty() { Ok(()) } else { writer.send(&mut out).await }
            };
            // Every branch that leaves a write in its middle ends the connection.
            tokio::select! {
                biased;
                end = &mut *reading => return Some(end.unwrap_or_else(|_| lost("the reading task ended"))),
                () = self.shared.stop.cancelled() => return None,
                () = self.silence() => {
                    let error = Error::Silent { quiet: self.options.silence_timeout };
                    return Some(End { error, close: CloseCode::Normal });
                }
                result = written, if !idle => match result {
                    Ok(()) => self.writing = false,
                    Err(end) => return Some(end),
                },
                () = self.shared.wake.notified(), if idle => {}
                () = sleep_until(wake_at), if idle => {}
            }
        }
    }

    /// Takes what is to be sent; tells when to look again.
    fn step(&mut self, out: &mut Vec<u8>, pongs: &mut Vec<Vec<u8>>) -> Result<Instant, Error> {
        let now = Instant::now();
        let mut core = self.shared.core.lock();
        if let Some((goodbye, until)) = core.goodbye()
            && until <= now
        {
            return Err(goodbye.clone());
        }
        let goodbye = core.goodbye().map(|(_, until)| until);
        let Some(session) = core.session() else {
            if now >= self.deadline {
                return Err(Error::Timeout { what: "the hello", after: self.options.connect_timeout });
            }
            return Ok(self.deadline.min(goodbye.unwrap_or(self.deadline)));
        };
        if self.since.is_none() {
            self.since = Some(now);
            self.shared.state.send_replace(State::Connected { session });
        }
        while let Some(pong) = core.pong() {
            pongs.push(pong);
        }
        let probe_at = core.heard() + core.ping_interval();
        if probe_at <= now {
            core.probe();
        }
        let later = core.poll_output(now, out);
        let probe_at = if probe_at <= now { core.heard() + self.options.silence_timeout } else { probe_at };
        Ok(later.into_iter().chain(goodbye).fold(probe_at, Instant::min))
    }

    /// Returns once nothing has come for too long.
    async fn silence(&self) {
        loop {
            let at = self.shared.core.lock().heard() + self.options.silence_timeout;
            if at <= Instant::now() {
                return;
            }
            sleep_until(at).await;
        }
    }
}

fn lost(reason: &str) -> End {
    let error = Error::Disconnected { code: None, give_up: false, reason: reason.to_owned() };
    End { error, close: CloseCode::Normal }
}
