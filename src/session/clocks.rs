//! The clocks of one session: hello, signs of life, pings, unread output. Pure: the time is an argument.

use std::time::{Duration, Instant};

use super::End;
use crate::types::Limits;

/// Who finds out that a peer is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// The session: it counts what comes, and asks a quiet peer for a sign of life.
    Session,
    /// The transport has a clock of its own.
    Transport,
}

/// What is due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Nothing yet.
    Nothing,
    /// The peer is to be asked for a sign of life.
    Ping,
    /// The output has been blocked for a while: what waits for it is to keep no memory that it does not need.
    Settle,
    /// The output is blocked, and the peer is dead if its transport has not answered for so long.
    Look(Duration),
    /// The session is over.
    End(End),
}

/// How long an output is blocked before [`Due::Settle`]: most are for a moment. Then again after twice the time: what
/// others shared at first may be kept by this session alone later.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// The clocks of one session.
#[derive(Debug)]
pub(crate) struct Clocks {
    life: Life,
    opened: Instant,
    welcomed: bool,
    heard: Instant,
    pinged: Instant,
    /// Since when the peer has taken nothing of an output that is blocked.
    blocked: Option<Instant>,
    /// How long after that [`Due::Settle`] is told next.
    settles: Duration,
    /// When it was last to be found out whether such a peer is there at all.
    looked: Instant,
    /// Whether the server itself does not read, so that it cannot hear.
    deaf: bool,
    message: Option<Instant>,
}

impl Clocks {
    /// Clocks that begin now, when the transport's handshake is over.
    pub(crate) fn new(life: Life, now: Instant) -> Self {
        Self {
            life,
            opened: now,
            welcomed: false,
            heard: now,
            pinged: now,
            blocked: None,
            settles: SETTLE_AFTER,
            looked: now,
            deaf: false,
            message: None,
        }
    }

    /// The hello has come.
    pub(crate) fn welcomed(&mut self) {
        self.welcomed = true;
    }

    /// Anything has come from the peer: whether it completed a message, and whether another one is under way now.
    pub(crate) fn heard(&mut self, now: Instant, completed: bool, within_message: bool) {
        self.heard = now;
        if completed {
            self.message = None;
        }
        match within_message {
            true => _ = self.message.get_or_insert(now),
            false => self.message = None,
        }
    }

    /// The output is blocked, and whether the peer has taken some of it since this was last said.
    pub(crate) fn blocked(&mut self, now: Instant, progress: bool) {
        if progress || self.blocked.is_none() {
            (self.blocked, self.settles) = (Some(now), SETTLE_AFTER);
        }
    }

    /// The output flows.
    pub(crate) fn flowing(&mut self, now: Instant) {
        if self.blocked.take().is_some() {
            self.restart(now);
        }
    }

    /// Whether the server reads from the peer; while it does not, silence is its own fault.
    pub(crate) fn reading(&mut self, now: Instant, reading: bool) {
        if std::mem::replace(&mut self.deaf, !reading) && reading {
            self.restart(now);
        }
    }

    fn restart(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
        self.pinged = self.pinged.max(now);
        if self.message.is_some() {
            self.message = Some(now);
        }
    }

    /// When to find out whether a peer that has taken nothing since then is there; a transport may know it by itself.
    fn look(&self, since: Instant, limits: &Limits) -> Option<Instant> {
        (self.life == Life::Session).then(|| since.max(self.looked) + limits.idle_timeout)
    }

    /// When what waits for a peer that has taken nothing since then is to settle; a transport has memory of its own.
    fn settle(&self, since: Instant) -> Option<Instant> {
        (self.life == Life::Session).then(|| since + self.settles)
    }

    /// What is due now. A [`Due::Ping`] is told once per interval, as is a [`Due::Look`], a [`Due::Settle`] less
    /// and less often.
    pub(crate) fn tick(&mut self, now: Instant, limits: &Limits) -> Due {
        let past = |since: Instant, time: Duration| now.saturating_duration_since(since) >= time;
        if let Some(since) = self.blocked {
            if past(since, limits.stall_timeout) {
                return Due::End(End::Stalled(limits.stall_timeout));
            }
            if self.settle(since).is_some_and(|at| at <= now) {
                self.settles = 2 * now.saturating_duration_since(since);
                return Due::Settle;
            }
            return match self.look(since, limits) {
                Some(at) if at <= now => {
                    self.looked = now;
                    Due::Look(limits.idle_timeout)
                }
                _ => Due::Nothing,
            };
        }
        if !self.welcomed {
            return match past(self.opened, limits.handshake_timeout) {
                true => Due::End(End::HelloTimeout(limits.handshake_timeout)),
                false => Due::Nothing,
            };
        }
        if self.deaf {
            return Due::Nothing;
        }
        if self.message.is_some_and(|since| past(since, limits.idle_timeout)) {
            return Due::End(End::SlowMessage(limits.idle_timeout));
        }
        if self.life == Life::Transport {
            return Due::Nothing;
        }
        if past(self.heard, limits.idle_timeout) {
            return Due::End(End::Idle(limits.idle_timeout));
        }
        if past(self.heard.max(self.pinged), limits.ping_interval) {
            self.pinged = now;
            return Due::Ping;
        }
        Due::Nothing
    }

    /// When to [`tick`](Self::tick) next, if nothing else happens; `None` = only when something does.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        if let Some(since) = self.blocked {
            let stalled = Some(since + limits.stall_timeout);
            return [stalled, self.settle(since), self.look(since, limits)].into_iter().flatten().min();
        }
        if !self.welcomed {
            return Some(self.opened + limits.handshake_timeout);
        }
        if self.deaf {
            return None;
        }
        let message = self.message.map(|since| since + limits.idle_timeout);
        if self.life == Life::Transport {
            return message;
        }
        let idle = self.heard + limits.idle_timeout;
        let ping = self.heard.max(self.pinged) + limits.ping_interval;
        [message, Some(idle), Some(ping)].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::default()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_connection_is_ended_when_the_time_for_the_hello_is_over() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        assert_eq!(clocks.deadline(&limits), Some(start + 5 * SECOND));
        assert_eq!(clocks.tick(start + 4 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.tick(start + 5 * SECOND, &limits), Due::End(End::HelloTimeout(5 * SECOND)));
    }

    #[test]
    fn a_quiet_peer_is_pinged_and_then_given_up() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        assert_eq!(clocks.tick(start + 24 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.tick(start + 25 * SECOND, &limits), Due::Ping);
        assert_eq!(clocks.tick(start + 26 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.deadline(&limits), Some(start + 50 * SECOND));
        assert_eq!(clocks.tick(start + 50 * SECOND, &limits), Due::Ping);
        assert_eq!(clocks.tick(start + 60 * SECOND, &limits), Due::End(End::Idle(60 * SECOND)));
    }

    #[test]
    fn a_pong_counts_as_life() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        clocks.heard(start + 30 * SECOND, false, false);
        assert_eq!(clocks.tick(start + 54 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.tick(start + 90 * SECOND, &limits), Due::End(End::Idle(60 * SECOND)));
    }

    #[test]
    fn blocked_output_stops_the_idle_clock_until_the_stall_timeout() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        clocks.blocked(start, false);
        assert_eq!(clocks.tick(start + 598 * SECOND, &limits), Due::Settle);
        assert_eq!(clocks.tick(start + 599 * SECOND, &limits), Due::Look(60 * SECOND));
        clocks.blocked(start + 599 * SECOND, true);
        assert_eq!(clocks.tick(start + 699 * SECOND, &limits), Due::Settle);
        assert_eq!(
            clocks.tick(start + 700 * SECOND, &limits),
            Due::Look(60 * SECOND),
            "progress starts the clock anew"
        );
        clocks.blocked(start + 700 * SECOND, false);
        assert_eq!(clocks.tick(start + 1199 * SECOND, &limits), Due::End(End::Stalled(600 * SECOND)));
        clocks.flowing(start + 1200 * SECOND);
        assert_eq!(clocks.tick(start + 1224 * SECOND, &limits), Due::Nothing, "silence meanwhile does not count");
    }

    #[test]
    fn of_a_peer_whose_output_is_blocked_it_is_found_out_again_and_again_whether_it_is_there() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        clocks.blocked(start + 10 * SECOND, false);
        assert_eq!(clocks.deadline(&limits), Some(start + 11 * SECOND));
        assert_eq!(clocks.tick(start + 11 * SECOND, &limits), Due::Settle);
        assert_eq!(clocks.deadline(&limits), Some(start + 12 * SECOND));
        assert_eq!(clocks.tick(start + 12 * SECOND, &limits), Due::Settle);
        assert_eq!(clocks.tick(start + 60 * SECOND, &limits), Due::Settle);
        assert_eq!(clocks.deadline(&limits), Some(start + 70 * SECOND));
        assert_eq!(clocks.tick(start + 69 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.tick(start + 70 * SECOND, &limits), Due::Look(60 * SECOND));
        assert_eq!(clocks.tick(start + 71 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.deadline(&limits), Some(start + 110 * SECOND));
        assert_eq!(clocks.tick(start + 110 * SECOND, &limits), Due::Settle);
        clocks.blocked(start + 120 * SECOND, false);
        assert_eq!(clocks.deadline(&limits), Some(start + 130 * SECOND), "nothing has changed");
        clocks.blocked(start + 100 * SECOND, true);
        assert_eq!(clocks.tick(start + 101 * SECOND, &limits), Due::Settle, "something else waits now");
        assert_eq!(clocks.tick(start + 140 * SECOND, &limits), Due::Settle);
        assert_eq!(clocks.tick(start + 141 * SECOND, &limits), Due::Nothing);
        assert_eq!(clocks.deadline(&limits), Some(start + 160 * SECOND));
        let mut transport = Clocks::new(Life::Transport, start);
        transport.welcomed();
        transport.blocked(start, false);
        assert_eq!(transport.deadline(&limits), Some(start + 600 * SECOND), "QUIC finds out by itself");
    }

    #[test]
    fn while_the_server_does_not_read_nobody_is_dead() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        clocks.heard(start, false, true);
        clocks.reading(start + SECOND, false);
        assert_eq!(clocks.deadline(&limits), None);
        assert_eq!(clocks.tick(start + 300 * SECOND, &limits), Due::Nothing);
        clocks.reading(start + 300 * SECOND, true);
        assert_eq!(clocks.tick(start + 359 * SECOND, &limits), Due::Ping);
        assert_eq!(clocks.tick(start + 360 * SECOND, &limits), Due::End(End::SlowMessage(60 * SECOND)));
    }

    #[test]
    fn a_message_that_trickles_in_is_ended_although_something_comes_all_the_time() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Transport, start);
        clocks.welcomed();
        for second in 0..60 {
            clocks.heard(start + second * SECOND, false, true);
            assert_eq!(clocks.tick(start + second * SECOND, &limits), Due::Nothing);
        }
        assert_eq!(clocks.tick(start + 60 * SECOND, &limits), Due::End(End::SlowMessage(60 * SECOND)));
    }

    #[test]
    fn a_busy_peer_whose_reads_end_within_messages_is_not_slow() {
        let (start, limits) = (Instant::now(), limits());
        let mut clocks = Clocks::new(Life::Session, start);
        clocks.welcomed();
        for second in 0..300 {
            clocks.heard(start + second * SECOND, true, true);
            assert_eq!(clocks.tick(start + second * SECOND, &limits), Due::Nothing);
        }
    }
}
