//! Whatever the bytes: no panic, no allocation for a length that is a lie, and one encoding per value.
