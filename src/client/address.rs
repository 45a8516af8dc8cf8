//! The address of a broker, taken apart.

use std::fmt;

use super::Error;
use crate::protocol::WEBSOCKET_PATH;

/// How to reach a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    /// WebSocket over TCP.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// QUIC.
    Quic,
}

/// `ws://host:port`, `wss://host:port` or `quic://host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub(crate) scheme: Scheme,
    /// A name or an IP address; IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// With its leading slash, and a query if there is one. Unused by QUIC.
    pub(crate) path: String,
}

impl Address {
    /// Takes an address apart. The ports default to 80, 443 and 7400, the path to `/v1/ws`.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let fault = |why: &str| Error::Url { url: url.to_owned(), why: why.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| fault("it begins with ws://, wss:// or quic://"))?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "ws" => (Scheme::Ws, 80),
            "wss" => (Scheme::Wss, 443),
            "quic" => (Scheme::Quic, 7400),
            _ => return Err(fault("it begins with ws://, wss:// or quic://")),
        };
        if rest.bytes().any(|byte| byte <= b' ' || byte == 0x7f) || !rest.is_ascii() {
            return Err(fault("spaces, control and non-ASCII characters have no place in it"));
        }
        if rest.contains('#') {
            return Err(fault("a fragment (#) has no meaning here"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(fault("a user name has no meaning here"));
        }
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| fault("the bracket is not closed"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(fault("only an IPv6 address stands in brackets"));
            }
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(fault("only a port follows the bracket")),
            }
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() {
            return Err(fault("the host is missing"));
        }
        let port = match port {
            None => default_port,
            Some(port) => match port.parse() {
                Ok(number) if number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => number,
                _ => return Err(fault("the port is a number from 1 to 65535")),
            },
        };
        let path = match (scheme, path) {
            (_, "" | "/") => WEBSOCKET_PATH.to_owned(),
            (Scheme::Quic, _) => return Err(fault("a path has no meaning with QUIC")),
            (_, path) if path.starts_with('/') => path.to_owned(),
            (_, query) => format!("{WEBSOCKET_PATH}{query}"),
        };
        Ok(Self { scheme, host: host.to_owned(), port, path })
    }

    /// Host and port as a `Host` header has them.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
            Scheme::Quic => "quic",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_with_their_defaults() {
        for (url, scheme, host, port, path) in [
            ("ws://127.0.0.1:7400", Scheme::Ws, "127.0.0.1", 7400, "/v1/ws"),
            ("WS://localhost", Scheme::Ws, "localhost", 80, "/v1/ws"),
            ("wss://example.org/", Scheme::Wss, "example.org", 443, "/v1/ws"),
            ("wss://example.org/chat?a=b", Scheme::Wss, "example.org", 443, "/chat?a=b"),
            ("quic://[::1]:9", Scheme::Quic, "::1", 9, "/v1/ws"),
            ("quic://broker", Scheme::Quic, "broker", 7400, "/v1/ws"),
        ] {
            let address = Address::parse(url).expect(url);
            assert_eq!((address.scheme, &*address.host, address.port, &*address.path), (scheme, host, port, path));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "localhost:7400",
            "http://localhost",
            "ws://",
            "ws://:80",
            "ws://a b",
            "ws://a:0",
            "ws://a:65536",
            "ws://a:+80",
            "ws://[::1",
            "ws://[a]",
            "ws://[::1]80",
            "ws://user@host",
            "ws://host/#x",
            "quic://host/path",
            "ws://hö",
        ] {
            assert!(matches!(Address::parse(url), Err(Error::Url { .. })), "{url:?}");
        }
    }
}
