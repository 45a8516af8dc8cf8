//! Drivers: they turn intents into bytes and bytes into events, and know nothing of sockets or of the load.

mod mqtt;
mod nats;
pub(crate) mod raw;
mod redis;
mod roomlog;
mod socketio;
mod websocket;

pub(crate) use mqtt::Mqtt;
pub(crate) use nats::Nats;
pub(crate) use raw::Raw;
pub(crate) use redis::Redis;
pub(crate) use roomlog::{Frames, Roomlog};
pub(crate) use socketio::SocketIo;

/// What came from a server.
pub(crate) enum Event<'a> {
    /// The connection may be used.
    Ready,
    /// A room is joined.
    Joined,
    /// What is delivered next is of this room. Only from who is asked for several rooms on one connection.
    Room(u32),
    /// A payload of a joined room.
    Delivered(&'a [u8]),
    /// So many publishes were answered.
    Answered(u32),
}

/// Who takes events.
pub(crate) trait Sink {
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Sink for F {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        self(event);
    }
}

/// From where a joiner reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    /// What comes from now on.
    New,
    /// Everything that is kept. No `Event::Joined` is promised.
    Earliest,
    /// The last so many, in any order. No `Event::Joined` is promised.
    Last(u32),
}

/// One connection's protocol.
pub(crate) trait Wire {
    /// What the client says first; `Event::Ready` follows.
    fn open(&mut self, out: &mut Vec<u8>);
    /// Joins a room; `Event::Joined` follows.
    fn join(&mut self, room: u32, start: Start, out: &mut Vec<u8>);
    /// Publishes for those who are joined, as the peer does it when nothing has to be kept.
    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>);
    /// Publishes with an acknowledgement; `Event::Answered` follows.
    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>);
    /// Ends what is written in one go.
    fn seal(&mut self, _out: &mut Vec<u8>) {}
    /// Reads what came and says how much of it is done with; the rest comes again with more behind it.
    /// What must be answered at once is appended to `out`.
    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String>;
    /// How many publishes may be without an answer, if the peer says so.
    fn unanswered_max(&self) -> usize {
        usize::MAX
    }
}

macro_rules! drivers {
    ($($name:ident),+) => {
        /// Any of the drivers, decided once per read and not once per delivery.
        pub(crate) enum Driver { $($name($name)),+ }

        impl Wire for Driver {
            fn open(&mut self, out: &mut Vec<u8>) {
                match self { $(Self::$name(wire) => wire.open(out)),+ }
            }
            fn join(&mut self, room: u32, start: Start, out: &mut Vec<u8>) {
                match self { $(Self::$name(wire) => wire.join(room, start, out)),+ }
            }
            fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
                match self { $(Self::$name(wire) => wire.publish(room, payload, out)),+ }
            }
            fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
                match self { $(Self::$name(wire) => wire.append(room, payload, out)),+ }
            }
            fn seal(&mut self, out: &mut Vec<u8>) {
                match self { $(Self::$name(wire) => wire.seal(out)),+ }
            }
            fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
                match self { $(Self::$name(wire) => wire.read(input, out, sink)),+ }
            }
            fn unanswered_max(&self) -> usize {
                match self { $(Self::$name(wire) => wire.unanswered_max()),+ }
            }
        }
    };
}

drivers!(Raw, Redis, Roomlog, Nats, Mqtt, SocketIo);

#[cfg(test)]
mod tests;
