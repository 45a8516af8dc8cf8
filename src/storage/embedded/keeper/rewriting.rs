//! Rewriting: volumes with little left become shorter, small neighbours one, and those with nothing go.

use std::sync::Arc;
use std::time::Instant;

use super::{KeepError, Keeper, entry, since};
use crate::metrics::Work;
use crate::storage::volume::{Live, VolumeId, VolumeInfo, reread};
use crate::types::Offset;

/// Volumes below this are joined with their neighbours, in stored bytes.
const SMALL_VOLUME_BYTES: u64 = 32 << 20;

/// So many small neighbours are joined at once.
const JOINED_VOLUMES: usize = 8;

/// What came of a look at the volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::storage::embedded) enum Tidied {
    /// They are worth keeping as they are.
    Nothing,
    /// A piece of work was done, and there may be more.
    Some,
    /// There is work that there is no space for.
    Lacking,
}

impl Keeper {
    /// Deletes volumes with nothing retained in them, rewrites those with little, joins small neighbours. One
    /// piece of work per call.
    pub(in crate::storage::embedded) fn rewrite(&mut self) -> Result<Tidied, KeepError> {
        self.shared.volumes.sweep()?;
        if self.manifest.volumes.is_empty() {
            return Ok(Tidied::Nothing);
        }
        let floors = self.shared.catalog.floors();
        let floor = |room| floors.get(&room).copied().unwrap_or_default();
        let below = u64::from(self.shared.options.rewrite_below_percent);
        let (mut small, mut small_bytes) = (Vec::new(), 0);
        let (mut chosen, mut lacking) = (Vec::new(), Tidied::Nothing);
        let mut is_empty = false;
        let infos = self.shared.volumes.infos();
        for info in &infos {
            let live = self.live(info, floor)?;
            if live.live_records < live.records && live.live_stored_bytes * 100 <= live.stored_bytes * below {
                if self.may_rewrite(info.id, &live)? {
                    (chosen, is_empty) = (vec![info.id], live.live_blocks == 0);
                    break;
                }
                // A later one may need less.
                lacking = Tidied::Lacking;
            } else if info.stored_bytes < SMALL_VOLUME_BYTES {
                small.push(info.id);
                small_bytes += info.stored_bytes;
                if small.len() < JOINED_VOLUMES {
                    continue;
                }
                if self.may_join(small_bytes) {
                    chosen = std::mem::take(&mut small);
                    break;
                }
                lacking = Tidied::Lacking;
            }
            (small_bytes, _) = (0, small.clear());
        }
        if chosen.is_empty() {
            return Ok(lacking);
        }
        self.replace(&chosen, &infos, floor, is_empty)?;
        Ok(Tidied::Some)
    }

    fn live(&self, info: &VolumeInfo, floor: impl FnMut(u64) -> Offset) -> Result<Live, KeepError> {
        Ok(self.shared.volumes.live_of(info.id, floor)?)
    }

    /// Builds one volume of what is retained in some that follow one another, if anything is, and takes their place.
    fn replace(
        &mut self,
        chosen: &[VolumeId],
        infos: &[VolumeInfo],
        floor: impl FnMut(u64) -> Offset + Copy,
        is_empty: bool,
    ) -> Result<(), KeepError> {
        let begun = Instant::now();
        let of = |id: &VolumeId| infos.iter().find(|info| info.id == *id).expect("chosen of these");
        let (first, last) = (of(&chosen[0]), of(&chosen[chosen.len() - 1]));
        let before: u64 = chosen.iter().map(|id| self.shared.volumes.disk_bytes(*id).unwrap_or(0)).sum();
        let commits = (first.commit_first, last.commit_last);
        // Where nothing is left the manifest is all that has to be written: on a full disk that must do.
        let built = if is_empty {
            None
        } else {
            let id = self.next_volume()?;
            // Stretches that become volumes meanwhile have numbers behind it.
            self.manifest.next_volume += 1;
            let shared = Arc::clone(&self.shared);
            let input = reread(&shared.volumes, chosen, floor)?;
            let built = self.build_volume(Work::Rewrite, id, commits, input, floor);
            built.inspect_err(|_| self.give_up(id))?
        };
        let mut manifest = self.manifest.clone();
        manifest.volumes.retain(|volume| !chosen.contains(&VolumeId(volume.id)));
        manifest.volumes.extend(built.iter().map(entry));
        manifest.volumes.sort_by_key(|volume| volume.id);
        self.swap(manifest)?;
        let added: Vec<_> = built.iter().map(|built| built.id).collect();
        self.publish(&added, chosen)?;
        self.shared.volumes.sweep()?;
        let after = added.first().and_then(|id| self.shared.volumes.disk_bytes(*id).ok()).unwrap_or(0);
        self.shared.metrics.retention_bytes.increment(before.saturating_sub(after));
        tracing::info!(
            volumes = chosen.len(),
            bytes_before = before,
            bytes_after = after,
            "volumes with little left were rewritten in {}",
            since(begun)
        );
        Ok(())
    }
}
