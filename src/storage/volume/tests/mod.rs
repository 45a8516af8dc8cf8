//! Volumes against a plain list, under damage, and under interrupted builds.

mod building;
mod damage;
mod golden;
mod reading;
mod rig;
