//! Every limit of the contract with peers: its default, its unit, its reason, and the ceiling compiled in.

use std::time::Duration;

/// What no configuration may exceed: the codec allocates and decodes under these.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes of one payload.
    pub payload_bytes: usize,
    /// Bytes of one frame, with its length prefix.
    pub frame_bytes: usize,
    /// Headers of one record.
    pub headers: usize,
    /// Records of one publish.
    pub publish_records: usize,
    /// Rooms of one session, of one hello's resume list, of one summary and of one list of rooms.
    pub rooms_per_session: usize,
    /// Deliveries of one page of history.
    pub page_deliveries: usize,
}

/// The limits that a peer is told in its welcome, and those that guard the server.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one payload. Larger things belong in an object store with a link in the room.
    pub payload_bytes_max: usize,
    /// Bytes of one kind.
    pub kind_bytes_max: usize,
    /// Headers of one record.
    pub headers_max: usize,
    /// Bytes of one header's name.
    pub header_name_bytes_max: usize,
    /// Bytes of one header's value.
    pub header_value_bytes_max: usize,
    /// Bytes of all headers of a record together.
    pub headers_bytes_max: usize,
    /// Bytes of a record's extension area.
    pub extension_bytes_max: usize,
    /// Records of one publish.
    pub publish_records_max: usize,
    /// Bytes of the records of one publish, encoded.
    pub publish_bytes_max: usize,
    /// Bytes of the deliveries of one page of history.
    pub page_bytes_max: usize,
    /// Rooms that one session may have joined.
    pub rooms_per_session_max: usize,
    /// Requests of one session without an answer; more are answered `busy`.
    pub requests_in_flight_max: usize,
    /// Bytes of publishes of one session without an answer; beyond it the broker stops reading from the peer.
    pub bytes_in_flight_max: usize,
    /// From connect to the end of the transport's handshake, and from there to the hello.
    pub handshake_timeout: Duration,
    /// A session from which nothing comes for so long is dead.
    pub idle_timeout: Duration,
    /// How often the server asks a quiet peer for a sign of life.
    pub ping_interval: Duration,
    /// How long a peer may leave its output unread while its transport still answers.
    pub stall_timeout: Duration,
}

impl Limits {
    /// What no configuration may exceed.
    pub const CEILINGS: Ceilings = Ceilings {
        payload_bytes: 1 << 20,
        frame_bytes: (2 << 20) + (64 << 10),
        headers: 64,
        publish_records: 4096,
        rooms_per_session: 10_000,
        page_deliveries: 1 << 16,
    };

    /// Bytes of one frame from a client, with its length prefix: the larger of a payload and of a publish, and 64 KiB.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.payload_bytes_max.max(self.publish_bytes_max) + (64 << 10)
    }

    /// Why these limits cannot be, if they cannot.
    ///
    /// # Errors
    /// A sentence that names the limit.
    pub fn check(&self) -> Result<(), String> {
        let ceilings = Self::CEILINGS;
        for (name, value, ceiling) in [
            ("payload_bytes_max", self.payload_bytes_max, ceilings.payload_bytes),
            ("publish_bytes_max", self.publish_bytes_max, 2 * ceilings.payload_bytes),
            ("headers_max", self.headers_max, ceilings.headers),
            ("publish_records_max", self.publish_records_max, ceilings.publish_records),
            ("rooms_per_session_max", self.rooms_per_session_max, ceilings.rooms_per_session),
            ("page_bytes_max", self.page_bytes_max, 2 * ceilings.payload_bytes),
        ] {
            if value == 0 || value > ceiling {
                return Err(format!("{name} is {value}, but must be from 1 to {ceiling}"));
            }
        }
        if self.publish_bytes_max < self.payload_bytes_max {
            return Err(format!(
                "publish_bytes_max is {}, but must be at least payload_bytes_max, {}",
                self.publish_bytes_max, self.payload_bytes_max
            ));
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 256 << 10,
            kind_bytes_max: 32,
            headers_max: 16,
            header_name_bytes_max: 64,
            header_value_bytes_max: 1 << 10,
            headers_bytes_max: 8 << 10,
            extension_bytes_max: 1 << 10,
            publish_records_max: 1024,
            publish_bytes_max: 1 << 20,
            page_bytes_max: 1 << 20,
            rooms_per_session_max: 1000,
            requests_in_flight_max: 1024,
            bytes_in_flight_max: 1 << 20,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(25),
            stall_timeout: Duration::from_secs(600),
        }
    }
}
