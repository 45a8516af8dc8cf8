//! UDP: QUIC connections that are let in.

use std::sync::Arc;

use super::Inner;
use super::admission::Permit;
use crate::metrics::{Refusal, Transport};
use crate::transport::{CLOSE_TIMEOUT, quic};

impl Inner {
    pub(super) async fn accept_quic(self: Arc<Self>, endpoint: quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let busy = self.admission.handshakes() >= self.options.quic_retry_above;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // Whoever really is there comes again, with a proof of it; nothing is kept of others.
                let _ = incoming.retry();
                continue;
            }
            let Some(permit) = self.admission.enter(Transport::Quic, incoming.remote_address().ip()) else {
                incoming.refuse();
                continue;
            };
            self.spawn_until_cut(Arc::clone(&self).quic(incoming, permit));
        }
        // New connections are refused; those there are end one by one.
        endpoint.set_server_config(None);
        self.cut_or_done().await;
        endpoint.close(quinn::VarInt::from_u32(0), b"");
        // For as long as the peers may need to hear of it; what quinn waits for grows with the times it has measured.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
    }

    /// One QUIC connection, until it is over or has become a session.
    async fn quic(self: Arc<Self>, incoming: quinn::Incoming, permit: Permit) {
        let timeout = self.broker.limits().handshake_timeout;
        let refused = |why| self.broker.metrics().connections_refused[why].increment(1);
        let connection = match incoming.accept() {
            Ok(connecting) => {
                let connected = tokio::select! {
                    connected = tokio::time::timeout(timeout, connecting) => connected,
                    () = self.stop.cancelled() => return,
                };
                match connected {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(_)) => return refused(Refusal::Handshake),
                    Err(_) => return refused(Refusal::Timeout),
                }
            }
            Err(_) => return refused(Refusal::Handshake),
        };
        self.begin_session(Transport::Quic, permit, |broker, number, outbox| {
            Box::pin(quic::serve(connection, broker, number, outbox))
        });
    }

    /// Waits until there is no session any more, or what remains is cut.
    async fn cut_or_done(&self) {
        tokio::select! {
            () = self.cut.cancelled() => {}
            () = self.idle.notified() => {}
        }
    }
}
