//! Every scenario once, run over memory, WebSocket and QUIC, and once with offsets that are not dense.

mod durability;
mod joining;
mod keeping;
mod pacing;
pub(crate) mod world;

/// Runs each scenario in each world.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::scenarios::world::Via::Memory, 1).await;
            })*
        }

        mod websocket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::scenarios::world::Via::WebSocket, 1).await;
            })*
        }

        mod quic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::scenarios::world::Via::Quic, 1).await;
            })*
        }

        /// Nothing may lean on the next offset being one more.
        mod striding {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::scenarios::world::Via::Memory, 3).await;
            })*
        }
    };
}

pub(crate) use scenarios;
