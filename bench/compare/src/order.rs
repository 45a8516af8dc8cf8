//! Whether a reader gets every number once and in order.

use std::collections::BTreeSet;

/// What a reader of one room has had.
#[derive(Default)]
pub(crate) struct Order {
    next: u32,
    /// Numbers that were passed over. Empty as long as all goes well, so that a right delivery costs one comparison.
    missing: BTreeSet<u32>,
    pub(crate) duplicated: u64,
    pub(crate) disordered: u64,
    /// Deliveries that are none of ours.
    pub(crate) foreign: u64,
}

impl Order {
    /// Of a reader that begins at this number.
    pub(crate) fn starting(first: u32) -> Self {
        Self { next: first, ..Self::default() }
    }

    /// Takes the number of a delivery.
    #[inline]
    pub(crate) fn take(&mut self, seq: Option<u32>) {
        if seq == Some(self.next) {
            self.next += 1;
        } else {
            self.odd(seq);
        }
    }

    #[cold]
    fn odd(&mut self, seq: Option<u32>) {
        match seq {
            None => self.foreign += 1,
            Some(seq) if seq > self.next => {
                self.missing.extend(self.next..seq);
                self.next = seq + 1;
            }
            Some(seq) if self.missing.remove(&seq) => self.disordered += 1,
            Some(_) => self.duplicated += 1,
        }
    }

    /// How many of `published` numbers have not come.
    pub(crate) fn lost(&self, published: u32) -> u64 {
        u64::from(published.saturating_sub(self.next)) + self.missing.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_repeats_and_disorder_are_told_apart() {
        let mut order = Order::default();
        for seq in [0, 1, 4, 3, 4, 5] {
            order.take(Some(seq));
        }
        order.take(None);
        assert_eq!((order.duplicated, order.disordered, order.foreign, order.lost(8)), (1, 1, 1, 3));
        let mut order = Order::starting(5);
        for seq in [5, 7, 4] {
            order.take(Some(seq));
        }
        assert_eq!((order.duplicated, order.lost(8)), (1, 1));
    }
}
