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
            $(#[test]
            fn $name() {
                $crate::scenarios::in_prepared_runtime(super::$name($crate::scenarios::world::Via::WebSocket, 1));
            })*
        }

        mod quic {
            $(#[test]
            fn $name() {
                $crate::scenarios::in_prepared_runtime(super::$name($crate::scenarios::world::Via::Quic, 1));
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

/// In a runtime as the program has it: its workers make commits themselves.
pub(crate) fn in_prepared_runtime(scenario: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    roomlog::server::prepare(builder.worker_threads(2).enable_all()).build().expect("a runtime").block_on(scenario);
}
