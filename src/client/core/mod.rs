//! The client without input and output: frames in, frames out, what the application asks for in between.
//!
//! One lock guards it. The link's tasks hand it what came, the driver's task takes what is to be sent, and the
//! application's calls queue what they want and wait for their answers outside of the lock.

mod convert;
mod joins;
mod outgoing;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) use convert::{Answer, Ask};
pub(crate) use joins::Joins;
pub(crate) use outgoing::{Outgoing, Unit};

use self::joins::Then;
use self::outgoing::Sent;
use super::link::{FRAME_BYTES_MAX, RoomStream};
use super::state::Event;
use super::{Error, Options};
use crate::protocol::{
    ClientFrame, Credit, Fault, Frames, Hello, HelloBody, JoinId, JoinResult, Leave, Ping, RequestId, ServerFrame,
    Welcome, WelcomeLimits, frame_into,
};
use crate::types::{Limits, SessionId};

/// How much is sent in one go.
const OUT_BYTES: usize = 64 << 10;
/// Room for the resume list in a hello; what does not fit is joined afterwards.
const HELLO_BYTES_MAX: usize = 48 << 10;
/// Requests that publishes leave free for joins, credit and questions.
const REQUESTS_RESERVED_MAX: usize = 32;
/// Pings that wait to be answered; a server that sends more gets no more answers.
const PONGS_MAX: usize = 8;
/// Before a refused join is repeated, at least.
const RETRY_LEAST: Duration = Duration::from_millis(100);

/// The id of every credit: nothing is answered to one unless it is refused, so nothing waits for an answer.
const CREDIT_REQUEST: RequestId = RequestId::MAX;

/// What waits to be sent, apart from publishes.
#[derive(Clone, Copy, Debug)]
enum Task {
    Query(u64),
    Join(JoinId),
    Leave(JoinId),
    Credit(JoinId),
    Ping,
}

/// What an answer belongs to.
enum Asked {
    Query(u64),
    Join(JoinId),
    Publish(Sent),
    Nothing,
}

struct Query {
    ask: Ask,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

/// The state of a client.
pub(crate) struct Core {
    name: String,
    token: Option<String>,
    /// Counts connections: what a task of an earlier one still hands in is of no interest.
    generation: u64,
    session: Option<SessionId>,
    limits: WelcomeLimits,
    ping_interval: Duration,
    next_request: RequestId,
    asked: HashMap<RequestId, Asked>,
    bytes_in_flight: usize,
    tasks: VecDeque<Task>,
    later: Vec<(Instant, Task)>,
    queries: HashMap<u64, Query>,
    next_query: u64,
    resuming: Vec<JoinId>,
    pub(crate) outgoing: Outgoing,
    pub(crate) joins: Joins,
    pongs: VecDeque<Vec<u8>>,
    heard: Instant,
    pinged: bool,
    goodbye: Option<(Error, Instant)>,
    closed: Option<Error>,
}

impl Core {
    pub(crate) fn new(options: &Options) -> std::io::Result<Self> {
        Ok(Self {
            name: options.name.clone(),
            token: options.token.clone(),
            generation: 0,
            session: None,
            limits: WelcomeLimits::from(&Limits::default()),
            ping_interval: Duration::from_secs(25),
            next_request: 0,
            asked: HashMap::new(),
            bytes_in_flight: 0,
            tasks: VecDeque::new(),
            later: Vec::new(),
            queries: HashMap::new(),
            next_query: 0,
            resuming: Vec::new(),
            outgoing: Outgoing::new(options)?,
            joins: Joins::default(),
            pongs: VecDeque::new(),
            heard: Instant::now(),
            pinged: false,
            goodbye: None,
            closed: None,
        })
    }

    /// A connection begins; returns its generation and the hello.
    pub(crate) fn begin(&mut self, now: Instant) -> (u64, Vec<u8>) {
        self.generation += 1;
        self.heard = now;
        let rooms_max = (self.limits.rooms_per_session as usize).min(Limits::CEILINGS.rooms_per_session);
        self.resuming = self.joins.resumable(rooms_max, HELLO_BYTES_MAX);
        let resume = self.joins.resume(&self.resuming);
        let body = HelloBody { token: self.token.as_deref(), client: &self.name, resume }.to_bytes();
        let mut out = Vec::new();
        frame_into(&mut out, |out| ClientFrame::Hello(Hello::new(&body)).encode_into(out));
        (self.generation, out)
    }

    /// The connection is over.
    pub(crate) fn disconnected(&mut self) {
        self.generation += 1;
        self.session = None;
        self.goodbye = None;
        self.pinged = false;
        self.pongs.clear();
        self.resuming.clear();
        self.asked.clear();
        self.bytes_in_flight = 0;
        self.tasks.clear();
        self.later.clear();
        self.joins.disconnected();
        self.outgoing.disconnected();
    }

    /// The client is over: everything that waits is told why.
    pub(crate) fn close(&mut self, why: Option<Error>) {
        self.disconnected();
        let error = Error::Closed { why: why.map(Box::new) };
        self.outgoing.close(&error);
        self.joins.close(&error);
        let mut queries: Vec<_> = self.queries.drain().collect();
        queries.sort_unstable_by_key(|(id, _)| *id);
        for (_, query) in queries {
            let _ = query.answer.send(Err(error.clone()));
        }
        self.closed = Some(error);
    }

    pub(crate) fn closed(&self) -> Option<&Error> {
        self.closed.as_ref()
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// The broker's goodbye and until when it may still answer.
    pub(crate) fn goodbye(&self) -> Option<(&Error, Instant)> {
        let (error, until) = self.goodbye.as_ref()?;
        Some((error, if self.asked.is_empty() { self.heard.min(*until) } else { *until }))
    }

    /// When something last came.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    pub(crate) fn ping_interval(&self) -> Duration {
        self.ping_interval
    }

    // What the application asks for.

    /// Asks a question; it is asked again after a lost connection. Returns its name, to take it back.
    pub(crate) fn ask(&mut self, ask: Ask, answer: oneshot::Sender<Result<Answer, Error>>) -> u64 {
        self.next_query += 1;
        self.queries.insert(self.next_query, Query { ask, answer });
        if self.session.is_some() {
            self.tasks.push_back(Task::Query(self.next_query));
        }
        self.next_query
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn forget(&mut self, query: u64) {
        self.queries.remove(&query);
    }

    /// Sends the join as soon as there is a session.
    pub(crate) fn join(&mut self, join: JoinId) {
        if self.session.is_some() {
            self.tasks.push_back(Task::Join(join));
        }
    }

    pub(crate) fn leave(&mut self, join: JoinId) {
        if self.joins.remove(join) {
            self.tasks.push_back(Task::Leave(join));
        }
    }

    /// The next event of a subscription; the second is whether the driver has something to send.
    pub(crate) fn take(&mut self, join: JoinId) -> Option<(Event, bool)> {
        let (event, grant) = self.joins.sub(join)?.take()?;
        if grant {
            self.tasks.push_back(Task::Credit(join));
        }
        Some((event, grant))
    }

    // What is to be sent.

    /// Pings to answer.
    pub(crate) fn pong(&mut self) -> Option<Vec<u8>> {
        self.pongs.pop_front()
    }

    /// Asks for a sign of life, once until there is one.
    pub(crate) fn probe(&mut self) {
        if self.session.is_some() && !self.pinged {
            self.pinged = true;
            self.tasks.push_front(Task::Ping);
        }
    }

    /// Appends frames that may go now; returns when to look again though nothing happens.
    pub(crate) fn poll_output(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Instant> {
        if self.session.is_none() || self.goodbye.is_some() {
            return None;
        }
        let mut index = 0;
        while index < self.later.len() {
            if self.later[index].0 <= now {
                self.tasks.push_back(self.later.swap_remove(index).1);
            } else {
                index += 1;
            }
        }
        let requests_max = (self.limits.requests_in_flight as usize).max(1);
        while out.len() < OUT_BYTES && self.asked.len() < requests_max {
            let Some(task) = self.tasks.pop_front() else { break };
            self.send(task, out);
        }
        let held = self.outgoing.release(now);
        let publishes_max = requests_max - REQUESTS_RESERVED_MAX.min(requests_max / 4);
        while out.len() < OUT_BYTES && self.asked.len() < publishes_max {
            let free = (self.limits.bytes_in_flight as usize).saturating_sub(self.bytes_in_flight);
            let request = self.request();
            let Some(sent) = self.outgoing.next(request, &self.limits, free, out) else { break };
            self.bytes_in_flight += sent.bytes;
            self.asked.insert(request, Asked::Publish(sent));
        }
        self.later.iter().map(|(until, _)| *until).chain(held).min()
    }

    fn request(&mut self) -> RequestId {
        loop {
            self.next_request = self.next_request.wrapping_add(1);
            let reserved = [0, CREDIT_REQUEST].contains(&self.next_request);
            if !reserved && !self.asked.contains_key(&self.next_request) {
                return self.next_request;
            }
        }
    }

    fn send(&mut self, task: Task, out: &mut Vec<u8>) {
        let request = self.request();
        let (frame, asked) = match task {
            Task::Query(id) => {
                let Some(query) = self.queries.get(&id) else { return };
                frame_into(out, |out| query.ask.encode_into(request, out));
                self.asked.insert(request, Asked::Query(id));
                return;
            }
            Task::Join(join) => {
                let Some(sub) = self.joins.sub(join).filter(|sub| sub.is_idle()) else { return };
                (ClientFrame::Join(sub.join(request, join)), Asked::Join(join))
            }
            Task::Leave(join) => (ClientFrame::Leave(Leave { request, join }), Asked::Nothing),
            Task::Credit(join) => {
                let Some(bytes) = self.joins.sub(join).and_then(joins::Sub::grant) else { return };
                let credit = ClientFrame::Credit(Credit { request: CREDIT_REQUEST, join, bytes });
                frame_into(out, |out| credit.encode_into(out));
                return;
            }
            Task::Ping => (ClientFrame::Ping(Ping { request }), Asked::Nothing),
        };
        frame_into(out, |out| frame.encode_into(out));
        self.asked.insert(request, asked);
    }

    // What comes.

    pub(crate) fn alive(&mut self, generation: u64, now: Instant) {
        if generation == self.generation {
            self.heard = now;
            self.pinged = false;
        }
    }

    pub(crate) fn ping(&mut self, generation: u64, payload: &[u8]) {
        if generation == self.generation && self.pongs.len() < PONGS_MAX {
            self.pongs.push_back(payload.to_vec());
        }
    }

    /// Takes whole frames of a connection; an error ends it.
    pub(crate) fn frames(
        &mut self,
        generation: u64,
        bytes: &[u8],
        stream: Option<&RoomStream>,
        now: Instant,
    ) -> Result<(), Error> {
        if generation != self.generation {
            return Ok(());
        }
        self.alive(generation, now);
        let mut frames = Frames::new(bytes, FRAME_BYTES_MAX);
        for frame in &mut frames {
            self.frame(frame.map_err(Error::protocol)?, stream, now)?;
        }
        if frames.rest().is_empty() { Ok(()) } else { Err(Error::protocol("a message that ends within a frame")) }
    }

    fn frame(&mut self, bytes: &[u8], stream: Option<&RoomStream>, now: Instant) -> Result<(), Error> {
        let Some(frame) = ServerFrame::parse(bytes).map_err(Error::protocol)? else { return Ok(()) };
        if let Some(stream) = stream {
            if !belongs(&frame, stream.join) {
                return Err(Error::protocol("a frame on a room's stream that is not of that room"));
            }
            if let Some(sub) = self.joins.sub(stream.join)
                && sub.keep_early(stream, bytes)?
            {
                return Ok(());
            }
        }
        if self.session.is_none() && !matches!(&frame, ServerFrame::Welcome(_) | ServerFrame::Error(_)) {
            // The broker may turn us away without a word of welcome, but not begin to talk.
            match &frame {
                ServerFrame::Goodbye(_) => {}
                ServerFrame::Fault(fault) => return Err(Error::refused(fault)),
                _ => return Err(Error::protocol("a frame before the welcome")),
            }
        }
        match frame {
            ServerFrame::Welcome(welcome) => self.welcome(&welcome, now)?,
            ServerFrame::Joined(joined) => {
                let Asked::Join(join) = self.answered(joined.request)? else { return Err(mismatch()) };
                if join != joined.join {
                    return Err(mismatch());
                }
                self.on_joined(&joined, now)?;
            }
            ServerFrame::Void(void) => {
                let Asked::Join(join) = self.answered(void.request)? else { return Err(mismatch()) };
                self.on_void(join, &void);
            }
            ServerFrame::Error(fault) => self.on_error(&fault, now)?,
            ServerFrame::Ok(request) => {
                let Asked::Nothing = self.answered(request)? else { return Err(mismatch()) };
            }
            ServerFrame::Pong(pong) => match self.answered(pong.request)? {
                Asked::Query(id) => self.answer(id, Ok(Answer::Time(pong.time))),
                Asked::Nothing => {}
                _ => return Err(mismatch()),
            },
            ServerFrame::Published(published) => {
                let Asked::Publish(sent) = self.answered(published.request)? else { return Err(mismatch()) };
                self.outgoing.published(published.request, &sent, &published);
            }
            ServerFrame::Page(page) => {
                let Asked::Query(id) = self.answered(page.request)? else { return Err(mismatch()) };
                if let Some(query) = self.queries.get(&id) {
                    let answer = query.ask.page(&page)?;
                    self.answer(id, Ok(answer));
                }
            }
            ServerFrame::RoomList(list) => {
                let Asked::Query(id) = self.answered(list.request)? else { return Err(mismatch()) };
                let answer = convert::rooms(&list)?;
                self.answer(id, Ok(answer));
            }
            ServerFrame::Delivery(delivery) => self.push(delivery.header.join, |sub| sub.deliver(&delivery))?,
            ServerFrame::Gap(gap) => self.push(gap.join, |sub| sub.gap(&gap))?,
            ServerFrame::Live(mark) => self.push(mark.join, |sub| sub.mark(&mark, |offset| Event::Live { offset }))?,
            ServerFrame::Lagging(mark) => {
                self.push(mark.join, |sub| sub.mark(&mark, |offset| Event::Lagging { offset }))?;
            }
            ServerFrame::CaughtUp(mark) => {
                self.push(mark.join, |sub| sub.mark(&mark, |offset| Event::CaughtUp { offset }))?;
            }
            ServerFrame::Left(cut) => {
                if let Some(sub) = self.joins.sub(cut.join) {
                    sub.left(&cut);
                }
            }
            ServerFrame::Goodbye(goodbye) => {
                let error = Error::Goodbye {
                    code: goodbye.code,
                    reason: goodbye.reason.to_owned(),
                    reconnect: goodbye.reconnect,
                    after: Duration::from_millis(goodbye.after_ms.into()),
                };
                self.goodbye = Some((error, now + Duration::from_secs(5)));
            }
            ServerFrame::Fault(fault) => {
                tracing::warn!(code = fault.code, message = fault.message, "the broker reports a fault");
            }
        }
        Ok(())
    }

    fn welcome(&mut self, welcome: &Welcome<'_>, now: Instant) -> Result<(), Error> {
        if self.session.is_some() {
            return Err(Error::protocol("a second welcome"));
        }
        if welcome.version != crate::protocol::VERSION {
            return Err(Error::protocol(format_args!("a welcome of version {}", welcome.version)));
        }
        let resuming = std::mem::take(&mut self.resuming);
        if welcome.resumed.len() != resuming.len() {
            return Err(Error::protocol("a welcome with another number of rooms than were to be resumed"));
        }
        self.session = Some(welcome.session);
        self.limits = welcome.limits;
        self.ping_interval = Duration::from_millis(welcome.ping_interval_ms.clamp(1_000, 600_000).into());
        for (join, result) in resuming.into_iter().zip(&welcome.resumed) {
            match result {
                JoinResult::Joined(joined) if joined.join == join => self.on_joined(joined, now)?,
                JoinResult::Void(void) if void.join == join => self.on_void(join, void),
                JoinResult::Refused(fault) => self.on_join_refused(join, fault, now),
                _ => return Err(mismatch()),
            }
        }
        for join in self.joins.idle() {
            if !self.later.iter().any(|(_, task)| matches!(task, Task::Join(other) if *other == join))
                && !self.tasks.iter().any(|task| matches!(task, Task::Join(other) if *other == join))
            {
                self.tasks.push_back(Task::Join(join));
            }
        }
        let mut queries: Vec<_> = self.queries.keys().copied().collect();
        queries.sort_unstable();
        self.tasks.extend(queries.into_iter().map(Task::Query));
        Ok(())
    }

    fn on_joined(&mut self, joined: &crate::protocol::Joined, now: Instant) -> Result<(), Error> {
        // One that was dropped meanwhile has its leave under way.
        let Some(sub) = self.joins.sub(joined.join) else { return Ok(()) };
        sub.joined(joined)?;
        for frame in sub.take_early() {
            self.frame(&frame, None, now)?;
        }
        Ok(())
    }

    fn on_void(&mut self, join: JoinId, void: &crate::protocol::Void) {
        if let Some(sub) = self.joins.sub(join)
            && sub.void(void) == Then::Join
        {
            self.tasks.push_back(Task::Join(join));
        }
    }

    fn on_join_refused(&mut self, join: JoinId, fault: &Fault<'_>, now: Instant) {
        if let Some(sub) = self.joins.sub(join)
            && sub.refused(Error::refused(fault), fault.retry)
        {
            let wait = Duration::from_millis(fault.retry_after_ms.into()).max(RETRY_LEAST);
            self.later.push((now + wait, Task::Join(join)));
        }
    }

    fn on_error(&mut self, fault: &Fault<'_>, now: Instant) -> Result<(), Error> {
        if fault.request == 0 {
            return Err(Error::refused(fault));
        }
        if fault.request == CREDIT_REQUEST {
            // The broker has just ended the join itself, and says so.
            return Ok(());
        }
        match self.answered(fault.request)? {
            Asked::Publish(sent) => self.outgoing.refused(fault.request, &sent, fault, now),
            Asked::Join(join) => self.on_join_refused(join, fault, now),
            Asked::Query(id) if fault.retry => {
                let wait = Duration::from_millis(fault.retry_after_ms.into()).max(RETRY_LEAST);
                self.later.push((now + wait, Task::Query(id)));
            }
            Asked::Query(id) => self.answer(id, Err(Error::refused(fault))),
            // Leaving a join that the broker has just ended itself.
            Asked::Nothing => {}
        }
        Ok(())
    }

    fn push(&mut self, join: JoinId, step: impl FnOnce(&mut joins::Sub) -> Result<Then, Error>) -> Result<(), Error> {
        // What was under way when we left is not for anyone.
        let Some(sub) = self.joins.sub(join) else { return Ok(()) };
        if step(sub)? == Then::Leave {
            self.tasks.push_back(Task::Leave(join));
        }
        Ok(())
    }

    fn answered(&mut self, request: RequestId) -> Result<Asked, Error> {
        let asked = self.asked.remove(&request).ok_or_else(|| Error::protocol("an answer to nothing"))?;
        if let Asked::Publish(sent) = &asked {
            self.bytes_in_flight -= sent.bytes;
        }
        Ok(asked)
    }

    fn answer(&mut self, id: u64, result: Result<Answer, Error>) {
        if let Some(query) = self.queries.remove(&id) {
            let _ = query.answer.send(result);
        }
    }
}

fn mismatch() -> Error {
    Error::protocol("an answer that does not fit its request")
}

/// Whether a frame may come on the stream of a room.
fn belongs(frame: &ServerFrame<'_>, join: JoinId) -> bool {
    match frame {
        ServerFrame::Delivery(delivery) => delivery.header.join == join,
        ServerFrame::Gap(gap) => gap.join == join,
        ServerFrame::Live(mark) | ServerFrame::Lagging(mark) | ServerFrame::CaughtUp(mark) => mark.join == join,
        ServerFrame::Left(cut) => cut.join == join,
        _ => false,
    }
}
