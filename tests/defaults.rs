//! The defaults of the server's configuration are those of the library: an embedder and a server get the same broker.

use roomlog::config::{Compression, Config, Durability};
use roomlog::{broker, storage};

#[test]
fn the_configuration_has_the_defaults_of_the_library() {
    let config = Config::default();
    let library = broker::Options::new(&config.storage.directory);
    assert_eq!(config.limits, library.limits);
    assert_eq!(config.storage.read_threads, library.read_threads);

    let (of_config, of_library) = (config.storage, library.storage);
    assert_eq!((of_config.durability, of_library.durability), (Durability::Fsync, storage::Durability::Fsync));
    assert_eq!((of_config.compression, of_library.compression), (Compression::Lz4, storage::Compression::Lz4));
    assert_eq!(of_config.commit_queue_bytes_max, of_library.commit_queue_bytes_max);
    assert_eq!(of_config.commit_bytes_max, of_library.commit_bytes_max);
    assert_eq!(of_config.stretch_bytes, of_library.stretch_bytes);
    assert_eq!(of_config.stretch_age_max, of_library.stretch_age_max);
    assert_eq!(of_config.journal_bytes_max, of_library.journal_bytes_max);
    assert_eq!(of_config.tails_bytes_max, of_library.tails_bytes_max);
    assert_eq!(of_config.block_cache_bytes_max, of_library.block_cache_bytes_max);
    assert_eq!(of_config.open_volumes_bytes_max, of_library.open_volumes_bytes_max);
    assert_eq!(of_config.disk_reserve_bytes, of_library.disk_reserve_bytes);
    assert_eq!(of_config.memory_bytes_max, of_library.memory_bytes_max);
    assert_eq!(of_config.rewrite_below_percent, of_library.rewrite_below_percent);
    assert_eq!(of_config.publisher_seqs, of_library.publisher_seqs);
    assert_eq!(of_config.publishers_per_room, of_library.publishers_per_room);
    assert_eq!(of_config.publisher_age_max, of_library.publisher_age_max);
    assert!(config.retention.is_empty() && of_library.retention.is_empty());
}
