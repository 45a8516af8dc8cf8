//! How a session ends: one code and one advice, and their numbers on each transport.

use crate::types::Code;

/// The end of a session. Its numbers are the [`Code`]'s behind a base that is the advice, so that a client whose
/// goodbye was lost with the connection still knows both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Close {
    /// Why; the code of the goodbye.
    pub code: Code,
    /// Whether the client should connect again.
    pub reconnect: bool,
}

impl Close {
    /// Where the close codes of WebSocket begin that ask to connect again; 500 of them.
    const WEBSOCKET: u16 = 4000;
    /// What is added, on both transports, where connecting again is of no use.
    const GIVE_UP: u16 = 500;

    /// An end after which the client connects again.
    #[must_use]
    pub const fn reconnect(code: Code) -> Self {
        Self { code, reconnect: true }
    }

    /// An end after which connecting again is of no use.
    #[must_use]
    pub const fn give_up(code: Code) -> Self {
        Self { code, reconnect: false }
    }

    /// The close code on WebSocket: 4000–4499 to connect again, 4500–4999 to give up.
    #[must_use]
    pub const fn websocket(self) -> u16 {
        Self::WEBSOCKET + self.quic()
    }

    /// The application error code on QUIC: 0–499 to connect again, 500–999 to give up.
    #[must_use]
    pub const fn quic(self) -> u16 {
        self.code.number() + if self.reconnect { 0 } else { Self::GIVE_UP }
    }

    /// The end that a close code on WebSocket tells, if it is one of these.
    #[must_use]
    pub fn from_websocket(number: u16) -> Option<Self> {
        Self::from_quic(u64::from(number.checked_sub(Self::WEBSOCKET)?))
    }

    /// The end that an application error code on QUIC tells, if it is one of these.
    #[must_use]
    pub fn from_quic(number: u64) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        let reconnect = number < Self::GIVE_UP;
        let code = Code::from_number(if reconnect { number } else { number - Self::GIVE_UP })?;
        Some(Self { code, reconnect })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_of_all_ends_are_apart_in_their_ranges_and_read_back() {
        for &code in Code::ALL {
            for close in [Close::reconnect(code), Close::give_up(code)] {
                assert_eq!(close.websocket() < 4500, close.reconnect);
                assert_eq!(close.quic() < 500, close.reconnect);
                assert!((4000..5000).contains(&close.websocket()));
                assert_eq!(Close::from_websocket(close.websocket()), Some(close));
                assert_eq!(Close::from_quic(close.quic().into()), Some(close));
            }
        }
        assert_eq!(Close::from_websocket(1000), None);
        assert_eq!(Close::from_quic(0), None);
        assert_eq!(Close::from_quic(u64::MAX), None);
    }
}
